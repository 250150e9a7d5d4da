//! What the data pane has done outside of its state.

use super::listing::Field;
use super::pool::{Chosen, Pool};
use crate::app::Slot;
use crate::project::{Draft, SplitChoice};

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
    /// Find out what the ways to split the rows come to; those in quarantine come second.
    Splits(Pool, Pool),
    /// Split the rows in this way.
    SetSplit(SplitChoice),
    /// Write the row at a position out for an editor.
    Draft(Pool, usize),
    /// Replace a row with what was edited.
    TakeDraft(Draft),
    /// Let the row at a position be as it is in its file.
    Undo(Pool, usize),
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
            Self::Fields(..) => Slot::Latest("fields"),
            Self::Values(..) => Slot::Latest("values"),
            Self::Compare(..) => Slot::Latest("compare"),
            Self::Splits(..) => Slot::Latest("splits"),
            Self::Draft(..) => Slot::Latest("draft"),
            Self::SetSplit(..) | Self::TakeDraft(..) | Self::Undo(..) | Self::Quarantine(..) => Slot::Each,
        }
    }
}
