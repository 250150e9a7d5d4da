//! `luthier runs`.

use jiff::Timestamp;
use luthier_core::runs::{self, RunState, RunSummary};
use luthier_core::units;
use serde_json::{Value, json};

use super::failure::Outcome;
use super::output::{self, Align};
use super::project::Folder;

/// List the runs of a project, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  luthier runs -C tickets\n  luthier runs --json | jq '.[0].id'")]
pub struct Arguments {
    #[command(flatten)]
    folder: Folder,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let listed = runs::list(&arguments.folder.find()?)?;
    if arguments.json {
        return output::document(&listed.iter().map(document).collect::<Vec<_>>());
    }
    if listed.is_empty() {
        return output::line("no runs yet; `luthier train` starts one");
    }
    let now = Timestamp::now();
    let mut columns = vec![
        ("run", Align::Left),
        ("state", Align::Left),
        ("method", Align::Left),
        ("step", Align::Right),
        ("loss", Align::Right),
        ("held-out", Align::Right),
        ("best", Align::Right),
        ("started", Align::Left),
    ];
    let mut rows: Vec<_> = listed.iter().map(|run| row(run, now)).collect();
    if listed.iter().any(|run| run.remark.is_some()) {
        columns.push(("note", Align::Left));
        for (row, run) in rows.iter_mut().zip(&listed) {
            row.push(run.remark.clone().unwrap_or_default());
        }
    }
    output::line(&output::table(&columns, &rows))
}

fn row(run: &RunSummary, now: Timestamp) -> Vec<String> {
    let loss =
        |loss: Option<runs::Number>| loss.map_or_else(|| "–".to_owned(), |loss| units::number(loss.get()));
    let state = match (&run.failure, &run.reason) {
        (Some(failure), _) => format!("{}: {}", run.state, failure.class),
        // It holds still without having been asked to.
        (None, Some(reason)) if run.state == RunState::Paused => format!("{}: {reason}", run.state),
        _ => run.state.to_string(),
    };
    let steps = match run.total_steps {
        0 => run.step.to_string(),
        total => format!("{}/{total}", run.step),
    };
    let started = units::ago(run.started, now);
    vec![
        run.id.clone(),
        state,
        run.method.clone(),
        steps,
        loss(run.loss),
        loss(run.eval_loss),
        loss(run.best_eval_loss),
        started,
    ]
}

fn document(run: &RunSummary) -> Value {
    json!({
        "id": run.id,
        "path": run.path,
        "state": run.state,
        "method": run.method,
        "step": run.step,
        "total_steps": run.total_steps,
        "loss": run.loss,
        "eval_loss": run.eval_loss,
        "best_eval_loss": run.best_eval_loss,
        "started": runs::time::text(run.started),
        "failure": run.failure,
        "reason": run.reason,
        "remark": run.remark,
    })
}
