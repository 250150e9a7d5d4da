//! Checkpoints: written to a temporary folder, published with one rename, and verified before they are
//! loaded.

mod upkeep;
mod writer;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::{remedy, shown};
use super::time::{self, millis};
use crate::hash::hex;
use crate::{files, json};

pub use upkeep::{Pruned, prune, sweep_debris};
pub use writer::CheckpointWriter;

/// The folder with a run's checkpoints.
pub const CHECKPOINT_FOLDER: &str = "checkpoints";

pub const MANIFEST_FILE: &str = "manifest.json";

/// A manifest lists a few dozen files; anything larger is not a manifest.
const MANIFEST_LIMIT: u64 = 16 << 20;
const MANIFEST_VALUES: usize = 1 << 16;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {doing} `{}`: {source}{}", shown(path), remedy(source))]
    Io {
        /// The operation that failed: `read`, `write` …
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Its files differ from its manifest.
    #[error("checkpoint `{}` is damaged: {what}; Luthier falls back to the one before it", shown(path))]
    Damaged {
        path: PathBuf,
        /// Which file, and what is wrong with it.
        what: String,
    },
}

type Result<T> = std::result::Result<T, CheckpointError>;

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { doing, path: path.to_owned(), source }
}

/// The manifest of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of optimiser updates made.
    pub step: u64,
    /// When the checkpoint was written.
    #[serde(with = "millis")]
    pub created: Timestamp,
    /// Every file, by name.
    pub files: IndexMap<String, ManifestEntry>,
    /// Data of the writer: position in the data, losses …
    #[serde(default)]
    pub notes: Value,
    /// SHA-256 over all fields above, so that a damaged manifest is detected too.
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    fn digest_of(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{}\n{}\n{}\n", self.step, time::text(self.created), self.notes));
        for (name, entry) in &self.files {
            digest.update(format!("{name:?} {} {}\n", entry.bytes, entry.sha256));
        }
        hex(digest.finalize())
    }

    /// Total size of the files.
    pub fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Number of optimiser updates made.
    pub step: u64,
    pub path: PathBuf,
}

impl Checkpoint {
    /// Reads the manifest and checks its own digest, but not the files.
    pub fn manifest(&self) -> Result<Manifest> {
        let path = self.path.join(MANIFEST_FILE);
        let text = files::read(&path, MANIFEST_LIMIT).map_err(io_error("read", &path))?;
        let manifest: Manifest = json::from_slice(&text, MANIFEST_VALUES)
            .map_err(|error| self.damaged(format!("{MANIFEST_FILE} is not a manifest ({error})")))?;
        if manifest.digest != manifest.digest_of() {
            return Err(self.damaged(format!("{MANIFEST_FILE} does not match its own digest")));
        }
        if manifest.step != self.step {
            return Err(self.damaged(format!("{MANIFEST_FILE} is of step {}", manifest.step)));
        }
        Ok(manifest)
    }

    /// Reads every file and compares it with the manifest. Load only a checkpoint that passes.
    pub fn verify(&self) -> Result<Manifest> {
        let manifest = self.manifest()?;
        for (name, entry) in &manifest.files {
            if !is_plain_name(name) {
                return Err(
                    self.damaged(format!("{MANIFEST_FILE} names `{}`", crate::text::clean_line(name)))
                );
            }
            let path = self.path.join(name);
            let found = fs::symlink_metadata(&path);
            if !found.is_ok_and(|found| found.is_file() && found.len() == entry.bytes) {
                return Err(self.damaged(format!("{name} is missing or not {} bytes long", entry.bytes)));
            }
            if hash_file(&path)? != entry.sha256 {
                return Err(self.damaged(format!("the content of {name} has changed")));
            }
        }
        Ok(manifest)
    }

    fn damaged(&self, what: String) -> CheckpointError {
        CheckpointError::Damaged { path: self.path.clone(), what }
    }
}

/// All published checkpoints of a run, by step, unverified.
pub fn list_checkpoints(run: &Path) -> Vec<Checkpoint> {
    let Ok(entries) = fs::read_dir(run.join(CHECKPOINT_FOLDER)) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let step = step_of(entry.file_name().to_str()?)?;
            Some(Checkpoint { step, path: entry.path() })
        })
        .collect();
    found.sort();
    found
}

/// The newest checkpoint that verifies, and why each newer one was skipped.
pub fn newest_valid(run: &Path) -> (Option<Checkpoint>, Vec<CheckpointError>) {
    let mut passed_over = Vec::new();
    for checkpoint in list_checkpoints(run).into_iter().rev() {
        match checkpoint.verify() {
            Ok(_) => return (Some(checkpoint), passed_over),
            Err(error) => passed_over.push(error),
        }
    }
    (None, passed_over)
}

/// The step in a folder name `step-N`, with N in plain digits.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let plain =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name != MANIFEST_FILE && !name.contains(['/', '\0'])
}

fn hash_file(path: &Path) -> Result<String> {
    let (mut file, _) = files::open(path).map_err(io_error("open", path))?;
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut digest).map_err(io_error("read", path))?;
    Ok(hex(digest.finalize()))
}
