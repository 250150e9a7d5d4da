//! What the performer of the data pane answers.

use std::sync::Arc;

use luthier_core::data::{Report, Row};

use super::state::{Rendered, RowSize};

pub type Rows = (Arc<Vec<Row>>, Arc<Vec<Row>>);

/// What the performer answers.
#[derive(Debug)]
pub enum DataEvent {
    /// The rows, and those in quarantine; or why they cannot be read.
    Rows(Result<Rows, String>),
    /// Progress of the check: rows done, rows in all.
    Checking(usize, usize),
    /// What the check found, or why it could not be made.
    Checked(Result<Box<Checked>, String>),
    /// A row as the model sees it.
    Rendered(Box<Rendered>),
    /// The quarantine changed: what was done, or why not.
    Quarantined(Result<String, String>),
}

/// What the check found.
#[derive(Debug)]
pub struct Checked {
    pub report: Arc<Report>,
    /// The size of each row, by its index.
    pub sizes: Vec<RowSize>,
    /// Into how many sequences the training rows are packed; nothing if they are not.
    pub sequences: Option<u64>,
}
