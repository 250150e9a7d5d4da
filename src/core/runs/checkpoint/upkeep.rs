//! Removes old checkpoints and the leftovers of killed processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{CHECKPOINT_FOLDER, Checkpoint, CheckpointError, Result, io_error, list_checkpoints, step_of};

/// What [`prune`] did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Steps whose checkpoints were removed.
    pub removed: Vec<u64>,
    /// If the newest checkpoint does not verify, nothing is removed; this is why it does not.
    pub kept_all: Option<CheckpointError>,
}

/// Keeps the newest `keep` checkpoints (at least one) and the one of step `best`, and removes the others.
/// Removes nothing unless the newest verifies.
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
    if let Err(error) = newest.verify() {
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

/// Removes folders that a killed process left half-written or half-removed, and restores a checkpoint that it
/// was replacing. Only for the process that holds the run's lock. Returns the number of folders removed.
pub fn sweep_debris(run: &Path) -> usize {
    let folder = run.join(CHECKPOINT_FOLDER);
    let Ok(entries) = fs::read_dir(&folder) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp")) else {
            continue;
        };
        if !rest.starts_with("step-") {
            continue;
        }
        let published = rest.split('.').next().filter(|name| step_of(name).is_some());
        let is_replaced = rest.rsplit('.').next() == Some("old");
        let put_back = published.is_some_and(|name| {
            let published = folder.join(name);
            is_replaced && !published.exists() && fs::rename(entry.path(), published).is_ok()
        });
        if !put_back && fs::remove_dir_all(entry.path()).is_ok() {
            removed += 1;
        }
    }
    removed
}
