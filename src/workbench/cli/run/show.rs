//! `luthier run show`.

use clap::Args;
use jiff::Timestamp;
use luthier_core::runs::{self, EventBody, JournalReader, Number, ResultForm, RunDir, Status};
use luthier_core::text::indented;
use luthier_core::units;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::Duration;

use super::Which;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output;

/// Lines of the log shown for a failed run.
const LOG_LINES: usize = 8;

/// Column in which values begin.
const VALUES: usize = 17;

/// Show the state of a run
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier run show latest -C tickets\n  luthier run show latest --json | jq .state"
)]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// What the journal has in addition to the status.
#[derive(Default)]
struct History {
    evaluations: Vec<(u64, Number)>,
    edits: Vec<String>,
    alerts: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let run = arguments.which.find()?;
    let status = run.status()?;
    if arguments.json {
        return output::document(&document(&run, &status)?);
    }
    let history = History::read(&run)?;
    output::line(&describe(&run, &status, &history, Timestamp::now()))
}

fn document(run: &RunDir, status: &Status) -> Outcome<Value> {
    let status = serde_json::to_value(status)
        .map_err(|error| Failure::work(format!("cannot write the status as JSON: {error}")))?;
    let mut document = Map::new();
    document.insert("id".to_owned(), json!(run.id()));
    document.insert("path".to_owned(), json!(run.path()));
    if let Value::Object(keys) = status {
        document.extend(keys);
    }
    let checkpoints: Vec<_> = run
        .checkpoints()
        .iter()
        .map(|checkpoint| json!({"step": checkpoint.step, "path": checkpoint.path}))
        .collect();
    document.insert("checkpoints".to_owned(), json!(checkpoints));
    let result = run.result();
    for form in ResultForm::ALL {
        let folder = result.as_ref().filter(|(found, _)| *found == form).map(|(_, folder)| folder);
        document.insert(form.folder().to_owned(), json!(folder));
    }
    Ok(Value::Object(document))
}

impl History {
    fn read(run: &RunDir) -> Outcome<Self> {
        let mut reader = JournalReader::new(&run.journal_path());
        let mut history = Self::default();
        loop {
            let batch = reader.read(4096, Duration::from_secs(1))?;
            for event in batch.events {
                let step = event.step.unwrap_or(0);
                match event.body {
                    // A resumed run repeats the steps after its checkpoint.
                    EventBody::Run(run) => {
                        if let Some(from) = run.resumed_from {
                            history.evaluations.retain(|(step, _)| *step <= from);
                        }
                    }
                    EventBody::Eval(eval) => history.evaluations.push((step, eval.loss)),
                    EventBody::Edit(edit) => history.edits.push(format!(
                        "from step {}: {} {} → {} ({})",
                        edit.applied_at_step, edit.key, edit.old, edit.new, edit.who
                    )),
                    EventBody::Alert(alert) => history.alerts.push(format!("step {step}: {}", alert.message)),
                    _ => {}
                }
            }
            if !batch.more {
                return Ok(history);
            }
        }
    }
}

fn describe(run: &RunDir, status: &Status, history: &History, now: Timestamp) -> String {
    let mut text = format!("run {}\n", run.id());
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<14} {}", indented(value, VALUES));
    };
    let state = match &status.reason {
        Some(reason) => format!("{}: {reason}", status.state),
        None => status.state.to_string(),
    };
    line("state", &state);
    if let Some(remark) = &status.remark {
        line("note", remark);
    }
    if let Some(activity) = &status.activity {
        line("activity", activity);
    }
    if status.state.is_live() {
        line("process", &format!("{} on {}", status.pid, status.host));
    }
    line("started", &units::ago(status.started, now));
    line("step", &format!("{} of {}, epoch {:.2}", status.step, status.total_steps, status.epoch));
    let mut number = |name: &str, value: Option<Number>, more: &str| {
        if let Some(value) = value {
            line(name, &format!("{}{more}", units::number(value.get())));
        }
    };
    number("loss", status.loss, "");
    number("held-out loss", status.eval_loss, "");
    let at = status.best_step.map(|step| format!(" at step {step}")).unwrap_or_default();
    number("best", status.best_eval_loss, &at);
    number("learning rate", status.learning_rate, "");
    number("tokens/s", status.tokens_per_second, "");
    for (name, score) in &status.scores {
        line(name, &units::percent(score.get()));
    }
    if let Some(step) = status.checkpoint {
        line("checkpoint", &format!("step {step}"));
    }
    if let Some((form, folder)) = run.result() {
        line(form.folder(), &folder.display().to_string());
    }
    let evaluations: Vec<_> = history
        .evaluations
        .iter()
        .map(|(step, loss)| format!("{} @ {step}", units::number(loss.get())))
        .collect();
    if !evaluations.is_empty() {
        line("evaluations", &evaluations.join("  "));
    }
    for edit in &history.edits {
        line("edit", edit);
    }
    for alert in &history.alerts {
        line("alert", alert);
    }
    if let Some(failure) = &status.failure {
        line("failure", &format!("{}: {}", failure.class, failure.message));
        if !failure.remedy.is_empty() {
            line("remedy", &failure.remedy);
        }
    }
    if matches!(status.state, runs::RunState::Failed | runs::RunState::Lost) {
        for logged in run.log_tail(LOG_LINES) {
            line("log", &logged);
        }
    }
    text.trim_end().to_owned()
}
