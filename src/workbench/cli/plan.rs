//! `luthier plan`.

use clap::Args;
use luthier_core::plan::Plan;
use luthier_core::units;

use super::failure::Outcome;
use super::output::{self, Align};
use super::preflight;
use super::project::Settings;
use crate::project::{Host, plan, unblocked};

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

pub fn run(arguments: &Arguments, host: &Host) -> Outcome {
    let project = arguments.settings.load()?;
    preflight::theme(&project);
    let planned = preflight::with_bar(|progress| plan(&project, host, progress))?;
    if arguments.json {
        output::document(&planned.plan)?;
    } else {
        output::line(&describe(&planned.plan))?;
    }
    Ok(unblocked(&planned.report)?)
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
