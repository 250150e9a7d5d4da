//! `luthier sweep start`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use luthier_core::units;
use serde_json::json;

use super::failure::Outcome;
use super::project::Settings;
use super::{output, preflight};
use crate::project::{Host, Queued, SWEEP_EXAMPLE, sweep};

/// Search for the best settings
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Start(Start),
}

/// Queue the trials of a sweep file, and work them off one after another
#[derive(Debug, Args)]
#[command(after_help = help())]
struct Start {
    /// The sweep file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, host: &Host) -> Outcome {
    let Command::Start(arguments) = &arguments.command;
    let project = arguments.settings.load()?;
    preflight::log_out();
    let queued = preflight::with_bar(|progress| sweep(&project, host, &arguments.file, progress))?;
    let Queued { sweep, name, trials } = queued;
    if arguments.json {
        return output::document(&json!({ "sweep": sweep, "name": name, "trials": trials }));
    }
    output::line(&format!(
        "sweep {sweep}, {name}: {} queued\n  luthier queue list -C {}",
        units::counted(trials.len(), "trial", "trials"),
        project.folder.display()
    ))
}

fn help() -> String {
    format!(
        "Example:\n  luthier sweep start rate.toml -C tickets\n\nrate.toml:\n  {}\n\n\
         `luthier queue` lists and changes what is queued; the workbench's sweep pane (3) shows it live.",
        SWEEP_EXAMPLE.trim_end().replace('\n', "\n  ")
    )
}
