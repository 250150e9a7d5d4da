//! `luthier data quarantine`: sets rows aside and brings them back.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args};
use luthier_core::data::ProblemKind;
use luthier_core::units;
use serde_json::json;

use super::failure::Outcome;
use super::output::{self, Align};
use super::preflight;
use super::project::Settings;
use crate::project::{Aside, Back, Changed, Entry, bring_back, entries, set_aside};

/// Characters of a row that a list shows.
const SHOWN: usize = 50;
/// In place of the hashes of rows: all of them.
const ALL: &str = "all";

/// Set rows aside, so that nothing uses them, or bring them back; the files stay as they are
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("what").required(true).args(["kind", "row", "restore", "list"])),
    after_help = "Examples:\n  luthier data quarantine --kind duplicate --kind empty_reply -C tickets\n  luthier data quarantine --row 212 --dry-run\n  luthier data quarantine --list\n  luthier data quarantine --restore all\n\nRows that are equal are one entry of the list. Of rows that are there several times (duplicate,\neval_in_train) one stays."
)]
pub struct Arguments {
    /// Set aside all rows with this kind of finding; repeatable
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    kind: Vec<ProblemKind>,
    /// Set aside this row, numbered as in `luthier data show`, and those equal to it; repeatable
    #[arg(long, value_name = "N")]
    row: Vec<usize>,
    /// Bring back the rows with this hash, or `all`; repeatable
    #[arg(long, value_name = "HASH|all")]
    restore: Vec<String>,
    /// List what is in quarantine
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    settings: Settings,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// Takes the name of a kind of finding.
fn kinds() -> impl TypedValueParser<Value = ProblemKind> {
    let kinds = ProblemKind::names().filter_map(ProblemKind::from_name);
    let values = kinds.map(|kind| PossibleValue::new(kind.name()).help(kind.about()));
    PossibleValuesParser::new(values)
        .try_map(|name| ProblemKind::from_name(&name).ok_or("no finding is called so"))
}

/// Most places of changed rows that are named.
const NAMED: usize = 5;

pub fn run(arguments: &Arguments) -> Outcome {
    let project = arguments.settings.load()?;
    if arguments.list {
        return list(&entries(&project)?, arguments.json);
    }
    let dry = arguments.dry_run;
    let changed = if arguments.restore.is_empty() {
        let which = match arguments.kind.as_slice() {
            [] => Aside::Rows(&arguments.row),
            kinds => Aside::Kinds(kinds),
        };
        preflight::with_bar(|progress| set_aside(&project, which, dry, progress))?
    } else {
        let is_all = arguments.restore.iter().any(|hash| hash == ALL);
        let which = if is_all { Back::All } else { Back::Hashes(&arguments.restore) };
        bring_back(&project, which, dry)?
    };
    if arguments.json {
        return output::document(&json!({
            "before": changed.before,
            "quarantined": changed.now,
            "train_rows": changed.train,
            "eval_rows": changed.eval,
            "written": !dry,
            "rows": changed.rows,
        }));
    }
    let mut said = describe(&changed, !arguments.restore.is_empty(), dry);
    if changed.rows.is_empty() && !arguments.kind.is_empty() {
        said.push_str(
            "\nno row in use has such a finding; unreadable rows, and findings about fields or files, have no row to set \
             aside",
        );
    }
    output::line(&said)
}

fn describe(changed: &Changed, is_back: bool, dry: bool) -> String {
    let Changed { before, now, train, eval, rows: places } = changed;
    let (before, now, train, eval) = (*before, *now, *train, *eval);
    let rows = |count| units::counted(count, "row", "rows");
    let first = match (is_back, dry) {
        (false, false) => format!("{} set aside", rows(now.saturating_sub(before))),
        (false, true) => format!("{} would be set aside", rows(now.saturating_sub(before))),
        (true, false) => format!("{} brought back", rows(before.saturating_sub(now))),
        (true, true) => format!("{} would be brought back", rows(before.saturating_sub(now))),
    };
    let others = if is_back {
        format!("{} in quarantine", units::count(now as u64))
    } else {
        format!("{} in quarantine before", units::count(before as u64))
    };
    let mut named: Vec<String> = places.iter().take(NAMED).map(ToString::to_string).collect();
    if places.len() > NAMED {
        named.push(format!("{} more", places.len() - NAMED));
    }
    let named = if named.is_empty() { String::new() } else { format!("\n  {}", named.join(", ")) };
    format!(
        "{first}, {others}{named}\n{} left to train on, {} held out",
        rows(train),
        units::count(eval as u64)
    )
}

fn list(entries: &[Entry], as_json: bool) -> Outcome {
    if as_json {
        let entry = |entry: &Entry| {
            json!({
                "hash": entry.hash,
                "copies": entry.copies,
                "rows": entry.rows,
                "origin": entry.origin,
                "text": entry.text,
            })
        };
        return output::document(&entries.iter().map(entry).collect::<Vec<_>>());
    }
    if entries.is_empty() {
        return output::line("nothing is in quarantine");
    }
    let columns = [("hash", Align::Left), ("rows", Align::Right), ("place", Align::Left), ("", Align::Left)];
    let rows: Vec<Vec<String>> = entries.iter().map(listed).collect();
    output::line(&output::table(&columns, &rows))
}

fn listed(entry: &Entry) -> Vec<String> {
    let place = match &entry.origin {
        Some(origin) => origin.to_string(),
        None => "no longer in the data".to_owned(),
    };
    let text: Vec<&str> = entry.text.split_whitespace().take(SHOWN).collect();
    let text = text.join(" ");
    let end = text.char_indices().nth(SHOWN).map(|(at, _)| at);
    let mut shown = end.map_or_else(|| text.clone(), |end| format!("{}…", &text[..end]));
    if entry.copies {
        shown = format!("(all but the first) {shown}");
    }
    vec![entry.hash.clone(), entry.rows.to_string(), place, shown]
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn a_change_is_told_in_two_lines() {
        let changed = Changed { before: 2, now: 3, train: 1200, eval: 0, rows: Vec::new() };
        assert_eq!(
            describe(&changed, false, false),
            "1 row set aside, 2 in quarantine before\n1,200 rows left to train on, 0 held out"
        );
        let back = Changed { before: 3, now: 0, train: 1, eval: 4, rows: Vec::new() };
        assert_eq!(
            describe(&back, true, true),
            "3 rows would be brought back, 0 in quarantine\n1 row left to train on, 4 held out"
        );
    }

    #[test]
    fn a_long_row_is_cut_and_a_lost_one_named() {
        let entry =
            Entry { hash: "aa".to_owned(), copies: true, rows: 0, origin: None, text: "ä\n".repeat(60) };
        let shown = listed(&entry);
        assert_eq!(shown[..3], ["aa", "0", "no longer in the data"]);
        assert!(shown[3].starts_with("(all but the first) ä ä") && shown[3].ends_with('…'), "{}", shown[3]);
    }
}
