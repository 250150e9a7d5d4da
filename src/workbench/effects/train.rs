//! Performs what the train pane asks for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use luthier_core::config::{Change, Config, edit_plan, write_key};
use luthier_core::data::{self, EncodedRow, Severity, StepOrder};
use luthier_core::model::{ModelFiles, forecast};
use luthier_core::runs::{self, JournalReader, Request, RunDir, Status};

use super::{Job, Worker};
use crate::panes::train::{Effect, Event, PlanSummary, Refusal};
use crate::told;

/// Events read before an answer is posted, and how long that may take: a frame is drawn in between.
const BATCH: usize = 4000;
const BATCH_TIME: Duration = Duration::from_millis(40);

/// How often a live run's files are looked at.
const LIVE: Duration = Duration::from_millis(250);

/// How often files are looked at that seldom change.
const IDLE: Duration = Duration::from_secs(1);

/// Between two looks at whether an answer is still wanted.
const NAP: Duration = Duration::from_millis(50);

/// Lines of the log shown.
const LOG_LINES: usize = 500;

/// Problems listed when data block a run.
const PROBLEMS: usize = 20;

/// What the train pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
}

impl Performer {
    /// For the runs of `project`.
    pub fn new(project: PathBuf) -> Self {
        Self { project }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let project = self.project.clone();
        job.spawn(move |worker| match effect {
            Effect::Watch => watch(&project, &worker),
            Effect::Follow(run) => follow(&project, &run, &worker),
            Effect::Overlay(run) => {
                let events = open(&project, &run).map(|run| journal(&run)).unwrap_or_default();
                worker.send(Event::Overlay(run, events));
            }
            Effect::Log(run) => log(&project, &run, &worker),
            Effect::Plan(settings) => {
                let planned = plan(&project, &settings, &worker);
                worker.send(Event::Planned(settings, planned));
            }
            Effect::Start(settings) => {
                worker.send(Event::Started(start(&project, &settings)));
            }
            Effect::Restart(run) => {
                let started = open(&project, &run)
                    .and_then(|run| runs::start_detached(&run).map_err(|error| error.to_string()))
                    .map(|pid| format!("the engine is started again, process {pid}"));
                worker.send(Event::Asked(started));
            }
            Effect::Ask(run, request) => {
                let said = open(&project, &run)
                    .and_then(|run| runs::ask(&run, &request).map_err(|error| told::in_full(&error)));
                worker.send(match request {
                    Request::Edit { key, .. } => Event::Edited { run, key, outcome: said },
                    _ => Event::Asked(said),
                });
            }
            Effect::Write { run, key, value } => {
                let outcome = open(&project, &run).and_then(|run| {
                    write_key(&run.config_path(), &key, &value).map_err(|error| error.to_string())?;
                    Ok(format!("{key} = {value} from when the run goes on"))
                });
                worker.send(Event::Edited { run, key, outcome });
            }
            Effect::Diff(run) => {
                let (title, text) = difference(&project, &run);
                worker.send(Event::Diff(title, text));
            }
            Effect::Rows(run, step) => {
                worker.send(Event::Rows(step, rows(&project, &run, step, &worker)));
            }
        });
    }
}

fn open(project: &Path, run: &str) -> Result<RunDir, String> {
    RunDir::find(project, run).map_err(|error| error.to_string())
}

/// Waits for `time`; false as soon as no one wants answers any more.
fn wait(worker: &Worker<Event>, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if worker.is_stale() {
            return false;
        }
        std::thread::sleep(NAP);
    }
    !worker.is_stale()
}

fn watch(project: &Path, worker: &Worker<Event>) {
    let mut told = None;
    loop {
        let found = runs::list(project).map_err(|error| error.to_string());
        if told.as_ref() != Some(&found) {
            told = Some(found.clone());
            if !worker.send(Event::Runs(found)) {
                return;
            }
        }
        if !wait(worker, IDLE) {
            return;
        }
    }
}

fn follow(project: &Path, id: &str, worker: &Worker<Event>) {
    let Ok(run) = open(project, id) else { return };
    let mut reader = JournalReader::new(&run.journal_path());
    let mut told: Option<(Status, Vec<u64>)> = None;
    let mut config = None;
    loop {
        let status = run.status().unwrap_or_default();
        let live = status.state.is_live();
        let checkpoints: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
        let settings = Config::load_file(&run.config_path(), &[]).ok();
        let changed = settings.is_some() && settings != config;
        let now = (status, checkpoints);
        // The heartbeat alone changes nothing on screen.
        let same = told.as_ref().is_some_and(|(before, checkpoints)| {
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
            told = Some(now);
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
        if !wait(worker, if live { LIVE } else { IDLE }) {
            return;
        }
    }
}

/// All of a run's journal.
fn journal(run: &RunDir) -> Vec<runs::Event> {
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
    let mut told = None;
    loop {
        let lines = run.log_tail(LOG_LINES);
        if told.as_ref() != Some(&lines) {
            told = Some(lines.clone());
            if !worker.send(Event::Log(id.to_owned(), lines)) {
                return;
            }
        }
        if !wait(worker, IDLE) {
            return;
        }
    }
}

fn refusal(title: &str, text: &impl ToString) -> Refusal {
    Refusal { title: title.to_owned(), text: text.to_string() }
}

/// What a run with these settings would be. Everything is read anew from disk: that is what would be started.
fn plan(project: &Path, settings: &[String], worker: &Worker<Event>) -> Result<PlanSummary, Refusal> {
    let config =
        Config::load(project, settings).map_err(|error| refusal("The settings have mistakes", &error))?;
    let files = ModelFiles::find(&config.model.path, project)
        .map_err(|error| refusal("The base model cannot be used", &error))?;
    let mut shown = Instant::now();
    let prepared = data::prepare(&config, project, &files, &mut |done, total| {
        if shown.elapsed() > LIVE {
            shown = Instant::now();
            worker.send(Event::Planning(done, total));
        }
    })
    .map_err(|error| refusal("The data cannot be used", &error))?;
    prepared.check_warmup(&config).map_err(|error| refusal("The settings have mistakes", &error))?;
    let report = &prepared.report;
    if report.blocks() {
        let blocking: Vec<String> = report
            .problems
            .iter()
            .filter(|problem| problem.severity == Severity::Blocks)
            .take(PROBLEMS)
            .map(|problem| format!("✗ {}", problem.message))
            .collect();
        let text = format!("{}\n\nThe data pane (1) shows the rows.", blocking.join("\n"));
        return Err(refusal("The data would spoil a run", &text));
    }
    let plan = forecast::plan(&files, &config, &prepared.summary())
        .map_err(|error| refusal("The run would not fit", &error))?;
    let method = runs::method_label(&config.to_toml());
    let warnings = report.count(Severity::Warning);
    let mut lines = vec![
        format!(
            "trains     {} of {} parameters",
            count(plan.parameters.trainable),
            count(plan.parameters.total)
        ),
        format!(
            "data       {} rows, {} tokens, {:.0} % of them trained; {} rows held out",
            report.train_rows,
            count(prepared.summary().train_tokens),
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
        format!("checkpoint {} each, {} kept", bytes(plan.checkpoint_bytes), config.train.keep_checkpoints),
    ];
    if warnings > 0 {
        lines.push(format!("! {warnings} warnings about the data; the data pane (1) lists them"));
    }
    lines.extend(settings.iter().map(|setting| format!("with {setting}")));
    lines.push("It runs on by itself: leaving the workbench does not stop it.".to_owned());
    Ok(PlanSummary { method, lines })
}

fn start(project: &Path, settings: &[String]) -> Result<String, String> {
    let config = Config::load(project, settings).map_err(|error| error.to_string())?;
    // Looked for before a run directory is made, so that a missing engine leaves nothing behind.
    runs::engine_executable().map_err(|error| error.to_string())?;
    let run = RunDir::create(project, &config, None).map_err(|error| error.to_string())?;
    runs::start_detached(&run).map_err(|error| error.to_string())?;
    Ok(run.id().to_owned())
}

fn difference(project: &Path, run: &str) -> (String, String) {
    let title = format!("{run} against luthier.toml");
    let compared = open(project, run).and_then(|run| {
        let own = Config::load_file(&run.config_path(), &[]).map_err(|error| error.to_string())?;
        let file = Config::load(project, &[]).map_err(|error| error.to_string())?;
        Ok(edit_plan(&file, &own))
    });
    let text = match compared {
        Err(problem) => problem,
        Ok(plan) if plan.is_empty() => "All settings are the same.".to_owned(),
        Ok(plan) => {
            let width = plan.edits.iter().map(|edit| edit.key.len()).max().unwrap_or(0);
            let line = |edit: &luthier_core::config::Edit| {
                let when = match edit.when {
                    Change::Now | Change::NextEvaluation => "",
                    Change::NewRun | Change::Refused(_) => "  (fixed for a run)",
                };
                format!("{:width$}  {} here, {} in the file{when}", edit.key, edit.new, edit.old)
            };
            plan.edits.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    };
    (title, text)
}

/// The rows of a step, computed as the engine computes them.
fn rows(project: &Path, run: &str, step: u64, worker: &Worker<Event>) -> Result<Vec<usize>, String> {
    let run = open(project, run)?;
    let config = Config::load_file(&run.config_path(), &[]).map_err(|error| error.to_string())?;
    let files = ModelFiles::find(&config.model.path, project).map_err(|error| error.to_string())?;
    let prepared =
        data::prepare(&config, project, &files, &mut |_, _| {}).map_err(|error| error.to_string())?;
    if worker.is_stale() {
        return Err("another step was asked for".to_owned());
    }
    let journaled = journal(&run).into_iter().rev().find_map(|event| match event.body {
        runs::EventBody::Run(run) => Some(run.data_hash),
        _ => None,
    });
    if journaled.is_some_and(|hash| hash != prepared.data_hash) {
        return Err("the data changed since the run was started: its rows cannot be told any more".to_owned());
    }
    let lengths: Vec<usize> = prepared.train.iter().map(EncodedRow::tokens).collect();
    let order = StepOrder::new(&lengths, &config);
    let mut found: VecDeque<usize> = order
        .step(step.saturating_sub(1))
        .into_iter()
        .flat_map(|batch| batch.sequences)
        .flatten()
        .filter_map(|index| prepared.train.get(index).map(|row| row.row))
        .collect();
    found.make_contiguous().sort_unstable();
    Ok(found.into())
}

/// `135 M`, `61.2 k`, `396`.
fn count(number: u64) -> String {
    crate::cli::units::count(number)
}

/// `1.82 GiB`.
fn bytes(number: u64) -> String {
    crate::cli::units::bytes(number)
}
