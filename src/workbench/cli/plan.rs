//! `luthier plan`.

use clap::Args;
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
    preflight::theme(&project);
    let files = preflight::model(&project)?;
    let prepared = preflight::data(&project, &files)?;
    let plan = preflight::plan(&project, &files, &prepared)?;
    preflight::start(&project)?;
    preflight::judgement(&project)?;
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
        ("libraries", memory.runtime),
        ("total", memory.total),
    ];
    let rows: Vec<_> =
        parts.iter().map(|(name, bytes)| vec![(*name).to_owned(), units::bytes(*bytes)]).collect();
    let facts = [
        (
            "parameters",
            format!(
                "{} trained of {}",
                units::count(plan.parameters.trainable),
                units::count(plan.parameters.total)
            ),
        ),
        ("steps", units::count(plan.steps)),
        ("tokens", units::count(plan.tokens)),
        ("checkpoint", format!("{} each", units::bytes(plan.checkpoint_bytes))),
        (
            "computes in",
            format!("{}{}", plan.dtype, if plan.recompute { ", activations computed again" } else { "" }),
        ),
        ("memory free", units::bytes(plan.available)),
    ];
    let facts: Vec<_> = facts.iter().map(|(name, value)| format!("{name:<12} {value}")).collect();
    let memory = output::table(&[("memory of", Align::Left), ("forecast", Align::Right)], &rows);
    format!("{}\n\n{memory}", facts.join("\n"))
}
