//! Checkpoints: written aside, published whole, checked before they are trusted, removed last.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::{remedy, shown};
use super::time::{self, millis};

/// Folder of a run's checkpoints.
pub const CHECKPOINT_FOLDER: &str = "checkpoints";

/// Name of the manifest in a checkpoint's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A manifest names a few dozen files; anything larger is not one.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// What can go wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused something.
    #[error("cannot {doing} `{}`: {source}{}", shown(path), remedy(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not hold what its manifest says.
    #[error("checkpoint `{}` is damaged: {what}; Luthier falls back to the one before it", shown(path))]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Which file, and what about it.
        what: String,
    },
}

type Result<T> = std::result::Result<T, CheckpointError>;

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { doing, path: path.to_owned(), source }
}

/// What a checkpoint's folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Optimiser updates made.
    pub step: u64,
    /// When it was written.
    #[serde(with = "millis")]
    pub created: Timestamp,
    /// Every file by name.
    pub files: IndexMap<String, ManifestEntry>,
    /// What the writer adds: position in the data, losses …
    #[serde(default)]
    pub notes: Value,
    /// SHA-256 over all of the above, so that a damaged manifest is found too.
    pub digest: String,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// Size.
    pub bytes: u64,
    /// Content, hexadecimal.
    pub sha256: String,
}

impl Manifest {
    fn digest_of(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{}\n{}\n{}\n", self.step, time::text(self.created), self.notes));
        for (name, entry) in &self.files {
            digest.update(format!("{name:?} {} {}\n", entry.bytes, entry.sha256));
        }
        hexadecimal(&digest.finalize())
    }

    /// Size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }
}

/// A published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Optimiser updates made.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl Checkpoint {
    /// The manifest, checked against itself but not against the files.
    pub fn manifest(&self) -> Result<Manifest> {
        let path = self.path.join(MANIFEST_FILE);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let mut text = Vec::new();
        file.take(MANIFEST_LIMIT).read_to_end(&mut text).map_err(io_error("read", &path))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| self.damaged(format!("{MANIFEST_FILE} is not a manifest ({error})")))?;
        if manifest.digest != manifest.digest_of() {
            return Err(self.damaged(format!("{MANIFEST_FILE} does not fit its own digest")));
        }
        if manifest.step != self.step {
            return Err(self.damaged(format!("{MANIFEST_FILE} is of step {}", manifest.step)));
        }
        Ok(manifest)
    }

    /// Reads every file and compares it with the manifest: only what passes may be loaded.
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

/// All published checkpoints of a run, by step. Nothing is verified.
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

/// The newest checkpoint that verifies, and why each newer one was passed over.
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

/// `step-N` with N in plain digits.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let plain =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name != MANIFEST_FILE && !name.contains(['/', '\0'])
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut digest).map_err(io_error("read", path))?;
    Ok(hexadecimal(&digest.finalize()))
}

/// Writes a checkpoint beside the published ones and publishes it whole: until [`CheckpointWriter::finish`]
/// returns, whatever happens leaves the checkpoints before it as they were. Removed when dropped unfinished.
pub struct CheckpointWriter {
    run: PathBuf,
    step: u64,
    aside: PathBuf,
    published: bool,
}

impl CheckpointWriter {
    /// Begins a checkpoint; its files go into [`CheckpointWriter::path`], directly, without folders.
    pub fn begin(run: &Path, step: u64) -> Result<Self> {
        let folder = run.join(CHECKPOINT_FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io_error("make", &folder))?;
        let aside = folder.join(format!(".step-{step}.{}.tmp", std::process::id()));
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
        }
        DirBuilder::new().mode(0o700).create(&aside).map_err(io_error("make", &aside))?;
        Ok(Self { run: run.to_owned(), step, aside, published: false })
    }

    /// The folder to write files into.
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// Syncs and hashes every file, writes the manifest, publishes the folder as `step-N` and syncs the
    /// folder above. An older `step-N` is replaced.
    pub fn finish(self, notes: Value) -> Result<Checkpoint> {
        self.finish_watched(notes, &mut |_| Ok(()))
    }

    /// `watch` is called before each stage; an error ends the work there, as a kill would.
    fn finish_watched(
        mut self,
        notes: Value,
        watch: &mut dyn FnMut(Stage) -> io::Result<()>,
    ) -> Result<Checkpoint> {
        let mut files = IndexMap::new();
        for name in self.file_names()? {
            let path = self.aside.join(&name);
            let mut stage = |stage| watch(stage).map_err(io_error("write", &path));
            stage(Stage::SyncFile)?;
            let file = File::open(&path).map_err(io_error("open", &path))?;
            file.sync_all().map_err(io_error("sync", &path))?;
            let bytes = file.metadata().map_err(io_error("read", &path))?.len();
            files.insert(name, ManifestEntry { bytes, sha256: hash_file(&path)? });
        }
        let mut manifest =
            Manifest { step: self.step, created: time::now(), files, notes, digest: String::new() };
        manifest.digest = manifest.digest_of();
        self.write_manifest(&manifest, watch)?;

        let folder = self.run.join(CHECKPOINT_FOLDER);
        let published = folder.join(format!("step-{}", self.step));
        let mut stage = |stage| watch(stage).map_err(io_error("publish", &published));
        stage(Stage::SyncFolder)?;
        sync_folder(&self.aside)?;
        stage(Stage::Publish)?;
        let replaced = exchange(&self.aside, &published).map_err(io_error("publish", &published))?;
        self.published = true;
        stage(Stage::SyncParent)?;
        sync_folder(&folder)?;
        stage(Stage::RemoveReplaced)?;
        if replaced {
            fs::remove_dir_all(&self.aside).map_err(io_error("remove", &self.aside))?;
        }
        Ok(Checkpoint { step: self.step, path: published })
    }

    fn file_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.aside).map_err(io_error("read", &self.aside))? {
            let entry = entry.map_err(io_error("read", &self.aside))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if !is_file || !is_plain_name(&name) {
                return Err(CheckpointError::Damaged {
                    path: self.aside.clone(),
                    what: format!("`{name}` is not a plain file"),
                });
            }
            names.push(name);
        }
        names.sort();
        Ok(names)
    }

    fn write_manifest(
        &self,
        manifest: &Manifest,
        watch: &mut dyn FnMut(Stage) -> io::Result<()>,
    ) -> Result<()> {
        let path = self.aside.join(MANIFEST_FILE);
        let failed = io_error("write", &path);
        let mut text = serde_json::to_vec_pretty(manifest).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        watch(Stage::WriteManifest).map_err(&failed)?;
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(&failed)?;
        let (first, second) = text.split_at(text.len() / 2);
        file.write_all(first).map_err(&failed)?;
        watch(Stage::HalfManifest).map_err(&failed)?;
        file.write_all(second).map_err(&failed)?;
        watch(Stage::SyncManifest).map_err(&failed)?;
        file.sync_all().map_err(&failed)
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.published {
            // What stays behind is swept at the next start.
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

/// Where a kill can fall while a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    SyncFile,
    WriteManifest,
    HalfManifest,
    SyncManifest,
    SyncFolder,
    Publish,
    SyncParent,
    RemoveReplaced,
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}

/// Moves `aside` to `published`; where that exists already, the two change places in one operation, and the
/// answer is `true`.
fn exchange(aside: &Path, published: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    if !published.exists() {
        return fs::rename(aside, published).map(|()| false);
    }
    match renameat_with(CWD, aside, CWD, published, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            // File systems such as NFS know no exchange: the old one is out of sight for a moment, and a
            // kill in it is mended by the next start's sweep.
            let old = aside.with_extension("old.tmp");
            fs::rename(published, &old)?;
            fs::rename(aside, published)?;
            fs::rename(&old, aside).map(|()| true)
        }
        Err(error) => Err(error.into()),
    }
}

/// What [`prune`] did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Steps whose checkpoints were removed.
    pub removed: Vec<u64>,
    /// Why nothing was removed: the newest checkpoint does not verify.
    pub kept_all: Option<CheckpointError>,
}

/// Keeps the newest `keep` checkpoints (at least one) and the one of step `best`, and removes the others,
/// but only once the newest verifies.
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

/// Out of sight first, so that a half-removed checkpoint never looks like one.
fn remove(checkpoint: &Checkpoint) -> Result<()> {
    let aside = checkpoint.path.with_file_name(format!(".step-{}.removed.tmp", checkpoint.step));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    }
    fs::rename(&checkpoint.path, &aside).map_err(io_error("remove", &checkpoint.path))?;
    fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))
}

/// Removes what killed processes left half-written or half-removed, and puts a checkpoint back that one was
/// just replacing. Only for the process that holds the run's lock. Returns how many folders were removed.
pub fn sweep_debris(run: &Path) -> usize {
    let folder = run.join(CHECKPOINT_FOLDER);
    let Ok(entries) = fs::read_dir(&folder) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix('.')) else { continue };
        if !rest.starts_with("step-") || !rest.ends_with(".tmp") {
            continue;
        }
        let published = rest.split('.').next().filter(|name| step_of(name).is_some());
        let put_back = published.is_some_and(|name| {
            let published = folder.join(name);
            rest.ends_with(".old.tmp") && !published.exists() && fs::rename(entry.path(), published).is_ok()
        });
        if !put_back && fs::remove_dir_all(entry.path()).is_ok() {
            removed += 1;
        }
    }
    removed
}
