//! Performs what the train pane asks for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::config::{Change, Config, Edit};
use luthier_core::data::{DataError, Severity};
use luthier_core::runs::{self, JournalReader, Request, RunDir, Status};
use luthier_core::units::{bytes, count};

use super::{Job, Worker};
use crate::panes::train::{self as pane, PlanSummary, TrainEffect as Effect, TrainEvent as Event};
use crate::project::{self, Difference, Host, Planned, Project, Ready, Refusal, diff};

/// Events read before an answer is posted, and how long that may take: a frame is drawn in between.
const BATCH: usize = 4000;
const BATCH_TIME: Duration = Duration::from_millis(40);

/// Interval between reads of a live run's files.
const LIVE: Duration = Duration::from_millis(250);

/// Interval between reads of files that seldom change.
const IDLE: Duration = Duration::from_secs(1);

/// Lines of the log shown.
const LOG_LINES: usize = 500;

/// What the train pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
    host: Host,
    /// The run that was planned last and may be started.
    ready: Arc<Mutex<Option<Ready>>>,
}

impl Performer {
    /// For the runs of `project`.
    pub fn new(project: PathBuf, host: Host) -> Self {
        Self { project, host, ready: Arc::default() }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let (project, host, ready) = (self.project.clone(), self.host, Arc::clone(&self.ready));
        job.spawn(move |worker| {
            let answer = match effect {
                Effect::Watch => {
                    let runs = || runs::list(&project).map_err(|error| error.to_string());
                    return worker.watch(IDLE, runs, Event::Runs);
                }
                Effect::Follow(run) => return follow(&project, &run, &worker),
                Effect::Log(run) => return log(&project, &run, &worker),
                Effect::Overlay(run) => {
                    let events = open(&project, &run).map(|run| journal(&run)).unwrap_or_default();
                    Event::Overlay(run, events)
                }
                Effect::Plan(settings) => {
                    let planned = plan(&project, &host, &settings, &ready, &worker);
                    Event::Planned(settings, planned)
                }
                Effect::Start(settings) => {
                    let started = start(&project, &host, &settings, &ready, &worker);
                    Event::Started(started.map_err(|refusal| refusal.to_string()))
                }
                Effect::Restart(run) => Event::Asked(done(&project, &run, |run| project::resume(run, &host))),
                Effect::Ask(run, Request::Edit { key, value, who }) => {
                    let who = who.unwrap_or_default();
                    let outcome = done(&project, &run, |run| project::edit(run, &key, &value, &who));
                    Event::Edited { run, key, outcome }
                }
                Effect::Ask(run, request) => {
                    Event::Asked(done(&project, &run, |run| project::ask(run, &request)))
                }
                Effect::Write { run, key, value } => {
                    let outcome = done(&project, &run, |run| project::write_setting(run, &key, &value));
                    Event::Edited { run, key, outcome }
                }
                Effect::Diff(run) => {
                    let compared = open(&project, &run).and_then(|run| difference(&run));
                    let (title, text) = compared.unwrap_or_else(|refusal| (run, refusal.to_string()));
                    Event::Diff(title, text)
                }
                Effect::Rows(run, step) => {
                    let rows = rows(&project, &run, step, &worker);
                    Event::Rows(step, rows.map_err(|refusal| refusal.to_string()))
                }
            };
            worker.send(answer);
        });
    }
}

fn open(project: &Path, run: &str) -> Result<RunDir, Refusal> {
    Ok(RunDir::named(project, run)?)
}

/// The operation's result on a run, for the pane.
fn done(
    project: &Path,
    run: &str,
    operation: impl FnOnce(&RunDir) -> Result<String, Refusal>,
) -> Result<String, String> {
    open(project, run).and_then(|run| operation(&run)).map_err(|refusal| refusal.to_string())
}

fn follow(project: &Path, id: &str, worker: &Worker<Event>) {
    let Ok(run) = open(project, id) else { return };
    let mut reader = JournalReader::new(&run.journal_path());
    let mut posted: Option<(Status, Vec<u64>)> = None;
    let mut config = None;
    loop {
        let status = run.status().unwrap_or_default();
        let live = status.state.is_live();
        let checkpoints: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
        let settings = Config::load_file(&run.config_path(), &[]).ok();
        let changed = settings.is_some() && settings != config;
        let now = (status, checkpoints);
        // A new heartbeat alone changes nothing on screen.
        let same = posted.as_ref().is_some_and(|(before, checkpoints)| {
            let mut before = before.clone();
            before.heartbeat = now.0.heartbeat;
            before == now.0 && *checkpoints == now.1
        });
        if changed || !same {
            config.clone_from(&settings);
            let event = Event::Status {
                run: id.to_owned(),
                status: Box::new(now.0.clone()),
                checkpoints: now.1.clone(),
                config: settings.filter(|_| changed).map(Box::new),
            };
            if !worker.send(event) {
                return;
            }
            posted = Some(now);
        }
        loop {
            let Ok(batch) = reader.read(BATCH, BATCH_TIME) else { break };
            let more = batch.more;
            if batch.restarted || !batch.events.is_empty() || !more {
                let empty = batch.events.is_empty() && !batch.restarted;
                let event = Event::Journal {
                    run: id.to_owned(),
                    events: batch.events,
                    restarted: batch.restarted,
                    caught_up: !more,
                };
                if !empty && !worker.send(event) {
                    return;
                }
            }
            if !more {
                break;
            }
        }
        if !worker.wait(if live { LIVE } else { IDLE }) {
            return;
        }
    }
}

/// All of a run's journal.
fn journal(run: &RunDir) -> Vec<runs::JournalEvent> {
    let mut reader = JournalReader::new(&run.journal_path());
    let mut events = Vec::new();
    while let Ok(batch) = reader.read(BATCH, BATCH_TIME) {
        events.extend(batch.events);
        if !batch.more {
            break;
        }
    }
    events
}

fn log(project: &Path, id: &str, worker: &Worker<Event>) {
    let Ok(run) = open(project, id) else { return };
    worker.watch(IDLE, || run.log_tail(LOG_LINES), |lines| Event::Log(id.to_owned(), lines));
}

/// Checks a run with these settings and describes it. What was checked is kept in `ready`, to be started.
/// Everything is read from disk again.
fn plan(
    project: &Path,
    host: &Host,
    settings: &[String],
    ready: &Mutex<Option<Ready>>,
    worker: &Worker<Event>,
) -> Result<PlanSummary, pane::Refusal> {
    let mut shown = Instant::now();
    let checked = Project::open(project, settings).and_then(|project| {
        project::ready(project, host, &mut |done, total| {
            if shown.elapsed() > LIVE {
                shown = Instant::now();
                worker.send(Event::Planning(done, total));
            }
            worker.wanted()
        })
    });
    match checked {
        Ok(checked) => {
            let summary = describe(&checked, settings);
            *ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked);
            Ok(summary)
        }
        Err(refusal) => Err(pane::Refusal { title: title(&refusal).to_owned(), text: refusal.to_string() }),
    }
}

/// Which part of the project a run is refused for.
fn title(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Model(_) => "The base model cannot be used",
        Refusal::Data(DataError::Settings(_)) | Refusal::Config(_) | Refusal::Init(_) => {
            "The settings have mistakes"
        }
        Refusal::Data(_) => "The data cannot be used",
        Refusal::Blocked(_) => "The data has errors that would break training",
        Refusal::Plan(_) | Refusal::DiskFull { .. } => "The run would not fit",
        Refusal::Eval(_) | Refusal::Suite(_) => "The evaluation cannot be used",
        _ => "The run cannot be started",
    }
}

fn describe(ready: &Ready, settings: &[String]) -> PlanSummary {
    let Ready { project, planned: Planned { plan, report, train_tokens }, .. } = ready;
    let warnings = report.count(Severity::Warning);
    let method = runs::method_label(&project.config.to_toml());
    let mut lines = vec![
        format!(
            "trains     {} of {} parameters",
            count(plan.parameters.trainable),
            count(plan.parameters.total)
        ),
        format!(
            "data       {} rows, {} tokens, {:.0} % of them trained; {} rows held out",
            report.train_rows,
            count(*train_tokens),
            100.0 * report.trained_share(),
            report.eval_rows
        ),
        format!("steps      {} ({} tokens)", plan.steps, count(plan.tokens)),
        format!(
            "memory     {} of {} free, as {}{}",
            bytes(plan.memory.total),
            bytes(plan.available),
            plan.dtype,
            if plan.recompute { ", activations recomputed" } else { "" }
        ),
        format!(
            "checkpoint {} each, {} kept",
            bytes(plan.checkpoint_bytes),
            project.config.train.keep_checkpoints
        ),
    ];
    if warnings > 0 {
        lines.push(format!("! {warnings} warnings about the data; the data pane (1) lists them"));
    }
    lines.extend(settings.iter().map(|setting| format!("with {setting}")));
    lines.extend(runs::log_out_warning().map(|warning| format!("! {warning}")));
    lines.push("It runs on by itself: leaving the workbench does not stop it.".to_owned());
    PlanSummary { method, lines }
}

/// Starts the run that was planned with these settings; checks it where none was, or where the settings changed since.
fn start(
    project: &Path,
    host: &Host,
    settings: &[String],
    ready: &Mutex<Option<Ready>>,
    worker: &Worker<Event>,
) -> Result<String, Refusal> {
    let planned = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
    let project = Project::open(project, settings)?;
    let ready = match planned {
        Some(planned) if planned.project.config == project.config => planned,
        _ => project::ready(project, host, &mut |_, _| worker.wanted())?,
    };
    let (run, _) = ready.start()?;
    Ok(run.id().to_owned())
}

fn difference(run: &RunDir) -> Result<(String, String), Refusal> {
    let Difference { old, new, edits } = diff(run, None)?;
    let width = edits.iter().map(|edit| edit.key.len()).max().unwrap_or(0);
    let line = |edit: &Edit| {
        let when = match edit.when {
            Change::Now | Change::NextEvaluation => "",
            Change::NextResume => "  (from a resume on)",
            Change::NewRun | Change::Refused(_) => "  (fixed for a run)",
        };
        format!("{:width$}  {} → {}{when}", edit.key, edit.old, edit.new)
    };
    let text = if edits.is_empty() {
        "All settings are the same.".to_owned()
    } else {
        edits.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    Ok((format!("{old} → {new}"), text))
}

/// The rows of a step, computed as the engine computes them.
fn rows(project: &Path, run: &str, step: u64, worker: &Worker<Event>) -> Result<Vec<usize>, Refusal> {
    let run = open(project, run)?;
    let config = Config::load_file(&run.config_path(), &[])?;
    let of_run = Project::with(project, config);
    let checked = of_run.check_data(&of_run.model()?, &mut |_, _| worker.wanted())?;
    let journaled = journal(&run).into_iter().rev().find_map(|event| match event.body {
        runs::EventBody::Run(run) => Some(run.data_hash),
        _ => None,
    });
    if journaled.is_some_and(|hash| hash != checked.data_hash) {
        return Err(Refusal::DataChanged);
    }
    let mut found: VecDeque<usize> = checked
        .order(&of_run.config)
        .step(step.saturating_sub(1))
        .into_iter()
        .flat_map(|batch| batch.sequences)
        .flatten()
        .filter_map(|index| checked.train.get(index).map(|row| row.row))
        .collect();
    found.make_contiguous().sort_unstable();
    Ok(found.into())
}
