//! The files of the base model, which stay mapped while a run uses them.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use luthier_core::runs::{LAST_WORDS_FILE, PREPARED_WORDS_FILE, RunDir};
use luthier_core::text::clean_line;

use crate::csrc;

/// Finds out when the base model's files are changed under a run.
#[derive(Default)]
pub struct MappedFiles {
    files: Vec<(PathBuf, Option<Seen>)>,
}

/// What tells one content of a file from another: its inode, size in bytes, and modification time with its nanoseconds.
type Seen = (u64, u64, i64, i64);

impl MappedFiles {
    pub fn see(files: &[PathBuf]) -> Self {
        Self { files: files.iter().map(|path| (path.clone(), seen(path))).collect() }
    }

    /// The files that changed since the last call, one sentence each.
    pub fn changed(&mut self) -> Vec<String> {
        let mut changes = Vec::new();
        for (path, before) in &mut self.files {
            let now = seen(path);
            if now != *before {
                changes.push(sentence(path, *before, now));
                *before = now;
            }
        }
        changes
    }
}

fn seen(path: &Path) -> Option<Seen> {
    let of = |found: Metadata| (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
    fs::metadata(path).ok().map(of)
}

fn sentence(path: &Path, before: Option<Seen>, now: Option<Seen>) -> String {
    let path = path.display();
    match (before, now) {
        (Some((before, ..)), Some((now, ..))) if before != now => format!(
            "{path}, a file of the base model, was replaced; the run continues with the old one, but cannot be resumed \
             with another"
        ),
        (_, None) => format!(
            "{path}, a file of the base model, was removed; the run continues with it, but cannot be resumed without it"
        ),
        (_, Some((_, bytes, ..))) => format!(
            "{path}, a file of the base model, was written to while the run uses it (it has {bytes} bytes now): what is \
             trained since may be worth nothing; stop the run, restore the file, and resume from a checkpoint before"
        ),
    }
}

/// Last words for a run whose base model is cut: the system then ends the process. They are taken back when dropped.
pub struct LastWords {
    prepared: PathBuf,
}

impl LastWords {
    pub fn prepare(run: &RunDir) -> Self {
        let config = Config::load_file(&run.config_path(), &[]).ok();
        let model = config.map(|config| format!(" (model.path = {})", config.model.path)).unwrap_or_default();
        let sentence = format!(
            "the process received SIGBUS: a file that it had mapped was cut or cannot be read, most likely one of the base \
             model{}",
            clean_line(&model)
        );
        let run = run.path();
        let prepared = run.join(PREPARED_WORDS_FILE);
        if let Err(error) = fs::write(&prepared, &sentence) {
            tracing::debug!(%error, "the last words cannot be prepared");
        }
        if let Err(error) = csrc::on_bus_error(&sentence, &prepared, &run.join(LAST_WORDS_FILE)) {
            tracing::debug!(%error, "there will be no last words");
        }
        Self { prepared }
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        // It may be gone with the run's folder.
        let _ = fs::remove_file(&self.prepared);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn each_change_of_a_file_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::write(path, "weights").unwrap();
        }
        let mut files = MappedFiles::see(&paths);
        assert!(files.changed().is_empty());

        File::options().append(true).open(&paths[1]).unwrap().write_all(b"!").unwrap();
        let [change] = &files.changed()[..] else { panic!() };
        assert!(
            change.contains("/b,") && change.contains("written to") && change.contains("8 bytes"),
            "{change}"
        );
        assert!(files.changed().is_empty());

        File::options().write(true).open(&paths[0]).unwrap().set_len(2).unwrap();
        assert!(files.changed()[0].contains("2 bytes"));
        fs::write(folder.path().join("new"), "weights").unwrap();
        fs::rename(folder.path().join("new"), &paths[0]).unwrap();
        assert!(files.changed()[0].contains("was replaced"));
        fs::remove_file(&paths[0]).unwrap();
        assert!(files.changed()[0].contains("was removed"));
        assert!(files.changed().is_empty());
    }
}
