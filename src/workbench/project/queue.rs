//! The queue: sweeps and single runs go in checked, and change afterwards.

use std::path::Path;

use luthier_core::config::{Config, ConfigError, EvalSource};
use luthier_core::plan::Place;
use luthier_core::sweep::{
    self, Place as QueuePlace, Queue, Settings, SweepFile, TrialState, label, overrides,
};

use super::{Host, Progress, Project, Refusal};

/// A sweep file that works in any project: what `luthier sweep start --help` shows and a new sweep file holds.
pub const SWEEP_EXAMPLE: &str = "\
# A search over settings. Each trial is one run with luthier.toml's settings and those below over them.
name = \"learning rate and rank\"
sampler = \"random\"                    # or \"grid\": every combination
trials = 6
seed = 1

[goal]
metric = \"eval.loss\"                  # or eval.perplexity, eval.token_accuracy, or a score of the objective
direction = \"min\"

[space]
train.learning_rate = { log_uniform = [1e-4, 2e-3] }
method.rank = { choice = [8, 16, 32] }
train.max_steps = 20                  # the same for every trial
";

/// A sweep that was queued.
#[derive(Debug)]
pub struct Queued {
    /// The sweep's id.
    pub sweep: i64,
    /// Its name.
    pub name: String,
    /// The ids of its trials.
    pub trials: Vec<i64>,
}

/// A change of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Move a waiting trial.
    Move(QueuePlace),
    /// Keep a waiting trial from starting.
    Hold,
    /// Let a held trial start.
    Release,
    /// Take a trial out; a run that works on it saves and stops.
    Cancel,
    /// Queue a trial that is over once more, or go on with one that is lost.
    Retry,
}

/// Queues the trials of a sweep file, all or none, and makes sure that they are worked off.
pub fn sweep(
    project: &Project,
    host: &Host,
    file: &Path,
    progress: &mut Progress,
) -> Result<Queued, Refusal> {
    let sweep = SweepFile::load(file, &project.config)?;
    (host.engine)()?;
    let trials = sweep.expand();
    check_trials(project, host, &trials, progress).map_err(|(number, refusal)| Refusal::Trial {
        number,
        settings: label(&trials[number]),
        refusal: Box::new(refusal),
    })?;
    let (id, trials) = Queue::open(&project.folder)?.add_sweep(&sweep, &project.config)?;
    work_off(&project.folder, host)?;
    Ok(Queued { sweep: id, name: sweep.name, trials })
}

/// Queues one run with `settings`, each `KEY=VALUE`, over those of the project in `folder`. Returns the trial's id.
pub fn add(
    folder: &Path,
    host: &Host,
    name: &str,
    settings: &[String],
    progress: &mut Progress,
) -> Result<i64, Refusal> {
    let base = Project::open(folder, &[])?;
    // Problems are drawn with the text as it was typed.
    Project::open(folder, settings)?;
    (host.engine)()?;
    let pairs = settings.iter().filter_map(|setting| setting.split_once('='));
    let trial: Settings =
        pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
    check_trials(&base, host, std::slice::from_ref(&trial), progress).map_err(|(_, refusal)| refusal)?;
    let id = Queue::open(folder)?.add_single(name, &trial, &base.config)?;
    work_off(folder, host)?;
    Ok(id)
}

/// Changes a trial of the project in `folder`. Returns what happened, for the user.
pub fn change(folder: &Path, host: &Host, trial: i64, change: Change) -> Result<String, Refusal> {
    let mut queue = Queue::open_existing(folder)?.ok_or(Refusal::NoQueue)?;
    match change {
        Change::Move(place) => {
            queue.move_to(trial, place)?;
            Ok(format!("trial {trial} is moved"))
        }
        Change::Hold => {
            queue.hold(trial)?;
            Ok(format!("trial {trial} is held"))
        }
        Change::Release => {
            queue.release(trial)?;
            work_off(folder, host)?;
            Ok(format!("trial {trial} waits for its turn"))
        }
        Change::Cancel => Ok(sweep::cancel(folder, &mut queue, trial)?),
        Change::Retry if is_lost(folder, &queue, trial)? => {
            work_off(folder, host)?;
            Ok(format!("trial {trial} goes on from its newest checkpoint"))
        }
        Change::Retry => {
            queue.retry(trial)?;
            work_off(folder, host)?;
            Ok(format!("trial {trial} is queued again"))
        }
    }
}

/// Whether nothing works on the trial although the queue says so.
fn is_lost(folder: &Path, queue: &Queue, trial: i64) -> Result<bool, Refusal> {
    let trials = sweep::trials_seen(folder, queue)?;
    Ok(trials.iter().any(|seen| seen.id == trial && seen.state == TrialState::Lost))
}

/// Makes sure that a scheduler works off the queue.
fn work_off(folder: &Path, host: &Host) -> Result<(), Refusal> {
    (host.engine)()?;
    let program = std::env::current_exe().map_err(|source| Refusal::System {
        doing: "this program cannot be found to start the scheduler",
        source,
    })?;
    sweep::start_scheduler(folder, &program)?;
    Ok(())
}

/// Checks each trial with the settings it will run with; the number of the first that cannot run, and why.
/// Free memory and disk are not looked at: they will be others when the trial's turn comes.
fn check_trials(
    project: &Project,
    host: &Host,
    trials: &[Settings],
    progress: &mut Progress,
) -> Result<(), (usize, Refusal)> {
    // Trials that differ in nothing that the data check reads share one.
    let mut groups: Vec<Vec<(usize, Project)>> = Vec::new();
    for (number, settings) in trials.iter().enumerate() {
        let config = project.config.with(&overrides(settings));
        let config = config.map_err(|problems| (number, ConfigError::from(problems).into()))?;
        let trial = Project { config, ..project.clone() };
        match groups.iter_mut().find(|group| share_data(&group[0].1.config, &trial.config)) {
            Some(group) => group.push((number, trial)),
            None => groups.push(vec![(number, trial)]),
        }
    }
    for group in groups {
        let (number, first) = &group[0];
        let refused = |refusal| (*number, refusal);
        let files = first.model().map_err(refused)?;
        let checked = first.check_data(&files, progress).map_err(refused)?;
        first.check_blocks(&checked).map_err(refused)?;
        for (number, trial) in &group {
            let place = (host.place)(&trial.config).map_err(Refusal::from);
            place
                .and_then(|place| {
                    trial.check_settings(&files, &checked, Place { available: u64::MAX, ..place })
                })
                .map_err(|refusal| (*number, refusal))?;
        }
    }
    Ok(())
}

/// Whether the data check gives the same for both.
fn share_data(one: &Config, other: &Config) -> bool {
    let chooses = one.data.train.iter().any(|source| source.rows.is_some() || source.share.is_some());
    let by_seed = chooses || matches!(one.data.eval, EvalSource::Fraction(_));
    one.data == other.data
        && one.model.path == other.model.path
        && one.train.algorithm == other.train.algorithm
        && (!by_seed || one.train.seed == other.train.seed)
}
