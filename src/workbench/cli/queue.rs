//! `luthier queue …`: what is queued, and changes to it.

use clap::{Args, Subcommand, ValueEnum};
use luthier_core::sweep::{Place, Queue, Trial, TrialState, trials_seen};
use luthier_core::units;
use serde_json::json;

use super::failure::Outcome;
use super::output::{self, Align};
use super::preflight;
use super::project::{Folder, Settings};
use crate::project::{self, Change, Host};

/// See and change the queue of a project's trials
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Add(Add),
    Move(Move),
    Pause(Pause),
    Resume(Resume),
    Cancel(Cancel),
    Retry(Retry),
}

/// List the trials: first what runs and waits, then what is over
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier queue list -C tickets\n  luthier queue list --json | jq '.trials[] | select(.state == \"failed\")'"
)]
struct List {
    #[command(flatten)]
    folder: Folder,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// Queue one run with the project's settings and what is set over them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue add -C tickets --set train.epochs=2 --set method.rank=32")]
struct Add {
    #[command(flatten)]
    settings: Settings,
    /// Name in the list
    #[arg(long, value_name = "NAME", default_value = "single")]
    name: String,
}

/// Which trial a command is about.
#[derive(Debug, Args)]
struct Which {
    /// Number of the trial, as `luthier queue list` shows it
    #[arg(value_name = "TRIAL")]
    trial: i64,
    #[command(flatten)]
    folder: Folder,
}

/// Move a waiting trial
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue move 7 top -C tickets")]
struct Move {
    #[command(flatten)]
    which: Which,
    /// Where to
    #[arg(value_name = "PLACE", value_enum)]
    place: Where,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Where {
    /// Before all others
    Top,
    /// Before the one before it
    Up,
    /// After the one after it
    Down,
    /// After all others
    Bottom,
}

/// Keep a queued trial from being started
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue pause 7 -C tickets")]
struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Let a paused trial be started again
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue resume 7 -C tickets")]
struct Resume {
    #[command(flatten)]
    which: Which,
}

/// Cancel a trial; one that runs saves and stops
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue cancel 7 -C tickets")]
struct Cancel {
    #[command(flatten)]
    which: Which,
}

/// Queue a stopped, failed or cancelled trial once more, or go on with a lost one
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier queue retry 7 -C tickets")]
struct Retry {
    #[command(flatten)]
    which: Which,
}

pub fn run(arguments: &Arguments, host: &Host) -> Outcome {
    let (which, change) = match &arguments.command {
        Command::List(arguments) => return list(arguments),
        Command::Add(arguments) => return add(arguments, host),
        Command::Move(Move { which, place }) => {
            let place = match place {
                Where::Top => Place::Top,
                Where::Up => Place::Up,
                Where::Down => Place::Down,
                Where::Bottom => Place::Bottom,
            };
            (which, Change::Move(place))
        }
        Command::Pause(Pause { which }) => (which, Change::Hold),
        Command::Resume(Resume { which }) => (which, Change::Release),
        Command::Cancel(Cancel { which }) => (which, Change::Cancel),
        Command::Retry(Retry { which }) => (which, Change::Retry),
    };
    output::line(&project::change(&which.folder.find()?, host, which.trial, change)?)
}

fn add(arguments: &Add, host: &Host) -> Outcome {
    let Add { settings, name } = arguments;
    let folder = settings.folder()?;
    preflight::log_out();
    let trial = preflight::with_bar(|progress| project::add(&folder, host, name, settings.set(), progress))?;
    output::line(&format!("trial {trial} is queued"))
}

fn list(arguments: &List) -> Outcome {
    let project = arguments.folder.find()?;
    let (sweeps, mut trials) = match Queue::open_existing(&project)? {
        Some(queue) => (queue.sweeps()?, trials_seen(&project, &queue)?),
        None => (Vec::new(), Vec::new()),
    };
    // The sort is stable: each part keeps the queue's order.
    trials.sort_by_key(|trial| trial.state.is_over());
    if arguments.json {
        let sweeps: Vec<_> = sweeps
            .iter()
            .map(|sweep| {
                let goal =
                    json!({ "metric": sweep.goal.metric.to_string(), "direction": sweep.goal.direction });
                json!({ "id": sweep.id, "name": sweep.name, "sampler": sweep.sampler, "goal": goal })
            })
            .collect();
        return output::document(&json!({ "sweeps": sweeps, "trials": trials }));
    }
    if trials.is_empty() {
        return output::line("nothing is queued; `luthier sweep start` queues trials");
    }
    let columns = [
        ("trial", Align::Right),
        ("sweep", Align::Left),
        ("state", Align::Left),
        ("result", Align::Right),
        ("settings", Align::Left),
        ("run", Align::Left),
    ];
    output::line(&output::table(&columns, &trials.iter().map(row).collect::<Vec<_>>()))?;
    if let Some(lost) = trials.iter().find(|trial| trial.state == TrialState::Lost) {
        output::note(&format!(
            "its process is gone and no scheduler works: `luthier queue retry {} -C {}` goes on with the queue",
            lost.id,
            project.display()
        ));
    }
    Ok(())
}

fn row(trial: &Trial) -> Vec<String> {
    let state = match &trial.failure {
        Some(failure) => format!("{}: {}", trial.state, failure.class),
        None if trial.cancelling && !trial.state.is_over() => "cancelling".to_owned(),
        None => trial.state.to_string(),
    };
    let result = trial.result.map_or_else(|| "–".to_owned(), |result| units::number(result.get()));
    let run = trial.run.clone().unwrap_or_else(|| "–".to_owned());
    vec![trial.id.to_string(), trial.sweep_name.clone(), state, result, trial.label(), run]
}
