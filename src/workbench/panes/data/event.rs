//! What the performer of the data pane answers.

use std::sync::Arc;

use luthier_core::data::{Report, Row};

use super::state::Rendered;

pub type Rows = (Arc<Vec<Row>>, Arc<Vec<Row>>);

/// What the performer answers.
#[derive(Debug)]
pub enum DataEvent {
    /// The rows, and those in quarantine; or why they cannot be read.
    Rows(Result<Rows, String>),
    /// Progress of the check: rows done, rows in all.
    Checking(usize, usize),
    /// What the check found, or why it could not be made.
    Checked(Result<Arc<Report>, String>),
    /// A row as the model sees it.
    Rendered(Box<Rendered>),
    /// The quarantine changed: what was done, or why not.
    Quarantined(Result<String, String>),
}
