//! `luthier data convert`: writes the project's rows in another form.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use luthier_core::data::{Form, Split};
use luthier_core::text::clean_line;
use luthier_core::units;

use super::failure::{Failure, Outcome};
use super::output;
use super::project::Settings;
use crate::project::{Converted, convert};

/// In place of a file: standard output.
const STDOUT: &str = "-";

/// Write the rows in another form, as JSON Lines; exit status 3 where the form cannot hold some of them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier data convert chats.jsonl --to messages -C tickets\n  luthier data convert - --to alpaca --split train --lossy | head -1"
)]
pub struct Arguments {
    /// The file to write, whose name ends in .jsonl; `-` is standard output
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The form to write
    #[arg(long, value_name = "FORM", value_parser = forms())]
    to: Form,
    /// Which rows to write
    #[arg(long, value_enum, default_value = "all")]
    split: Which,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Exit with status 0 also where rows were left out
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// Those trained on
    Train,
    /// Those held out
    Eval,
    /// Both
    All,
}

impl Which {
    fn split(self) -> Option<Split> {
        match self {
            Self::Train => Some(Split::Train),
            Self::Eval => Some(Split::Eval),
            Self::All => None,
        }
    }
}

/// Takes the name of a form.
fn forms() -> impl TypedValueParser<Value = Form> {
    PossibleValuesParser::new(Form::ALL.map(Form::name))
        .try_map(|name| Form::from_name(&name).ok_or("no form is called so"))
}

pub fn run(arguments: &Arguments) -> Outcome {
    let out = arguments.out.as_path();
    let is_stdout = out == Path::new(STDOUT);
    let is_json_lines = out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"));
    if !is_stdout && !is_json_lines {
        return Err(Failure::usage(format!(
            "`{}` does not end in .jsonl, the kind of file that is written",
            out.display()
        )));
    }
    let project = arguments.settings.load()?;
    let converted = convert(&project, arguments.to, arguments.split.split())?;
    if converted.rows.is_empty() {
        let told = reasons(&converted.left_out).map(|reasons| format!(": {reasons}"));
        return Err(Failure::check(format!(
            "no row can be written as {}{}",
            arguments.to.name(),
            told.unwrap_or_default()
        )));
    }
    let said = describe(&converted, arguments.to);
    let left_out: usize = converted.left_out.values().sum();
    if !is_stdout && out.exists() && left_out > 0 && !arguments.lossy {
        return Err(Failure::check(format!(
            "{} is not replaced: {said}\nchoose a form that holds all rows, or accept what is left out with --lossy",
            out.display()
        )));
    }
    if is_stdout {
        for row in &converted.rows {
            output::record(row)?;
        }
        output::note(&said);
    } else {
        converted.save(out, arguments.force)?;
        output::line(&format!("{}: {said}", out.display()))?;
    }
    if left_out > 0 && !arguments.lossy {
        return Err(Failure::check(format!(
            "{} left out; choose a form that holds them, or accept it with --lossy",
            units::counted(left_out, "row was", "rows were")
        )));
    }
    Ok(())
}

/// What was written, and what not.
fn describe(converted: &Converted, form: Form) -> String {
    let rows = units::counted(converted.rows.len(), "row", "rows");
    let mut lines = vec![format!("{rows} written as {}", form.name())];
    lines.extend(reasons(&converted.left_out).map(|reasons| format!("left out: {reasons}")));
    lines.extend(reasons(&converted.dropped).map(|names| format!("dropped: {names}")));
    lines.extend(
        reasons(&converted.unused).map(|names| format!("dropped, since nothing reads them: {names}")),
    );
    lines.join("\n")
}

/// Each reason with the number of its rows; nothing without reasons.
fn reasons<Name: fmt::Display>(counts: &BTreeMap<Name, usize>) -> Option<String> {
    let told = |(reason, count): (&Name, &usize)| {
        format!("{} ({})", clean_line(&reason.to_string()), units::counted(*count, "row", "rows"))
    };
    let told: Vec<String> = counts.iter().map(told).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pretty_assertions::assert_eq;
    use serde_json::Map;

    use super::*;

    #[test]
    fn what_is_lost_is_told_with_its_rows() {
        let mut converted = Converted {
            rows: vec![Map::new()],
            left_out: BTreeMap::new(),
            dropped: BTreeMap::new(),
            unused: BTreeMap::new(),
            sources: BTreeSet::new(),
        };
        assert_eq!(describe(&converted, Form::Text), "1 row written as text");
        converted.left_out = BTreeMap::from([("it calls tools", 1200), ("other", 1)]);
        converted.dropped = BTreeMap::from([("weights", 1)]);
        assert_eq!(
            describe(&converted, Form::Alpaca),
            "1 row written as alpaca\nleft out: it calls tools (1,200 rows); other (1 row)\ndropped: weights (1 row)"
        );
    }
}
