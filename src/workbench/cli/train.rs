//! `luthier train`.

use std::time::Duration;

use clap::Args;
use luthier_core::runs::{EventBody, JournalEvent, RunDir, RunState, Status};
use luthier_core::units;
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::follow::{Ending, Progress, follow};
use super::interrupts::Interrupts;
use super::project::Settings;
use super::{output, preflight};
use crate::project::{Host, ready};

/// Lines of the log shown for a run whose process was lost.
const LOG_LINES: usize = 12;

/// Fine-tune the base model on the project's data
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier train -C tickets
  luthier train --set train.learning_rate=1e-4 --set train.epochs=1
  luthier train --json | jq 'select(.kind == \"eval\")'

The run is a process of its own: ctrl-C, a closed terminal or a lost connection leave it running.
`luthier run pause|resume|stop latest` control it; the workbench shows it live.")]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Start the run, print its id, and return
    #[arg(long)]
    detach: bool,
    /// Print the journal's events as JSON lines until the run ends; with --detach, one JSON document about it
    #[arg(long)]
    json: bool,
}

/// Starts a run and follows it.
pub fn run(arguments: &Arguments, host: &Host, interrupts: &Interrupts) -> Outcome {
    let project = arguments.settings.load()?;
    preflight::theme(&project);
    let ready = preflight::with_bar(|progress| ready(project, host, progress))?;
    preflight::log_out();
    let (run, process) = ready.start()?;
    if arguments.detach {
        return report_start(&run, process, arguments.json);
    }
    if !arguments.json {
        output::note(&format!(
            "run {} · {} steps · ctrl-C leaves it running",
            run.id(),
            ready.planned.plan.steps
        ));
    }
    watch(&run, arguments.json, interrupts)
}

fn report_start(run: &RunDir, process: u32, json: bool) -> Outcome {
    if json {
        return output::document(&json!({ "id": run.id(), "path": run.path(), "pid": process }));
    }
    output::line(run.id())?;
    output::note(&how_to_return(run));
    Ok(())
}

fn how_to_return(run: &RunDir) -> String {
    let project = run.project().display();
    format!(
        "the run continues in the background:\n  luthier {project}                        opens the workbench on it\n  \
         luthier run show {id} -C {project}\n  luthier run stop {id} -C {project}",
        id = run.id()
    )
}

fn watch(run: &RunDir, json: bool, interrupts: &Interrupts) -> Outcome {
    interrupts.hold();
    let mut first_loss = None;
    let ending = if json {
        follow(run, interrupts, &mut |event: &JournalEvent| output::record(event))?
    } else {
        let mut progress = Progress::new();
        let ending = follow(run, interrupts, &mut |event: &JournalEvent| {
            if let (None, EventBody::Step(step)) = (first_loss, &event.body) {
                first_loss = Some(step.loss.get());
            }
            progress.see(event);
            Ok(())
        });
        progress.end();
        ending?
    };
    match ending {
        Ending::Left => Err(Failure::interrupted(format!("run {}: {}", run.id(), how_to_return(run)))),
        Ending::Over(status) => conclude(run, &status, first_loss, json),
    }
}

/// What is said at the end of a run that is over; an error if it failed or was lost.
pub fn conclude(run: &RunDir, status: &Status, first_loss: Option<f64>, json: bool) -> Outcome {
    match status.state {
        RunState::Failed | RunState::Lost => Err(Failure::work(complaint(run, status))),
        _ if json => Ok(()),
        _ => output::line(&summary(run, status, first_loss)),
    }
}

fn summary(run: &RunDir, status: &Status, first_loss: Option<f64>) -> String {
    let seconds = Duration::try_from_secs_f64(status.train_seconds);
    let mut facts = vec![format!(
        "{} after {} in {}",
        status.state,
        units::counted(usize::try_from(status.step).unwrap_or(usize::MAX), "step", "steps"),
        seconds.map_or_else(|_| "–".to_owned(), units::duration)
    )];
    if let (Some(first), Some(last)) = (first_loss, status.loss) {
        facts.push(format!("loss {} → {}", units::number(first), units::number(last.get())));
    }
    facts.extend(status.eval_loss.map(|loss| format!("held-out {}", units::number(loss.get()))));
    facts.extend(status.reason.clone());
    let mut lines = vec![facts.join(" · ")];
    if let Some((form, folder)) = run.result() {
        lines.push(format!("{:<8} {}", form.folder(), folder.display()));
        lines.push(format!("compare  luthier eval {} -C {}", run.id(), run.project().display()));
    }
    lines.join("\n")
}

fn complaint(run: &RunDir, status: &Status) -> String {
    let id = run.id();
    let mut lines = Vec::new();
    let step = status.step;
    match (&status.failure, &status.reason) {
        (Some(failure), _) => {
            lines.push(format!("run {id} failed ({}): {}", failure.class, failure.message));
            if !failure.remedy.is_empty() {
                lines.push(format!("remedy: {}", failure.remedy));
            }
        }
        (None, Some(reason)) => lines.push(format!("run {id}: its process ended at step {step}: {reason}")),
        (None, None) => {
            lines.push(format!("run {id}: its process exited without reporting an error at step {step}"));
        }
    }
    if status.state == RunState::Lost {
        lines.extend(run.log_tail(LOG_LINES).iter().map(|line| format!("log: {line}")));
    }
    lines.push(format!("its log: {}", run.log_path().display()));
    if !run.checkpoints().is_empty() {
        lines.push(format!("continue from its newest checkpoint: luthier run resume {id}"));
    }
    lines.join("\n  ")
}
