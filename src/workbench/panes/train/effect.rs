//! What the train pane has done outside of its state, what comes back, and what it asks in boxes.

use luthier_core::config::Config;
use luthier_core::runs::{self, Request, RunSummary, Status};

use crate::app::Slot;

/// Work for the performer in `effects/train.rs`.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Keep telling which runs there are, whenever that changes.
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
        /// The run.
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

/// What the performer answers.
#[derive(Debug)]
pub enum Event {
    /// The runs there are, newest first.
    Runs(Result<Vec<RunSummary>, String>),
    /// What a followed run's journal says, from where the last batch ended.
    Journal {
        /// The run.
        run: String,
        /// New events, oldest first.
        events: Vec<runs::Event>,
        /// The journal starts over: discard what was read before.
        restarted: bool,
        /// Everything written so far was read.
        caught_up: bool,
    },
    /// Where a followed run stands.
    Status {
        /// The run.
        run: String,
        /// Its status.
        status: Box<Status>,
        /// Its checkpoints, by step.
        checkpoints: Vec<u64>,
        /// Its settings as they are now, if they can be read.
        config: Option<Box<Config>>,
    },
    /// The whole journal of a run shown for comparison.
    Overlay(String, Vec<runs::Event>),
    /// The end of a run's log.
    Log(String, Vec<String>),
    /// How far the data for a plan are prepared: rows done, rows in all.
    Planning(usize, usize),
    /// What a run would be, line by line, for these settings; or why there can be none.
    Planned(Vec<String>, Result<PlanSummary, Refusal>),
    /// A run was started, or could not be.
    Started(Result<String, String>),
    /// A run was asked something: what it said, or why it could not be asked.
    Asked(Result<String, String>),
    /// A setting was to be changed: what came of it, or why it was not.
    Edited {
        /// The run.
        run: String,
        /// Dotted key.
        key: String,
        /// What came of it.
        outcome: Result<String, String>,
    },
    /// Which settings differ: heading and text.
    Diff(String, String),
    /// The rows behind a step of a run, by index into the dataset.
    Rows(u64, Result<Vec<usize>, String>),
}

/// What a run would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// The method in two words: `lora r16`.
    pub method: String,
    /// Parameters, steps, memory and what there is to know, a line each.
    pub lines: Vec<String>,
}

/// Why a run cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In a few words.
    pub title: String,
    /// With all problems, lines and carets.
    pub text: String,
}

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Start the run planned with these settings?
    Start(Vec<String>),
    /// Which settings to put over the file's.
    Settings,
    /// How to end this run.
    Stop(String),
    /// Really at once, without saving?
    StopNow(String),
    /// Which of these keys of this run to change.
    Key(String, Vec<&'static str>),
    /// The new value of a key of this run.
    Value(String, &'static str),
    /// Go on with a run whose process is gone?
    Restart(String),
}

impl Effect {
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
