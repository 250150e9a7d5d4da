//! What the performer of the data pane answers.

use std::sync::Arc;

use luthier_core::data::{Report, Row};

use super::listing::Field;
use super::pool::{Pool, Rendered, RowSize};
use super::state::Table;
use crate::project::{Draft, SplitChoice};

/// What the performer answers.
#[derive(Debug)]
pub enum DataEvent {
    /// How much of the files is read, from 0 to 1; now and then with the rows read so far.
    Reading(f64, Option<Pool>),
    /// The rows, and those in quarantine; or why they cannot be read.
    Rows(Result<(Pool, Pool), String>),
    /// Rows with their positions.
    Fetched(Pool, Vec<(usize, Row)>),
    /// Why a row cannot be read any more.
    Broken(Pool, String),
    /// Progress of the check: rows done, rows in all.
    Checking(usize, usize),
    /// What the check found, or why it could not be made.
    Checked(Result<Box<Checked>, String>),
    /// A row as the model sees it.
    Rendered(Pool, Box<Rendered>),
    /// What a search has found.
    Found(Pool, Found),
    /// What the rows can be told apart by.
    Fields(Pool, Vec<Field>),
    /// The values of a field.
    Values(Pool, Field, Table),
    /// The ways to split the rows.
    Splits(Pool, Vec<SplitChoice>),
    /// Two rows to compare.
    Compared(Pool, Box<[Row; 2]>),
    /// A row was written out for an editor, or why not.
    Drafted(Result<Draft, String>),
    /// Whether a row was replaced with what was edited, or why it was refused.
    Rewritten(Draft, Result<bool, String>),
    /// Rows were set aside, brought back, or are again as in their files: what was done, or why not.
    Changed(Result<String, String>),
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// What was typed.
    pub typed: String,
    /// Positions of rows, in the order in which they are listed.
    pub rows: Vec<usize>,
    /// Which share of the rows it has looked at, if not all.
    pub share: Option<f64>,
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
