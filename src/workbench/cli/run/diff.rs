//! `luthier run diff`.

use clap::Args;
use luthier_core::runs::RunDir;
use serde_json::json;

use super::Which;
use crate::cli::failure::Outcome;
use crate::cli::output::{self, Align};
use crate::project::{Difference, diff};

/// Compare a run's settings with those of another run, or of the project as it is now; the older ones come first
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier run diff latest -C tickets\n  luthier run diff 20260102-1504 latest"
)]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// The run to compare with [default: the project's luthier.toml]
    #[arg(value_name = "OTHER")]
    other: Option<String>,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let run = arguments.which.find()?;
    let other = arguments.other.as_deref().map(|other| RunDir::find(run.project(), other)).transpose()?;
    let Difference { old, new, edits } = diff(&run, other.as_ref())?;
    if arguments.json {
        let differences: Vec<_> = edits
            .iter()
            .map(|edit| json!({"key": edit.key, "old": edit.old, "new": edit.new, "when": edit.when.to_string()}))
            .collect();
        return output::document(&json!({"old": old, "new": new, "differences": differences}));
    }
    if edits.is_empty() {
        return output::line(&format!("{old} and {new} have the same settings"));
    }
    let columns = [
        ("setting", Align::Left),
        (old.as_str(), Align::Left),
        (new.as_str(), Align::Left),
        ("takes effect", Align::Left),
    ];
    let rows: Vec<_> = edits
        .iter()
        .map(|edit| vec![edit.key.clone(), edit.old.clone(), edit.new.clone(), edit.when.to_string()])
        .collect();
    output::line(&output::table(&columns, &rows))
}
