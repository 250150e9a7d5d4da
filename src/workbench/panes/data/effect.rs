//! What the data pane has done outside of its state.

use super::state::Chosen;
use crate::app::Slot;

/// Work for the performer in `effects/data.rs`.
#[derive(Debug, PartialEq)]
pub enum DataEffect {
    /// Read all rows, then check them.
    Load,
    /// Render one row: conversation, text and tokens.
    Render(usize),
    /// Keep these rows out of runs; or, if not, let them back in.
    Quarantine(Chosen, bool),
}

impl DataEffect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Load => Slot::Latest("load"),
            Self::Render(_) => Slot::Latest("render"),
            Self::Quarantine(..) => Slot::Each,
        }
    }
}
