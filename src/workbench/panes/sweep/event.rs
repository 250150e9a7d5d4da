//! What the performer of the sweep pane answers.

use std::path::PathBuf;

use super::state::Snapshot;

/// What the performer answers.
#[derive(Debug)]
pub enum SweepEvent {
    /// The queue as it is now.
    Queue(Result<Snapshot, String>),
    /// The project's sweep files.
    Files(Vec<PathBuf>),
    /// A sweep file was written, or why not.
    Created(Result<PathBuf, String>),
    /// What a sweep file would queue, line by line, with its heading; or what is wrong with it.
    Looked(PathBuf, Result<(String, Vec<String>), String>),
    /// One run was queued, or why not.
    Added(Result<String, String>),
    /// Another request was carried out, or why not.
    Done(Result<String, String>),
}
