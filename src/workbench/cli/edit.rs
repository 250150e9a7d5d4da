//! `luthier data edit`: rewrites a row beside its file.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use luthier_core::files;

use super::data::find;
use super::failure::{Failure, Outcome};
use super::output;
use super::project::Settings;
use crate::project::{Draft, rewrite, undo};
use crate::term::run_editor;

/// Longest row that is taken.
const LONGEST: u64 = 64 << 20;

/// In place of a file: standard input.
const STDIN: &str = "-";

/// Edit a row; its file stays as it is, and edits.jsonl in the project has what replaces it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier data edit 212 -C tickets\n  luthier data edit 212 --from fixed.json\n  luthier data edit 212 --undo\n\nThe row is a JSON object with the fields that a dataset file would have. Rows that are equal to it are\nreplaced as well."
)]
pub struct Arguments {
    /// Number of the row, as in `luthier data show`
    #[arg(value_name = "N")]
    row: usize,
    /// Take what the row says from this file (- for standard input) instead of opening $VISUAL or $EDITOR
    #[arg(long, value_name = "FILE", conflicts_with = "undo")]
    from: Option<PathBuf>,
    /// Let the row be as it is in its file
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let project = arguments.settings.load()?;
    let (row, head) = find(&project, arguments.row)?;
    let changed = if arguments.undo {
        undo(&project.folder, &head)?;
        return output::line(&format!("row {} is as in its file", arguments.row));
    } else if let Some(file) = &arguments.from {
        let text =
            read(file).map_err(|error| Failure::work(format!("cannot read {}: {error}", file.display())))?;
        rewrite(&project.folder, &project.config, &head.edit_key(), &text)?;
        true
    } else {
        let draft = Draft::of(&row, &head)?;
        let kept = |failure: Failure| {
            let path = draft.path.display();
            failure.and(&format!("what you wrote is in {path}; mended, `--from {path}` takes it"))
        };
        run_editor(&draft.path).map_err(|problem| {
            let failure = Failure::work(problem);
            if draft.drop_if_unchanged() { failure } else { kept(failure) }
        })?;
        draft.take(&project.folder, &project.config).map_err(|refusal| kept(refusal.into()))?
    };
    output::line(&if changed {
        format!("row {} is edited; `luthier data edit {} --undo` takes it back", arguments.row, arguments.row)
    } else {
        format!("row {} is as before", arguments.row)
    })
}

fn read(file: &Path) -> io::Result<String> {
    if file.as_os_str() != STDIN {
        let text = files::read(file, LONGEST)?;
        return String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into());
    }
    let mut text = String::new();
    io::stdin().take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}
