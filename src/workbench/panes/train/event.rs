//! What the performer of the train pane answers.

use luthier_core::config::Config;
use luthier_core::runs::{self, RunSummary, Status};

use super::plan::{PlanSummary, Refusal};

/// What the performer answers.
#[derive(Debug)]
pub enum TrainEvent {
    /// The runs, newest first.
    Runs(Result<Vec<RunSummary>, String>),
    /// New events of a followed run's journal.
    Journal {
        run: String,
        /// New events, oldest first.
        events: Vec<runs::JournalEvent>,
        /// The journal starts again: drop what was read before.
        restarted: bool,
        /// Everything written so far was read.
        caught_up: bool,
    },
    /// The state of a followed run.
    Status {
        run: String,
        status: Box<Status>,
        /// Its checkpoints, by step.
        checkpoints: Vec<u64>,
        /// Its settings as they are now, if they can be read.
        config: Option<Box<Config>>,
    },
    /// The whole journal of a run shown for comparison.
    Overlay(String, Vec<runs::JournalEvent>),
    /// The end of a run's log.
    Log(String, Vec<String>),
    /// How far the data for a plan are prepared: rows done, rows in all.
    Planning(usize, usize),
    /// The planned run for these settings, or why it cannot start.
    Planned(Vec<String>, Result<PlanSummary, Refusal>),
    /// A run was started, or why not.
    Started(Result<String, String>),
    /// A run replied to a request, or why it could not be asked.
    Asked(Result<String, String>),
    /// The outcome of changing a setting.
    Edited {
        run: String,
        /// Dotted key.
        key: String,
        /// What was changed, or why it was not.
        outcome: Result<String, String>,
    },
    /// Which settings differ: heading and text.
    Diff(String, String),
    /// The rows behind a step of a run, by index into the dataset.
    Rows(u64, Result<Vec<usize>, String>),
}
