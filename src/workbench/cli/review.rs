//! `luthier review …`: counts and exports verdicts.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use luthier_core::eval::{Contender, Tally, Verdicts, tally_against};
use luthier_core::units;
use serde_json::json;

use super::failure::Outcome;
use super::output::{self, Align};
use super::project::Folder;
use crate::project;

/// Count the verdicts of a project: tuned against base, and against the prompt-only baseline
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  luthier review -C tickets\n  luthier review --run latest --json\n  luthier review export pairs.jsonl"
)]
pub struct Arguments {
    #[command(flatten)]
    verdicts: Which,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Export(Export),
}

/// Write what the verdicts imply as preference pairs, one JSON object a line
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier review export pairs.jsonl -C tickets")]
struct Export {
    /// The file to write; must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    verdicts: Which,
}

/// Which verdicts a command is about.
#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    folder: Folder,
    /// Only verdicts on this run
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

/// Says how many lines of the verdicts could not be read.
fn note_broken(lines: usize) {
    if lines > 0 {
        let lines = units::counted(lines, "line", "lines");
        output::note(&format!("{lines} of verdicts.jsonl cannot be read and were skipped"));
    }
}

pub fn run(arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Some(Command::Export(export)) => write_pairs(export),
        None => count(arguments),
    }
}

fn count(arguments: &Arguments) -> Outcome {
    let Which { folder, run } = &arguments.verdicts;
    let Verdicts { verdicts, broken_lines } = project::verdicts(&folder.find()?, run.as_deref())?;
    note_broken(broken_lines);
    let base = tally_against(&verdicts, Contender::Base);
    let baseline = tally_against(&verdicts, Contender::Baseline);
    if arguments.json {
        return output::document(&json!({ "verdicts": verdicts.len(), "base": base, "baseline": baseline }));
    }
    if verdicts.is_empty() {
        return output::line("no verdicts yet; the workbench's review pane (4) takes them");
    }
    let columns = [
        ("tuned against", Align::Left),
        ("tuned better", Align::Right),
        ("other better", Align::Right),
        ("tie", Align::Right),
        ("both bad", Align::Right),
        ("skipped", Align::Right),
        ("win rate", Align::Left),
        ("p", Align::Right),
    ];
    output::line(&output::table(&columns, &[row("base", &base), row("baseline", &baseline)]))
}

fn row(other: &str, tally: &Tally) -> Vec<String> {
    let win_rate = match (tally.win_rate, tally.interval) {
        (Some(rate), Some(interval)) => format!(
            "{} ({} to {})",
            units::percent(rate),
            units::percent(interval.low),
            units::percent(interval.high)
        ),
        _ => "–".to_owned(),
    };
    let counts = [tally.tuned, tally.base, tally.tie, tally.both_bad, tally.skipped];
    let counts = counts.iter().map(ToString::to_string);
    [other.to_owned()].into_iter().chain(counts).chain([win_rate, units::number(tally.p)]).collect()
}

fn write_pairs(export: &Export) -> Outcome {
    let Which { folder, run } = &export.verdicts;
    let exported = project::export_pairs(&folder.find()?, run.as_deref(), &export.file)?;
    note_broken(exported.broken_lines);
    let pairs = units::counted(exported.pairs, "pair", "pairs");
    output::line(&format!("{pairs} written to {}", export.file.display()))
}
