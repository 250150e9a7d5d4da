//! What the train pane has done outside of its state.

use luthier_core::runs::Request;

use crate::app::Slot;

/// Work for the performer in `effects/train.rs`.
#[derive(Debug, PartialEq)]
pub enum TrainEffect {
    /// Watch the runs, and post each change.
    Watch,
    /// Read a run's journal from its beginning and follow it, until another run is followed.
    Follow(String),
    /// Read another run's journal for its curves.
    Overlay(String),
    /// Read the end of what a run's engine printed, and follow it.
    Log(String),
    /// Prepare the data and work out what a run would be, with these settings over the file's.
    Plan(Vec<String>),
    /// Start a run with these settings over the file's.
    Start(Vec<String>),
    /// Start the engine again on a run whose process is gone.
    Restart(String),
    /// Ask a live run something over its control socket.
    Ask(String, Request),
    /// Change a setting in the `config.toml` of a run without a process.
    Write {
        run: String,
        /// Dotted key.
        key: String,
        /// The new value, as TOML.
        value: String,
    },
    /// Compare a run's settings with the project's.
    Diff(String),
    /// Find the rows behind a step.
    Rows(String, u64),
}

impl TrainEffect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Watch => Slot::Latest("watch"),
            Self::Follow(_) => Slot::Latest("follow"),
            Self::Log(_) => Slot::Latest("log"),
            Self::Plan(_) => Slot::Latest("plan"),
            Self::Diff(_) => Slot::Latest("diff"),
            Self::Rows(..) => Slot::Latest("rows"),
            Self::Overlay(_) | Self::Start(_) | Self::Restart(_) | Self::Ask(..) | Self::Write { .. } => {
                Slot::Each
            }
        }
    }
}
