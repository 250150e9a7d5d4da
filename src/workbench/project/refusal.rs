//! Why an operation was not carried out, in the same words for the command line and the panes.

use std::io;
use std::path::{Path, PathBuf};

use luthier_core::config::{ConfigError, Edit};
use luthier_core::data::{DataError, DataProblem};
use luthier_core::eval::EvalError;
use luthier_core::model::ModelError;
use luthier_core::plan::PlanError;
use luthier_core::runs::RunError;
use luthier_core::sweep::SweepError;
use luthier_core::text::{clean, clean_line, indented};

use super::problems::grouped;
use super::serving::Unserved;
use crate::hub::HubError;
use luthier_core::units;

/// Problems written out; the rest is counted.
const SHOWN_PROBLEMS: usize = 20;

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The settings have mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The base model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// `method.init` names nothing that a run could start from.
    #[error("method.init: {0}")]
    Init(#[source] ModelError),
    /// The data cannot be used as a whole.
    #[error("{}", data_error(.0))]
    Data(#[from] DataError),
    /// Rows have problems that would break training.
    #[error("{}", blocking(.0))]
    Blocked(Vec<DataProblem>),
    /// There is no plan for the run, or it would not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The objective or the verdicts cannot be used.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The suite cannot be used.
    #[error("review.suite: {0}")]
    Suite(#[source] EvalError),
    /// A run or the engine refused.
    #[error("{}", run_error(.0))]
    Run(#[from] RunError),
    /// What was asked for is not possible in the run's state.
    #[error("run {run}: {reason}")]
    State {
        /// The run's id.
        run: String,
        /// Why not.
        reason: String,
    },
    /// The file of a run that would be resumed has changed what is fixed for its life.
    #[error("{}", fixed(run, file, changes))]
    Fixed {
        /// The run's id.
        run: String,
        /// The run's `config.toml`.
        file: PathBuf,
        /// From what is in force to what the file says.
        changes: Vec<Edit>,
    },
    /// The rows of a step depend on data that is no longer there.
    #[error("the data changed since the run was started: the rows of this step can no longer be determined")]
    DataChanged,
    /// The sweep file or the queue cannot be used.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// One trial of a sweep cannot run; nothing was queued.
    #[error("trial {number} ({settings}): {refusal}")]
    Trial {
        /// Its number within the sweep, from 0.
        number: usize,
        /// Its settings in one line.
        settings: String,
        /// Why it cannot run.
        refusal: Box<Refusal>,
    },
    /// Nothing was ever queued.
    #[error("nothing was ever queued in this project; `luthier sweep start` queues trials")]
    NoQueue,
    /// The disk cannot hold the checkpoints.
    #[error(
        "the disk is too full: {} are free at `{}`, the run's checkpoints need {}; free some space, or lower \
         train.keep_checkpoints",
        units::bytes(*.free), shown(.folder), units::bytes(*.needed)
    )]
    DiskFull {
        /// Free bytes.
        free: u64,
        /// Bytes that the checkpoints need.
        needed: u64,
        /// The project folder.
        folder: PathBuf,
    },
    /// The hub, or the way to it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The serving engine cannot be reached.
    #[error(transparent)]
    Serving(#[from] Unserved),
    /// The run has nothing to evaluate.
    #[error("{0}")]
    NothingToMeasure(String),
    /// The run has no checkpoint of the step asked for.
    #[error("{0}")]
    NoCheckpoint(String),
    /// Whoever asked for an evaluation cancelled it.
    #[error("nothing was evaluated")]
    NotEvaluated,
    /// A file to be written exists.
    #[error("`{}` is there already; name another file, or move it away", shown(.0))]
    Exists(PathBuf),
    /// A file to be written exists, and was not to be replaced.
    #[error("`{}` is there already; name another file, or replace it with --force", shown(.0))]
    NotReplaced(PathBuf),
    /// A file to be written is one that is read.
    #[error("`{}` is a file that the rows come from; name another", shown(.0))]
    Source(PathBuf),
    /// A row that was named is not there.
    #[error("{0}")]
    NoRow(String),
    /// A row is not replaced with what was written.
    #[error("the row stays as it is: {}", clean_line(.0))]
    NotEdited(String),
    /// The system refused something.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn shown(path: &Path) -> String {
    clean_line(&path.display().to_string()).into_owned()
}

fn fixed(run: &str, file: &Path, changes: &[Edit]) -> String {
    let change = |Edit { key, old, new, .. }: &Edit| {
        let line = format!("{key} = {new}; in force is {old}");
        format!("\n  {}", clean_line(&line))
    };
    format!(
        "`{}` has changed settings that are fixed for the life of a run:{}\n`luthier run resume {} --put-back` puts them \
         back and goes on; to train with them, start a new run",
        shown(file),
        changes.iter().map(change).collect::<String>(),
        clean_line(run)
    )
}

fn data_error(error: &DataError) -> String {
    match error {
        DataError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            format!("{error}; check data.train and data.eval in luthier.toml")
        }
        _ => error.to_string(),
    }
}

/// A run may answer with a problem drawn over several lines, whose caret needs them.
fn run_error(error: &RunError) -> String {
    match error {
        RunError::Answer(answer) => clean(answer).into_owned(),
        other => other.to_string(),
    }
}

fn blocking(problems: &[DataProblem]) -> String {
    let mut lines = vec![match problems.len() {
        1 => "one problem keeps the data from being trained on:".to_owned(),
        count => format!("{count} problems keep the data from being trained on:"),
    }];
    let groups = grouped(problems);
    lines.extend(groups.iter().take(SHOWN_PROBLEMS).map(|group| indented(&group.to_string(), 2)));
    if groups.len() > SHOWN_PROBLEMS {
        lines.push(format!("… and {} more; `luthier data check` lists all", groups.len() - SHOWN_PROBLEMS));
    }
    lines.join("\n  ")
}
