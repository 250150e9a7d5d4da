//! `luthier run pause|resume|stop|checkpoint|evaluate|sample|edit|undo`.

use clap::{Args, ValueEnum};
use luthier_core::runs::{Request, RunDir, StopWhen};

use super::Which;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::{output, preflight};
use crate::project::{self, Host};

/// Hold a run still after its current step; its memory is kept
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run pause latest -C tickets")]
pub struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Resume a paused run, or start a stopped, failed or lost one again from its newest checkpoint
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run resume latest -C tickets")]
pub struct Resume {
    #[command(flatten)]
    which: Which,
    /// First put back what its config.toml has changed of settings that are fixed, or the whole file if it is missing
    #[arg(long)]
    put_back: bool,
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

/// Write a checkpoint of a live run after its current step
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run checkpoint latest -C tickets")]
pub struct Checkpoint {
    #[command(flatten)]
    which: Which,
}

/// Evaluate a live run after its current step
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run evaluate latest -C tickets")]
pub struct Evaluate {
    #[command(flatten)]
    which: Which,
}

/// Let a live run answer a prompt after its current step; the reply is in its journal
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run sample latest \"My order has not arrived.\" -C tickets")]
pub struct Sample {
    #[command(flatten)]
    which: Which,
    /// What a user would say
    prompt: String,
}

/// Take back the newest edit of a run that was not taken back
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier run undo latest -C tickets")]
pub struct Undo {
    #[command(flatten)]
    which: Which,
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

pub fn pause(arguments: &Pause) -> Outcome {
    let run = arguments.which.find()?;
    say(&run, &project::ask(&run, &Request::Pause)?)
}

pub fn resume(arguments: &Resume, host: &Host) -> Outcome {
    let run = arguments.which.find()?;
    preflight::log_out();
    if arguments.put_back {
        for done in project::put_back(&run)? {
            say(&run, &done)?;
        }
    }
    say(&run, &project::resume(&run, host)?)
}

pub fn stop(arguments: &Stop) -> Outcome {
    let run = arguments.which.find()?;
    let when = match arguments.when {
        When::Save => StopWhen::Save,
        When::AfterEval => StopWhen::AfterEval,
        When::Now => StopWhen::Now,
    };
    say(&run, &project::ask(&run, &Request::Stop { when })?)
}

pub fn checkpoint(arguments: &Checkpoint) -> Outcome {
    let run = arguments.which.find()?;
    say(&run, &project::ask(&run, &Request::Checkpoint)?)
}

pub fn evaluate(arguments: &Evaluate) -> Outcome {
    let run = arguments.which.find()?;
    say(&run, &project::ask(&run, &Request::Evaluate)?)
}

pub fn sample(arguments: &Sample) -> Outcome {
    let run = arguments.which.find()?;
    say(&run, &project::ask(&run, &Request::Sample { prompt: arguments.prompt.clone() })?)
}

pub fn undo(arguments: &Undo) -> Outcome {
    let run = arguments.which.find()?;
    say(&run, &project::undo_edit(&run, "luthier run undo")?)
}

pub fn edit(arguments: &Edit) -> Outcome {
    let run = arguments.which.find()?;
    let Some((key, value)) = arguments.setting.split_once('=') else {
        return Err(Failure::usage(format!(
            "`{}` sets nothing; write a setting and its value, as in train.learning_rate=1e-4",
            arguments.setting
        )));
    };
    say(&run, &project::edit(&run, key.trim(), value.trim(), "luthier run edit")?)
}

fn say(run: &RunDir, message: &str) -> Outcome {
    output::line(&format!("run {}: {message}", run.id()))
}
