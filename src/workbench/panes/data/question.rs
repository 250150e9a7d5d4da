//! What the data pane asks in a box.

use super::state::Filter;

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum DataQuestion {
    /// Which of these filters.
    Filter(Vec<Filter>),
    /// Really keep the row with this hash out of runs?
    Quarantine(String),
}
