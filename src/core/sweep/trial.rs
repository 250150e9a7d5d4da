//! Sweeps and trials in the queue.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::Serialize;

use super::goal::Goal;
use super::sampler::Settings;
use crate::algorithms::Direction;
use crate::runs::time::{millis, optional_millis};
use crate::runs::{Failure, Number};

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, strum::Display, strum::EnumString, strum::EnumIter,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TrialState {
    /// Waits for its turn.
    Queued,
    /// Waits, and is skipped until it is released.
    Held,
    /// A run works on it.
    Running,
    /// Its run reached its planned end.
    Finished,
    /// Its run was stopped by a user.
    Stopped,
    Failed,
    /// It will not run, or its run was stopped because it was cancelled.
    Cancelled,
    /// Its run's process is gone, and no scheduler knows of it yet. Never stored; see [`super::trials_seen`].
    Lost,
}

impl TrialState {
    /// Whether it has a place in the queue.
    pub fn waits(self) -> bool {
        matches!(self, Self::Queued | Self::Held)
    }

    /// Whether its state changes only by user action.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Failed | Self::Cancelled)
    }
}

/// A search over settings, or a single queued run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub id: i64,
    pub name: String,
    /// `grid`, `random`, or `single`.
    pub sampler: String,
    pub goal: Goal,
    /// The configuration from which its trials start, with every key.
    pub config: String,
    /// When it was queued.
    pub created: Timestamp,
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The number by which commands name it.
    pub id: i64,
    pub sweep: i64,
    pub sweep_name: String,
    /// Number within the sweep, from 0.
    pub number: u64,
    /// Place among waiting trials: lower is earlier.
    pub position: i64,
    pub state: TrialState,
    /// Whether its run was asked to stop because the trial is cancelled.
    pub cancelling: bool,
    /// The settings that differ from the sweep's configuration: dotted key to TOML value.
    pub settings: IndexMap<String, String>,
    pub run: Option<String>,
    /// The goal's value.
    pub result: Option<Number>,
    pub failure: Option<Failure>,
    /// How often a process was started for it.
    pub attempts: u64,
    /// When it was queued.
    #[serde(with = "millis")]
    pub created: Timestamp,
    /// When its run was first started.
    #[serde(with = "optional_millis")]
    pub started: Option<Timestamp>,
    #[serde(with = "optional_millis")]
    pub ended: Option<Timestamp>,
}

impl Trial {
    /// Its settings in one line: [`label`].
    pub fn label(&self) -> String {
        label(&self.settings)
    }
}

/// Settings in one line: `learning_rate=2e-4 rank=8`.
pub fn label(settings: &Settings) -> String {
    let short = |key: &String| key.rsplit('.').next().unwrap_or(key).to_owned();
    let parts: Vec<_> = settings.iter().map(|(key, value)| format!("{}={value}", short(key))).collect();
    crate::text::clean_line(&parts.join(" ")).into_owned()
}

/// The trials that have a result, best first; equal results are ordered by number.
pub fn rank(trials: &[Trial], direction: Direction) -> Vec<&Trial> {
    let mut ranked: Vec<_> = trials.iter().filter_map(|trial| Some((trial, trial.result?.get()))).collect();
    ranked.sort_by(|(left, left_result), (right, right_result)| {
        let key = |result: f64| match direction {
            Direction::Min => result,
            Direction::Max => -result,
        };
        let nan = left_result.is_nan().cmp(&right_result.is_nan());
        nan.then(key(*left_result).total_cmp(&key(*right_result))).then(left.number.cmp(&right.number))
    });
    ranked.into_iter().map(|(trial, _)| trial).collect()
}
