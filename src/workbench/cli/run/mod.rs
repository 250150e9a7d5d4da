//! `luthier run …`: see and control one run.

mod control;
mod diff;
mod show;

use clap::{Args, Subcommand};
use luthier_core::runs::RunDir;

use super::failure::Outcome;
use super::project::Folder;
use crate::project::Host;

/// See and control one run
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::Arguments),
    Pause(control::Pause),
    Resume(control::Resume),
    Stop(control::Stop),
    Checkpoint(control::Checkpoint),
    Evaluate(control::Evaluate),
    Sample(control::Sample),
    Edit(control::Edit),
    Undo(control::Undo),
    Diff(diff::Arguments),
}

/// Which run a command is about.
#[derive(Debug, Args)]
pub struct Which {
    /// Id of the run, a part of it that no other run has, or `latest`
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    folder: Folder,
}

impl Which {
    pub fn find(&self) -> Outcome<RunDir> {
        Ok(RunDir::find(&self.folder.find()?, &self.run)?)
    }
}

pub fn run(arguments: &Arguments, host: &Host) -> Outcome {
    match &arguments.command {
        Command::Show(arguments) => show::run(arguments),
        Command::Pause(arguments) => control::pause(arguments),
        Command::Resume(arguments) => control::resume(arguments, host),
        Command::Stop(arguments) => control::stop(arguments),
        Command::Checkpoint(arguments) => control::checkpoint(arguments),
        Command::Evaluate(arguments) => control::evaluate(arguments),
        Command::Sample(arguments) => control::sample(arguments),
        Command::Edit(arguments) => control::edit(arguments),
        Command::Undo(arguments) => control::undo(arguments),
        Command::Diff(arguments) => diff::run(arguments),
    }
}
