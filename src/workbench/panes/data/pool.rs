//! Rows that the pane lists from, and what is known of one of them.

use std::ops::Deref;
use std::sync::Arc;

use luthier_core::data::{Message, Rows, TokenPiece};

/// Rows to list from. Two pools are equal if they are the same one.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Rows>);

impl Deref for Pool {
    type Target = Rows;

    fn deref(&self) -> &Rows {
        &self.0
    }
}

impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<R: Into<Rows>> From<R> for Pool {
    fn from(rows: R) -> Self {
        Self(Arc::new(rows.into()))
    }
}

/// A row as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Its position in the pool.
    pub position: usize,
    /// Its messages with the project's system prompt; nothing for rows that are no conversation.
    pub messages: Option<Vec<Message>>,
    /// The tokens of each side, for a preference pair the chosen one first; or why it has none.
    pub sides: Result<Vec<Vec<TokenPiece>>, String>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// The tokens of a row as it is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSize {
    /// Tokens in all its sides; 0 if it cannot be used.
    pub tokens: usize,
    /// Those of them that are targets of the loss.
    pub trained: usize,
}

/// Rows chosen to do something with.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// All rows that they were chosen from.
    pub pool: Pool,
    /// Their positions in it.
    pub positions: Vec<usize>,
}
