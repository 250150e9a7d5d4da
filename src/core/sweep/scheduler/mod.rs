//! The scheduler: one process per project that starts a run for each queued trial, one after another.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::SweepError;
use super::queue::{Cancelled, Queue};
use super::sampler::overrides;
use super::trial::{Trial, TrialState};
use crate::config::Config;
use crate::runs::{
    Client, Failure, FailureClass, FolderLock, RUNS_FOLDER, Request, RunDir, RunError, RunState, Status,
    StopWhen, engine_executable, reap, spawn, start_detached_with,
};

/// Locked by the project's scheduler.
const LOCK_FILE: &str = "scheduler.lock";

/// Who only looks whether the lock is held has it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// Interval between checks of running trials.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait for a run's reply to a stop request. The run stops even if it replies later.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a process is started for one trial if it keeps dying without reporting an error.
const ATTEMPTS: u64 = 3;

/// Lines of the engine's log in a failure.
const LOG_LINES: usize = 3;

/// Starts runs for queued trials until none is left. All of its state is in the queue and in run directories,
/// so it can be killed at any moment and started again.
pub struct Scheduler {
    project: PathBuf,
    queue: Queue,
    engine: Option<PathBuf>,
    poll: Duration,
    lock: Option<FolderLock>,
    /// Trials whose runs were asked to stop.
    asked: HashSet<i64>,
}

impl Scheduler {
    /// Locks the project's queue for this process; an error if another process has it.
    pub fn new(project: &Path) -> Result<Self, SweepError> {
        let project =
            project.canonicalize().map_err(|source| SweepError::Read { file: project.to_owned(), source })?;
        let lock = take_lock(&project)?;
        let queue = Queue::open(&project)?;
        Ok(Self { project, queue, engine: None, poll: POLL, lock: Some(lock), asked: HashSet::new() })
    }

    /// Works until no trial is running or queued (held ones stay). `watch` is called for every trial that
    /// starts or ends.
    pub fn run(&mut self, watch: &mut dyn FnMut(&Trial)) -> Result<(), SweepError> {
        loop {
            while self.tick(watch)? {
                std::thread::sleep(self.poll);
            }
            // A process that queues a trial now sees the lock and starts no scheduler, so look again after
            // releasing it.
            self.lock = None;
            if !self.queue.has_queued()? {
                return Ok(());
            }
            match take_lock(&self.project) {
                Ok(lock) => self.lock = Some(lock),
                Err(SweepError::Busy { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Checks every trial once; `false` if nothing is left to do.
    fn tick(&mut self, watch: &mut dyn FnMut(&Trial)) -> Result<bool, SweepError> {
        for trial in self.queue.running()? {
            self.follow(&trial)?;
            let now = self.queue.trial(trial.id)?;
            if now.state != trial.state {
                watch(&now);
            }
        }
        if !self.queue.running()?.is_empty() {
            return Ok(true);
        }
        let Some(trial) = self.queue.claim()? else { return Ok(false) };
        self.launch(&trial)?;
        watch(&self.queue.trial(trial.id)?);
        Ok(true)
    }

    fn launch(&mut self, trial: &Trial) -> Result<(), SweepError> {
        let sweep = self.queue.sweep(trial.sweep)?;
        let file = Path::new("configuration of the sweep");
        let config = match Config::parse(&sweep.config, file, &overrides(&trial.settings)) {
            Ok(config) => config,
            Err(problems) => {
                let failure = Failure {
                    class: FailureClass::Config,
                    message: problems.to_string(),
                    remedy: "queue the sweep again with settings that are valid together".to_owned(),
                };
                return self.queue.end(trial.id, TrialState::Failed, None, Some(&failure));
            }
        };
        let slug = format!("{}-{}", sweep.name, trial.number);
        let run = match RunDir::create(&self.project, &config, Some(&slug)) {
            Ok(run) => run,
            Err(error) => {
                self.queue.unclaim(trial.id)?;
                return Err(error.into());
            }
        };
        self.queue.set_run(trial.id, run.id())?;
        self.start(trial, &run)
    }

    fn start(&mut self, trial: &Trial, run: &RunDir) -> Result<(), SweepError> {
        self.queue.count_attempt(trial.id)?;
        let engine = match &self.engine {
            Some(engine) => Ok(engine.clone()),
            None => engine_executable(),
        };
        match engine.and_then(|engine| start_detached_with(&engine, run, &[])) {
            // Another process works on the run already; follow it like any other.
            Ok(_) | Err(RunError::Locked { .. } | RunError::StartedAlready { .. }) => Ok(()),
            Err(error) => {
                let failure = Failure {
                    class: FailureClass::Config,
                    message: error.to_string(),
                    remedy: "then retry the trial".to_owned(),
                };
                self.queue.end(trial.id, TrialState::Failed, None, Some(&failure))
            }
        }
    }

    fn follow(&mut self, trial: &Trial) -> Result<(), SweepError> {
        let Some(id) = &trial.run else {
            // A scheduler was killed after claiming the trial and before creating its run.
            return self.queue.unclaim(trial.id);
        };
        let found =
            RunDir::open(&self.project.join(RUNS_FOLDER).join(id)).and_then(|run| Ok((run.status()?, run)));
        let (status, run) = match found {
            Ok(found) => found,
            Err(error) => {
                let failure = Failure { message: error.to_string(), ..Failure::default() };
                return self.queue.end(trial.id, TrialState::Failed, None, Some(&failure));
            }
        };
        match status.state {
            RunState::Queued if trial.cancelling => self.end(trial, &run, TrialState::Cancelled, None),
            RunState::Queued => self.start(trial, &run),
            RunState::Starting | RunState::Running | RunState::Paused | RunState::Stopping => {
                if trial.cancelling {
                    self.ask_to_stop(trial, &status);
                }
                Ok(())
            }
            RunState::Finished => self.end(trial, &run, TrialState::Finished, None),
            RunState::Stopped | RunState::Lost if trial.cancelling => {
                self.end(trial, &run, TrialState::Cancelled, None)
            }
            RunState::Stopped => self.end(trial, &run, TrialState::Stopped, None),
            RunState::Failed => self.end(trial, &run, TrialState::Failed, status.failure.as_ref()),
            RunState::Lost if trial.attempts < ATTEMPTS => self.start(trial, &run),
            RunState::Lost => {
                let log = run.log_tail(LOG_LINES).join("\n");
                let failure = Failure {
                    class: FailureClass::Killed,
                    message: format!(
                        "its process exited {ATTEMPTS} times without reporting an error; end of its log:\n{log}"
                    ),
                    remedy: "look at the run's engine.log, then retry the trial".to_owned(),
                };
                self.end(trial, &run, TrialState::Failed, Some(&failure))
            }
        }
    }

    fn end(
        &mut self,
        trial: &Trial,
        run: &RunDir,
        state: TrialState,
        failure: Option<&Failure>,
    ) -> Result<(), SweepError> {
        let goal = self.queue.sweep(trial.sweep)?.goal;
        let result = goal.result_of(run).unwrap_or_else(|error| {
            tracing::warn!(%error, run = run.id(), "the result of a run cannot be read");
            None
        });
        self.queue.end(trial.id, state, result, failure)
    }

    fn ask_to_stop(&mut self, trial: &Trial, status: &Status) {
        if self.asked.contains(&trial.id) || status.state == RunState::Stopping {
            return;
        }
        match stop(status) {
            // No reply yet: the request waits for the end of a step.
            Ok(_) | Err(RunError::NoAnswer { .. } | RunError::Answer(_)) => {
                self.asked.insert(trial.id);
            }
            Err(error) => tracing::info!(%error, trial = trial.id, "the run cannot be asked to stop yet"),
        }
    }
}

fn stop(status: &Status) -> Result<String, RunError> {
    Client::connect(status)?.request(&Request::Stop { when: StopWhen::Save }, STOP_TIMEOUT)
}

fn take_lock(project: &Path) -> Result<FolderLock, SweepError> {
    let runs = project.join(RUNS_FOLDER);
    fs::create_dir_all(&runs).map_err(|source| SweepError::Read { file: runs.clone(), source })?;
    FolderLock::take(&runs.join(LOCK_FILE), LOCK_PATIENCE)?.map_err(|holder| SweepError::Busy { holder })
}

/// Cancels a trial. If a run works on it, the run is asked to save and stop. Needs no scheduler. Returns what
/// happened, for the user.
pub fn cancel(project: &Path, queue: &mut Queue, trial: i64) -> Result<String, SweepError> {
    match queue.cancel(trial)? {
        Cancelled::Done => Ok(format!("trial {trial} is cancelled")),
        Cancelled::Running { run } => {
            let status = RunDir::open(&project.join(RUNS_FOLDER).join(&run)).and_then(|run| run.status());
            match status.and_then(|status| stop(&status)) {
                Ok(_) => Ok(format!("trial {trial} is cancelled; its run {run} saves and stops")),
                Err(error) => Ok(format!(
                    "trial {trial} will be cancelled as soon as its run {run} can be stopped ({error})"
                )),
            }
        }
    }
}

/// All trials by their place in the queue, as they are now. While a scheduler works, that is what the queue says. Without
/// one, a trial that ran there is what its run is.
pub fn trials_seen(project: &Path, queue: &Queue) -> Result<Vec<Trial>, SweepError> {
    let mut trials = queue.trials()?;
    let runs = project.join(RUNS_FOLDER);
    if !FolderLock::is_held(&runs.join(LOCK_FILE)) {
        for trial in trials.iter_mut().filter(|trial| trial.state == TrialState::Running) {
            let run = trial.run.as_ref().map(|run| RunDir::open(&runs.join(run)));
            trial.state = match run.map(|run| run.and_then(|run| run.status())) {
                Some(Ok(status)) => match status.state {
                    RunState::Starting | RunState::Running | RunState::Paused | RunState::Stopping => {
                        TrialState::Running
                    }
                    RunState::Finished => TrialState::Finished,
                    RunState::Stopped => TrialState::Stopped,
                    RunState::Failed => TrialState::Failed,
                    RunState::Queued | RunState::Lost => TrialState::Lost,
                },
                _ => TrialState::Lost,
            };
        }
    }
    Ok(trials)
}

/// Starts the project's scheduler, detached, as `PROGRAM scheduler -C PROJECT`, unless one is running.
/// Returns its pid. Its output goes to `runs/scheduler.log`.
pub fn start_scheduler(project: &Path, program: &Path) -> Result<Option<u32>, SweepError> {
    let project =
        project.canonicalize().map_err(|source| SweepError::Read { file: project.to_owned(), source })?;
    match take_lock(&project) {
        Ok(lock) => drop(lock),
        Err(SweepError::Busy { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut command = Command::new(program);
    command.arg("scheduler").arg("-C").arg(&project);
    let child = spawn(command, program, &project, &project.join(RUNS_FOLDER).join("scheduler.log"))?;
    let pid = child.id();
    reap(child);
    Ok(Some(pid))
}

#[cfg(test)]
mod tests;
