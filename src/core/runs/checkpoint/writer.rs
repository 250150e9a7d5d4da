//! Writes a checkpoint so that a crash at any moment leaves the earlier ones intact.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use super::{
    CHECKPOINT_FOLDER, Checkpoint, CheckpointError, MANIFEST_FILE, Manifest, ManifestEntry, Result,
    hash_file, io_error, is_plain_name, time,
};
use crate::files;

/// Writes a checkpoint in a temporary folder and publishes it with one rename. Until
/// [`CheckpointWriter::finish`] returns, the earlier checkpoints are unchanged. Dropping the writer
/// unfinished removes the folder.
pub struct CheckpointWriter {
    run: PathBuf,
    step: u64,
    aside: PathBuf,
    published: bool,
}

impl CheckpointWriter {
    /// Begins a checkpoint. The caller writes its files directly into [`CheckpointWriter::path`], without
    /// subfolders.
    pub fn begin(run: &Path, step: u64) -> Result<Self> {
        let folder = run.join(CHECKPOINT_FOLDER);
        if !folder.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(io_error("make", &folder))?;
            files::sync_folder(run).map_err(io_error("sync", run))?;
        }
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

    /// Syncs and hashes every file, writes the manifest, renames the folder to `step-N` and syncs the parent
    /// folder. An older `step-N` is replaced. A failure after the renaming is none of the checkpoint's, which is in
    /// place: it is logged, and older ones stay until the folder can be synced.
    pub fn finish(self, notes: Value) -> Result<Checkpoint> {
        self.finish_watched(notes, &mut |_| Ok(()))
    }

    /// `watch` is called before each stage. An error that it returns is that of the stage.
    pub(super) fn finish_watched(
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
        files::sync_folder(&self.aside).map_err(io_error("sync", &self.aside))?;
        stage(Stage::Publish)?;
        let replaced = files::exchange(&self.aside, &published).map_err(io_error("publish", &published))?;
        self.published = true;
        let synced = stage(Stage::SyncParent)
            .and_then(|()| files::sync_folder(&folder).map_err(io_error("sync", &folder)));
        if let Err(error) = synced {
            tracing::warn!(%error, step = self.step, "the checkpoint is in place, but may not survive a crash of the machine");
        }
        let removed = stage(Stage::RemoveReplaced).and_then(|()| {
            if !replaced {
                return Ok(());
            }
            fs::remove_dir_all(&self.aside).map_err(io_error("remove", &self.aside))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "the checkpoint that was replaced is removed at the next start");
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
            // Leftovers are removed at the next start.
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

/// The points at which a kill can interrupt the writing of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    SyncFile,
    WriteManifest,
    HalfManifest,
    SyncManifest,
    SyncFolder,
    Publish,
    SyncParent,
    RemoveReplaced,
}
