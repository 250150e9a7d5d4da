//! What the data pane asks in a box.

use super::listing::{Field, Filter};
use super::pool::{Chosen, Pool};
use crate::project::SplitChoice;

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum DataQuestion {
    /// Which of these filters.
    Filter(Vec<Filter>),
    /// In which order.
    Order,
    /// Which of these ways to split the rows.
    Split(Vec<SplitChoice>),
    /// A table of which of these fields.
    Field(Vec<Field>),
    /// Which of these values of a field.
    Value(Field, Vec<String>),
    /// Really let the row at a position be as it is in its file?
    Undo(Pool, usize),
    /// Really keep these rows out of runs? Or, if not, let them back in?
    Quarantine(Chosen, bool),
}
