//! `luthier eval`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use clap::Args;
use indexmap::IndexSet;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_core::algorithms::{Notation, metrics};
use luthier_core::runs::RunDir;
use luthier_core::text::clean_line;
use luthier_core::units;
use serde_json::Value;

use super::failure::Outcome;
use super::interrupts::Interrupts;
use super::output::{self, Align};
use super::project::Folder;
use crate::project::{EvaluationProgress, Host, evaluate};

/// The sides of a comparison, in the order in which they are shown.
const SIDES: [&str; 3] = ["base", "baseline", "tuned"];

/// Measure a run on the held-out rows, and its base model with it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier eval latest -C tickets
  luthier eval latest --json | jq .tuned.scores

Loss, and the objective's scores of the replies to the held-out rows: of the tuned model, of the base model, and
of the base model under review.baseline_system where that is set.")]
pub struct Arguments {
    /// Id of the run, a part of it that no other run has, or `latest`
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    folder: Folder,
    /// The checkpoint of this step, instead of the run's result
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// Measure at most this many held-out rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, host: &Host, interrupts: &Interrupts) -> Outcome {
    let run = RunDir::find(&arguments.folder.find()?, &arguments.run)?;
    let Arguments { checkpoint, limit, .. } = *arguments;
    let bar = bar();
    interrupts.hold();
    let result = evaluate(&run, host, checkpoint, limit, &mut |progress| {
        match progress {
            Some(progress) => show(&bar, progress),
            None => bar.tick(),
        }
        if interrupts.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let result = result?;
    if arguments.json { output::document(&result) } else { output::line(&describe(&run, &result)) }
}

fn bar() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message("loading the model");
    bar
}

fn show(bar: &ProgressBar, progress: &EvaluationProgress) {
    if let (Some(done), Some(total)) = (progress.done, progress.total) {
        if bar.length() != Some(total) || bar.position() == 0 {
            let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
            bar.set_length(total);
        }
        bar.set_position(done);
    }
    bar.set_message(clean_line(&progress.what).into_owned());
}

fn describe(run: &RunDir, result: &Value) -> String {
    let sides: Vec<(&str, &Value)> =
        SIDES.iter().filter_map(|side| Some((*side, result.get(side)?))).collect();
    let mut columns = vec![("", Align::Left)];
    columns.extend(sides.iter().map(|(name, _)| (*name, Align::Right)));
    let row = |label: &str, cell: &dyn Fn(&Value) -> Option<String>| {
        let mut cells = vec![label.to_owned()];
        cells.extend(sides.iter().map(|(_, side)| cell(side).unwrap_or_else(|| "–".to_owned())));
        cells
    };
    let has = |name: &str| sides.iter().any(|(_, side)| side.get(name).is_some());
    let shown = |side: &Value, name: &str, notation| Some(figure(side.get(name)?, notation));
    let mut rows = vec![row("held-out loss", &|side| shown(side, "loss", Notation::Number))];
    for metric in metrics().filter(|metric| has(metric.name)) {
        rows.push(row(metric.label, &|side| shown(side, metric.name, metric.notation)));
    }
    let scores: IndexSet<&String> = sides
        .iter()
        .filter_map(|(_, side)| side.get("scores")?.as_object())
        .flat_map(serde_json::Map::keys)
        .collect();
    rows.extend(
        scores.iter().map(|name| row(name, &|side| shown(side.get("scores")?, name, Notation::Share))),
    );
    let count = result.get("rows").and_then(Value::as_u64).unwrap_or_default();
    format!(
        "run {}, {}\n\n{}",
        run.id(),
        units::counted(usize::try_from(count).unwrap_or(usize::MAX), "held-out row", "held-out rows"),
        output::table(&columns, &rows)
    )
}

fn figure(value: &Value, notation: Notation) -> String {
    let word = || value.as_str().unwrap_or("–").to_owned();
    value.as_f64().map_or_else(word, |value| notation.write(value))
}
