//! What the sweep pane has done outside of its state.

use std::path::PathBuf;

use indexmap::IndexMap;
use luthier_core::sweep::Place;

use crate::app::Slot;

/// Work for the performer in `effects/sweep.rs`.
#[derive(Debug, PartialEq)]
pub enum SweepEffect {
    /// Watch the queue, and post each change.
    Watch,
    /// Find the project's sweep files.
    Files,
    /// Write an example sweep file with this name.
    Create(String),
    /// Read a sweep file and list what it would queue.
    Look(PathBuf),
    /// Queue the trials of a sweep file, and start a scheduler if none is running.
    Start(PathBuf),
    /// Queue one run with these settings over the project's.
    Add(Vec<String>),
    Move(i64, Place),
    /// Keep a waiting trial from starting.
    Hold(i64),
    /// Let a held trial start.
    Release(i64),
    /// Cancel a trial.
    Cancel(i64),
    /// Queue a trial again.
    Retry(i64),
    /// Write settings into `luthier.toml`.
    Promote(IndexMap<String, String>),
}

impl SweepEffect {
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
