//! What the data pane has done outside of its state.

use super::listing::Field;
use super::state::{Chosen, Pool};
use crate::app::Slot;

/// Work for the performer in `effects/data`.
#[derive(Debug, PartialEq)]
pub enum DataEffect {
    /// Read all rows, then check them.
    Load {
        /// Whether to show rows before all are read.
        early: bool,
    },
    /// Read the rows at these positions.
    Fetch(Pool, Vec<usize>),
    /// Render the row at a position: conversation, text and tokens.
    Render(Pool, usize),
    /// Find what was typed in the rows at these positions.
    Search(Pool, Vec<usize>, String),
    /// Find out what the rows can be told apart by.
    Fields(Pool),
    /// Count the values of a field.
    Values(Pool, Field),
    /// Read the rows at two positions, to compare them.
    Compare(Pool, [usize; 2]),
    /// Keep these rows out of runs; or, if not, let them back in.
    Quarantine(Chosen, bool),
}

impl DataEffect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Load { .. } => Slot::Latest("load"),
            Self::Fetch(..) => Slot::Latest("fetch"),
            Self::Render(..) => Slot::Latest("render"),
            Self::Search(..) => Slot::Latest("search"),
            Self::Fields(..) | Self::Values(..) => Slot::Latest("values"),
            Self::Compare(..) => Slot::Latest("compare"),
            Self::Quarantine(..) => Slot::Each,
        }
    }
}
