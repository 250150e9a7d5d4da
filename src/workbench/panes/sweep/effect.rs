//! What the sweep pane has done outside of its state.

use std::path::PathBuf;

use indexmap::IndexMap;
use luthier_core::sweep::Place;

use crate::app::Slot;

/// Work for the performer in `effects/sweep.rs`.
#[derive(Debug, PartialEq)]
pub enum SweepEffect {
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
