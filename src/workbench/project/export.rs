//! Verdicts read, and written as preference pairs.

use std::path::Path;

use luthier_core::eval::{self, VerdictStore, Verdicts};
use luthier_core::runs::RunDir;

use super::Refusal;

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    /// Pairs written.
    pub pairs: usize,
    /// Lines of the verdicts that could not be read.
    pub broken_lines: usize,
}

/// The verdicts of the project in `folder`, or only those on one of its runs.
pub fn verdicts(folder: &Path, run: Option<&str>) -> Result<Verdicts, Refusal> {
    let run = run.map(|run| RunDir::find(folder, run)).transpose()?;
    let mut found = VerdictStore::of(folder).load()?;
    if let Some(run) = run {
        found.verdicts.retain(|verdict| verdict.run == run.id());
    }
    Ok(found)
}

/// Writes the pairs that verdicts imply to `file`, which must not exist.
pub fn export_pairs(folder: &Path, run: Option<&str>, file: &Path) -> Result<Exported, Refusal> {
    let found = verdicts(folder, run)?;
    if file.symlink_metadata().is_ok() {
        return Err(Refusal::Exists(file.to_owned()));
    }
    let pairs = eval::export_pairs(&found.verdicts, file)?;
    Ok(Exported { pairs, broken_lines: found.broken_lines })
}
