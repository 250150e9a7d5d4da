//! What the sweep pane has done outside of its state, what comes back, and what it asks in boxes.

use std::path::PathBuf;

use indexmap::IndexMap;
use luthier_core::sweep::{Place, Sweep, Trial};

use crate::app::Slot;

/// Work for the performer in `effects/sweep.rs`.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Keep telling what the queue holds, whenever that changes.
    Watch,
    /// Find the project's sweep files.
    Files,
    /// Write a sweep file with this name to begin from.
    Create(String),
    /// Read a sweep file and say what it would queue.
    Look(PathBuf),
    /// Queue the trials of a sweep file and see that they are worked off.
    Start(PathBuf),
    /// Queue one run with these settings over the project's.
    Add(Vec<String>),
    /// Move a waiting trial.
    Move(i64, Place),
    /// Keep a waiting trial from starting.
    Hold(i64),
    /// Let a held trial start.
    Release(i64),
    /// Take a trial out.
    Cancel(i64),
    /// Queue a trial once more.
    Retry(i64),
    /// Write settings into `luthier.toml`.
    Promote(IndexMap<String, String>),
}

/// What the queue holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Trials: what runs and waits in turn, then what is over.
    pub trials: Vec<Trial>,
    /// Sweeps by age.
    pub sweeps: Vec<Sweep>,
    /// How far the runs of trials are, by run id: steps made and steps in all.
    pub progress: IndexMap<String, (u64, u64)>,
}

/// What the performer answers.
#[derive(Debug)]
pub enum Event {
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
    /// Something was done, or why not.
    Done(Result<String, String>),
}

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Which of these sweep files; after the last one, a new file.
    File(Vec<PathBuf>),
    /// The name of a new sweep file.
    Name,
    /// Queue the trials of this file?
    Start(PathBuf),
    /// Which settings for one run.
    Add,
    /// Really cancel this trial?
    Cancel(i64),
    /// Really write these settings?
    Promote(IndexMap<String, String>),
}

impl Effect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Watch => Slot::Latest("watch"),
            Self::Files => Slot::Latest("files"),
            Self::Look(_) => Slot::Latest("look"),
            Self::Create(_)
            | Self::Start(_)
            | Self::Add(_)
            | Self::Move(..)
            | Self::Hold(_)
            | Self::Release(_)
            | Self::Cancel(_)
            | Self::Retry(_)
            | Self::Promote(_) => Slot::Each,
        }
    }
}
