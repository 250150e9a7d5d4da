//! What the performer of the train pane answers.

use luthier_core::config::Config;
use luthier_core::runs::{self, RunSummary, Status};

use super::plan::{PlanSummary, Refusal};

/// What the performer answers.
#[derive(Debug)]
pub enum TrainEvent {
    /// The runs there are, newest first.
    Runs(Result<Vec<RunSummary>, String>),
    /// What a followed run's journal says, from where the last batch ended.
    Journal {
        /// The run.
        run: String,
        /// New events, oldest first.
        events: Vec<runs::Event>,
        /// The journal begins anew: what was read before does not count.
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
