//! What the sweep pane asks in a box.

use std::path::PathBuf;

use indexmap::IndexMap;

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum SweepQuestion {
    /// Which of these sweep files; after the last one, a new file.
    File(Vec<PathBuf>),
    /// The name of a new sweep file.
    Name,
    /// Queue the trials of this file?
    Start(PathBuf),
    /// The settings of one run.
    Add,
    Cancel(i64),
    /// Really write these settings?
    Promote(IndexMap<String, String>),
}
