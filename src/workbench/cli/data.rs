//! `luthier data …`: the pre-flight of a project's data, and what changes it.

use clap::{Args, Subcommand};
use luthier_core::data::{
    self, Checked, Encoded, Example, Message, Report, Row, RowHead, Severity, Split, Template, Tokenizer,
    read_dataset,
};
use luthier_core::text::clean_line;
use luthier_core::units;
use serde_json::{Value, json};

use super::failure::{Failure, Outcome};
use super::output;
use super::project::Settings;
use super::{convert, edit, preflight, quarantine};
use crate::project::{Project, described};

/// Bars of the length histogram are this wide.
const BAR: usize = 40;

/// Look at a project's data as it will be trained on
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
    Show(Show),
    Stats(Stats),
    Quarantine(quarantine::Arguments),
    Edit(edit::Arguments),
    Convert(convert::Arguments),
}

/// Check the data before training; exit status 3 where something would break training
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier data check -C tickets\n  luthier data check --json | jq '.problems[] | .message'"
)]
struct Check {
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// Show one row: its messages, its text, and which tokens are trained on; of a preference pair, both sides
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier data show 212 -C tickets\n  luthier data show 212 --json | jq '.tokens[] | select(.trained) | .text'"
)]
struct Show {
    /// Number of the row, from 0: training files first, then evaluation files
    #[arg(value_name = "N")]
    row: usize,
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// Count rows and tokens, and show how long the rows are
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier data stats -C tickets")]
struct Stats {
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Command::Check(arguments) => check(arguments),
        Command::Show(arguments) => show(arguments),
        Command::Stats(arguments) => stats(arguments),
        Command::Quarantine(arguments) => quarantine::run(arguments),
        Command::Edit(arguments) => edit::run(arguments),
        Command::Convert(arguments) => convert::run(arguments),
    }
}

fn checked(project: &Project) -> Outcome<Checked> {
    let files = project.model()?;
    preflight::with_bar(|progress| project.check_data(&files, progress))
}

fn check(arguments: &Check) -> Outcome {
    let project = arguments.settings.load()?;
    preflight::theme(&project);
    let checked = checked(&project)?;
    let report = &checked.report;
    if arguments.json {
        output::document(report)?;
    } else {
        let told = describe_check(report, &project.config.data.allow);
        output::line(&output::fitted(&told))?;
    }
    checked.check_warmup(&project.config)?;
    if report.blocks() {
        let count = report.count(Severity::Blocks);
        return Err(Failure::check(format!(
            "{} the data from being trained on",
            if count == 1 { "one problem keeps".to_owned() } else { format!("{count} problems keep") }
        )));
    }
    Ok(())
}

fn summary(report: &Report) -> String {
    let left_out = match report.left_out() {
        0 => String::new(),
        unused => format!(", {} left out", units::count(unused as u64)),
    };
    // Long texts may be learned in parts.
    let parts = if report.train_rows + report.eval_rows > report.rows { " examples" } else { "" };
    format!(
        "{}: {}{parts} to train on, {} held out{left_out}\n{} tokens, {} trained ({})\ntemplate {} ({})",
        units::counted(report.rows, "row", "rows"),
        units::count(report.train_rows as u64),
        units::count(report.eval_rows as u64),
        units::count(report.tokens),
        units::count(report.trained_tokens),
        units::percent(report.trained_share()),
        report.template,
        report.template_fingerprint,
    )
}

fn describe_check(report: &Report, allowed: &[String]) -> String {
    format!("{}\n{}", summary(report), described(report, allowed))
}

fn stats(arguments: &Stats) -> Outcome {
    let report = checked(&arguments.settings.load()?)?.report;
    if arguments.json {
        return output::document(&json!({
            "rows": report.rows,
            "train_rows": report.train_rows,
            "eval_rows": report.eval_rows,
            "quarantined": report.quarantined,
            "truncated": report.truncated,
            "dropped": report.dropped,
            "tokens": report.tokens,
            "trained_tokens": report.trained_tokens,
            "trained_share": report.trained_share(),
            "lengths": report.lengths,
            "roles": report.roles,
            "template": report.template,
            "template_fingerprint": report.template_fingerprint,
        }));
    }
    output::line(&describe_stats(&report))
}

fn describe_stats(report: &Report) -> String {
    let lengths = &report.lengths;
    let mut lines = vec![
        summary(report),
        format!("{} cut, {} dropped, {} in quarantine", report.truncated, report.dropped, report.quarantined),
        format!(
            "tokens per row: min {}, median {}, p95 {}, max {}",
            lengths.min, lengths.p50, lengths.p95, lengths.max
        ),
    ];
    let most = lengths.histogram.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let width = lengths.max.to_string().len();
    for bin in lengths.histogram.iter().skip_while(|bin| bin.rows == 0) {
        let bar = "▪".repeat((bin.rows * BAR).div_ceil(most));
        lines.push(format!("  {:>width$}–{:<width$}  {bar} {}", bin.from, bin.to, bin.rows));
    }
    for role in &report.roles {
        let share = units::percent(role.share);
        let lengths = &role.lengths;
        lines.push(format!(
            "{}: {share} of tokens; per row: median {}, p95 {}, max {}",
            role.role, lengths.p50, lengths.p95, lengths.max
        ));
    }
    lines.join("\n")
}

fn show(arguments: &Show) -> Outcome {
    let project = arguments.settings.load()?;
    let files = project.model()?;
    let (row, _) = find(&project, arguments.row)?;
    let tokenizer = Tokenizer::open(&files)?;
    let template = Template::resolve(&project.config, &project.folder, &files)?;
    let sides = data::encode(&row, &tokenizer, &template, &project.config)
        .map_err(|problem| Failure::check(problem.to_string()))?;
    let messages = data::conversation(&row, &template, &project.config);
    if arguments.json {
        let first = sides.first();
        let mut document = json!({
            "row": row.index,
            "split": row.split,
            "origin": row.origin,
            "messages": messages,
            "text": first.map(|side| &side.text),
            "tokens": first.map(data::row_tokens),
            "truncated": first.map(|side| side.truncated),
        });
        if let Some(label) = row.extras.label {
            document["label"] = label.into();
        }
        if let Some(tools) = &row.extras.tools {
            document["tools"] = tools.clone();
        }
        if !row.extras.variables.is_empty() {
            document["chat_template_kwargs"] = row.extras.variables.clone().into();
        }
        if let (Example::Preference { rejected: reply, .. }, Some(side)) = (&row.example, sides.get(1)) {
            document["rejected"] = json!({
                "reply": reply.shown(),
                "text": side.text,
                "tokens": data::row_tokens(side),
                "truncated": side.truncated,
            });
        }
        return output::document(&document);
    }
    output::line(&describe_row(&row, messages.as_deref(), &sides))
}

/// The row of that number.
pub(super) fn find(project: &Project, wanted: usize) -> Outcome<(Row, RowHead)> {
    let dataset = read_dataset(&project.config, &project.folder)?;
    if let Some(head) = dataset.rows.heads().get(wanted) {
        return Ok((dataset.rows.row(head)?, *head));
    }
    if dataset.quarantined.heads().iter().any(|row| row.index == wanted) {
        return Err(Failure::work(format!("row {wanted} is in quarantine")));
    }
    Err(Failure::usage(match dataset.rows.len().checked_sub(1) {
        Some(last) => format!("there is no row {wanted}; rows are numbered from 0 to {last}"),
        None => "the data has no rows".to_owned(),
    }))
}

/// The row in words, then the tokens of its sides as [`marked`].
fn describe_row(row: &Row, messages: Option<&[Message]>, sides: &[Encoded]) -> String {
    let split = match row.split {
        Split::Train => "train",
        Split::Eval => "held out",
    };
    let tokens: usize = sides.iter().map(|side| side.ids.len()).sum();
    let trained = sides.iter().flat_map(|side| &side.trained).filter(|&&trained| trained).count();
    let cut = sides.iter().any(|side| side.truncated);
    let label = row.extras.label_name().map_or_else(String::new, |label| format!(", {label}"));
    let mut lines = vec![format!(
        "row {}, {split}{label}, {}: {tokens} tokens, {trained} trained{}",
        row.index,
        row.origin,
        if cut { ", cut at data.max_length" } else { "" }
    )];
    if let Some(tools) = row.extras.tools.as_ref().and_then(Value::as_array) {
        let names =
            tools.iter().filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str());
        lines.push(format!("tools: {}", names.map(clean_line).collect::<Vec<_>>().join(", ")));
    }
    for message in messages.unwrap_or_default() {
        if let Some(reasoning) = &message.reasoning {
            lines.push(format!("\n{} thinks: {reasoning}", message.role));
        }
        lines.push(format!("\n{}: {}", message.role, message.shown()));
        if !message.content.is_empty() {
            lines.extend(message.tool_calls.iter().map(|call| format!("calls {call}")));
        }
    }
    if let Example::Preference { prompt, chosen, rejected } = &row.example {
        if prompt.is_empty() {
            lines.push(format!("\nchosen: {}", chosen.shown()));
        }
        lines.push(format!("\nrejected: {}", rejected.shown()));
    }
    lines.push(String::from("\ntokens, trained ones between ▐ and ▌:\n"));
    lines.push(sides.iter().map(marked).collect::<Vec<_>>().join("\n\nof the rejected side:\n\n"));
    lines.join("\n")
}

/// The text of one side, with trained stretches between half blocks.
fn marked(side: &Encoded) -> String {
    let mut text = String::new();
    let mut inside = false;
    for token in data::row_tokens(side) {
        if token.trained != inside {
            text.push(if token.trained { '▐' } else { '▌' });
            inside = token.trained;
        }
        text.push_str(&token.text);
    }
    if inside {
        text.push('▌');
    }
    text
}
