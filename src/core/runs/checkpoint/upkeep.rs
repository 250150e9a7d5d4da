//! Removes old checkpoints and the leftovers of killed processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::outcome::ResultForm;
use super::{CHECKPOINT_FOLDER, Checkpoint, CheckpointError, Result, io_error, list_checkpoints};
use crate::files;

/// What [`prune`] did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Steps whose checkpoints were removed.
    pub removed: Vec<u64>,
    /// If the newest checkpoint does not verify, or may not survive a crash of the machine, nothing is removed; this is why.
    pub kept_all: Option<CheckpointError>,
}

/// Keeps the newest `keep` checkpoints (at least one) and the one of step `best`, and removes the others.
/// Removes nothing unless the newest verifies and is on the disk.
pub fn prune(run: &Path, keep: usize, best: Option<u64>) -> Result<Pruned> {
    let checkpoints = list_checkpoints(run);
    let kept: BTreeSet<u64> =
        checkpoints.iter().rev().take(keep.max(1)).map(|checkpoint| checkpoint.step).chain(best).collect();
    let surplus: Vec<_> = checkpoints.iter().filter(|checkpoint| !kept.contains(&checkpoint.step)).collect();
    let Some(newest) = checkpoints.last() else { return Ok(Pruned::default()) };
    let mut pruned = Pruned::default();
    if surplus.is_empty() {
        return Ok(pruned);
    }
    let folder = run.join(CHECKPOINT_FOLDER);
    let safe =
        || newest.verify().and_then(|_| files::sync_folder(&folder).map_err(io_error("sync", &folder)));
    if let Err(error) = safe() {
        pruned.kept_all = Some(error);
        return Ok(pruned);
    }
    for checkpoint in surplus {
        remove(checkpoint)?;
        pruned.removed.push(checkpoint.step);
    }
    Ok(pruned)
}

/// Renamed first, so that a half-removed checkpoint is never taken for a whole one.
fn remove(checkpoint: &Checkpoint) -> Result<()> {
    let aside = checkpoint.path.with_file_name(format!(".step-{}.removed.tmp", checkpoint.step));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    }
    fs::rename(&checkpoint.path, &aside).map_err(io_error("remove", &checkpoint.path))?;
    fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))
}

/// Removes what killed processes left of a run's files, half-written or half-removed, and restores what they were
/// replacing. Only for the process that holds the run's lock, before it writes there. Returns how many were removed.
pub fn sweep_debris(run: &Path) -> usize {
    let results = ResultForm::ALL.map(ResultForm::folder);
    files::sweep(run, &results) + files::sweep(&run.join(CHECKPOINT_FOLDER), &[])
}
