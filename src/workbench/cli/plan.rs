//! `luthier plan`.

use clap::Args;
use luthier_core::machine;
use luthier_core::model::forecast::Plan;

use super::failure::Outcome;
use super::output::{self, Align};
use super::preflight;
use super::project::Settings;
use super::units;

/// Forecast what a run would train and need, and refuse what cannot fit
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier plan -C tickets\n  luthier plan --set data.max_length=512 --json | jq .memory.total"
)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// Forecasts.
pub fn run(arguments: &Arguments) -> Outcome {
    let project = arguments.settings.load()?;
    let files = preflight::model(&project)?;
    let prepared = preflight::data(&project, &files)?;
    let plan = preflight::plan(&project, &files, &prepared)?;
    if arguments.json {
        output::document(&plan)?;
    } else {
        output::line(&describe(&plan))?;
    }
    preflight::passes(&prepared.report)
}

fn describe(plan: &Plan) -> String {
    let memory = &plan.memory;
    let parts = [
        ("weights", memory.weights),
        ("adapter", memory.adapter),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("total", memory.total),
    ];
    let rows: Vec<_> =
        parts.iter().map(|(name, bytes)| vec![(*name).to_owned(), units::bytes(*bytes)]).collect();
    format!(
        "parameters  {} trained of {}\nsteps       {}\ntokens      {}\ncheckpoint  {} each\nmemory      {} available\n\n{}",
        units::count(plan.parameters.trainable),
        units::count(plan.parameters.total),
        units::count(plan.steps),
        units::count(plan.tokens),
        units::bytes(plan.checkpoint_bytes),
        units::bytes(machine::memory().available),
        output::table(&[("memory of", Align::Left), ("forecast", Align::Right)], &rows),
    )
}
