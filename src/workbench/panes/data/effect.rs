//! What the data pane has done outside of its state, what comes back, and what it asks in boxes.

use std::sync::Arc;

use luthier_core::data::{Message, ProblemKind, Report, Row, TokenPiece};

use crate::app::Slot;

/// Work for the performer in `effects/data.rs`.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Read all rows, then check them.
    Load,
    /// Render one row: conversation, text and tokens.
    Render(usize),
    /// Keep the row with this hash out of runs, or let it back in.
    Quarantine(String),
}

/// The rows, and those in quarantine.
pub type Rows = (Arc<Vec<Row>>, Arc<Vec<Row>>);

/// A row as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The row.
    pub row: usize,
    /// Its messages with the project's system prompt; nothing for rows that are no conversation.
    pub messages: Option<Vec<Message>>,
    /// Its tokens (of a preference pair, those of the chosen side), or why it has none.
    pub tokens: Result<Vec<TokenPiece>, String>,
    /// The tokens of a preference pair's rejected side.
    pub rejected: Option<Vec<TokenPiece>>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// What the performer answers.
#[derive(Debug)]
pub enum Event {
    /// The rows, and those in quarantine; or why they cannot be read.
    Rows(Result<Rows, String>),
    /// How far the check is: rows done, rows in all.
    Checking(usize, usize),
    /// What the check found, or why it could not be made.
    Checked(Result<Arc<Report>, String>),
    /// A row as the model sees it.
    Rendered(Box<Rendered>),
    /// The quarantine changed: what was done, or why not.
    Quarantined(Result<String, String>),
}

/// Which rows are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All.
    All,
    /// The training split.
    Train,
    /// The held-out split.
    Eval,
    /// Those with a problem of this sort.
    Problem(ProblemKind),
    /// Those in quarantine.
    Quarantined,
}

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Which of these filters.
    Filter(Vec<Filter>),
    /// Really keep the row with this hash out of runs?
    Quarantine(String),
}

impl Effect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Load => Slot::Latest("load"),
            Self::Render(_) => Slot::Latest("render"),
            Self::Quarantine(_) => Slot::Each,
        }
    }
}
