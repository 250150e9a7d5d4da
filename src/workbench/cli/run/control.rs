//! `luthier run pause|resume|stop|edit`.

use clap::{Args, ValueEnum};
use luthier_core::config::Config;
use luthier_core::runs::{Action, Request, ResumeWay, RunDir, StopWhen, ask, resume_way, start_detached};

use super::Which;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output;

/// Hold a run still after its current step; its memory is kept
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run pause latest -C tickets")]
pub struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Let a paused run go on, or start a stopped, failed or lost one again from its newest checkpoint
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run resume latest -C tickets")]
pub struct Resume {
    #[command(flatten)]
    which: Which,
}

/// End a run
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier run stop latest -C tickets\n  luthier run stop 20260102-1504 --when now"
)]
pub struct Stop {
    #[command(flatten)]
    which: Which,
    /// How it ends
    #[arg(long, value_enum, default_value_t = When::Save)]
    when: When,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    /// After the current step, with a checkpoint and the adapter saved
    Save,
    /// After one more evaluation, saved as well
    AfterEval,
    /// At once: what came after the newest checkpoint is lost
    Now,
}

/// Change a setting of a live run, from its next step on
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run edit latest train.learning_rate=1e-4 -C tickets")]
pub struct Edit {
    #[command(flatten)]
    which: Which,
    /// The setting and its new value
    #[arg(value_name = "SECTION.KEY=VALUE")]
    setting: String,
}

/// Pauses.
pub fn pause(arguments: &Pause) -> Outcome {
    let run = arguments.which.find()?;
    check(&run, Action::Pause)?;
    say(&run, &ask(&run, &Request::Pause)?)
}

/// Makes a run go on.
pub fn resume(arguments: &Resume) -> Outcome {
    let run = arguments.which.find()?;
    let newest = newest_checkpoint(&run);
    match resume_way(&run.status()?, newest).map_err(|reason| refused(&run, reason))? {
        ResumeWay::Ask => say(&run, &ask(&run, &Request::Resume)?),
        ResumeWay::Start { from_step } => {
            let process = start_detached(&run)?;
            let from = from_step.map_or_else(|| "the beginning".to_owned(), |step| format!("step {step}"));
            say(&run, &format!("goes on from {from}, process {process}"))
        }
    }
}

/// Stops.
pub fn stop(arguments: &Stop) -> Outcome {
    let run = arguments.which.find()?;
    check(&run, Action::Stop)?;
    let when = match arguments.when {
        When::Save => StopWhen::Save,
        When::AfterEval => StopWhen::AfterEval,
        When::Now => StopWhen::Now,
    };
    say(&run, &ask(&run, &Request::Stop { when })?)
}

/// Changes a setting.
pub fn edit(arguments: &Edit) -> Outcome {
    let run = arguments.which.find()?;
    let Some((key, value)) = arguments.setting.split_once('=') else {
        return Err(Failure::usage(format!(
            "`{}` sets nothing; write a setting and its value, as in train.learning_rate=1e-4",
            arguments.setting
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    // The run reads it the same way, but cannot say that it is the command that was wrong.
    Config::load_file(&run.config_path(), &[format!("{key}={value}")])?;
    check(&run, Action::Edit)?;
    let request = Request::Edit {
        key: key.to_owned(),
        value: value.to_owned(),
        who: Some("luthier run edit".to_owned()),
    };
    say(&run, &ask(&run, &request)?)
}

fn newest_checkpoint(run: &RunDir) -> Option<u64> {
    run.checkpoints().last().map(|checkpoint| checkpoint.step)
}

fn check(run: &RunDir, action: Action) -> Outcome {
    action.check(&run.status()?, newest_checkpoint(run)).map_err(|reason| refused(run, reason))
}

fn refused(run: &RunDir, reason: &str) -> Failure {
    Failure::work(format!("run {}: {reason}", run.id()))
}

fn say(run: &RunDir, message: &str) -> Outcome {
    output::line(&format!("run {}: {message}", run.id()))
}
