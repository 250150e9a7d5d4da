//! `luthier sweep start`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use luthier_core::runs::engine_executable;
use luthier_core::sweep::{Queue, SweepFile};
use serde_json::json;

use super::failure::Outcome;
use super::project::Settings;
use super::{output, preflight, scheduler, units};

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

/// A sweep file, as the help shows it.
const EXAMPLE: &str = "\
name = \"learning rate and rank\"
sampler = \"random\"                 # or \"grid\"
trials = 6
[goal]
metric = \"eval.loss\"
direction = \"min\"
[space]
train.learning_rate = { log_uniform = [1e-5, 1e-3] }
method.rank = { choice = [8, 16] }
train.epochs = 1";

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

/// Queues a sweep.
pub fn run(arguments: &Arguments) -> Outcome {
    let Command::Start(arguments) = &arguments.command;
    let project = arguments.settings.load()?;
    let sweep = SweepFile::load(&arguments.file, &project.config)?;
    engine_executable()?;
    let files = preflight::model(&project)?;
    preflight::passes(&preflight::data(&project, &files)?.report)?;
    preflight::judgement(&project)?;
    let (id, trials) = Queue::open(&project.folder)?.add_sweep(&sweep, &project.config)?;
    scheduler::ensure(&project.folder)?;
    if arguments.json {
        return output::document(&json!({ "sweep": id, "name": sweep.name, "trials": trials }));
    }
    output::line(&format!(
        "sweep {id}, {}: {} queued\n  luthier queue list -C {}",
        sweep.name,
        units::counted(trials.len(), "trial", "trials"),
        project.folder.display()
    ))
}

fn help() -> String {
    format!(
        "Example:\n  luthier sweep start rate.toml -C tickets\n\nrate.toml:\n  {}\n\n\
         `luthier queue` lists and changes what is queued; the workbench's sweep pane (3) shows it live.",
        EXAMPLE.replace('\n', "\n  ")
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use luthier_core::config::Config;

    use super::*;

    #[test]
    fn the_example_in_the_help_is_a_sweep() {
        let text = "[model]\npath = \"model\"\n[data]\ntrain = \"train.jsonl\"\n";
        let base = Config::parse(text, Path::new("luthier.toml"), &[]).unwrap();
        let sweep = SweepFile::parse(EXAMPLE, Path::new("rate.toml"), &base).unwrap();
        assert_eq!((sweep.space.len(), sweep.trials), (3, Some(6)));
    }
}
