//! What the fuzz targets share: a folder to write their input into, since most readers open files.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use tempfile::TempDir;

/// A folder below `TMPDIR` that a target writes its input into, again and again.
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("TMPDIR can be written"))
    }

    /// A folder with copies of the files of a tiny reference model.
    pub fn with_model() -> Self {
        let scratch = Self::new();
        for entry in fs::read_dir(reference("tiny/llama")).expect("the reference model is there").flatten() {
            fs::copy(entry.path(), scratch.path().join(entry.file_name())).expect("TMPDIR can be written");
        }
        scratch
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, replacing what it held.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).expect("TMPDIR can be written");
        path
    }

    /// Writes a file whose last four bytes say how many zeros follow the others, up to a gibibyte of them: weights
    /// without weight, so that headers can claim what is there.
    pub fn write_with_data(&self, name: &str, content: &[u8]) -> PathBuf {
        let (header, zeros) = content.split_last_chunk::<4>().map_or((content, 0), |(header, zeros)| {
            (header, u64::from(u32::from_le_bytes(*zeros)) & ((1 << 30) - 1))
        });
        let path = self.path().join(name);
        let mut file = File::create(&path).expect("TMPDIR can be written");
        file.write_all(header).expect("TMPDIR can be written");
        file.set_len(header.len() as u64 + zeros).expect("TMPDIR can be written");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// A file below `tests/references`.
pub fn reference(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/references")).join(path)
}

/// A project's settings with one data file.
pub fn settings(train: &str) -> Config {
    let text = format!("[model]\npath = \"model\"\n[data]\ntrain = {train:?}\neval = 0\n");
    Config::parse(&text, Path::new("luthier.toml"), &[]).expect("these settings are right")
}

/// Lets panics pass that Luthier turns into errors, where a library it calls is known to have them. Everywhere else a
/// panic ends the target, as libFuzzer's hook has it.
pub fn allow_guarded_panics() {
    let aborting = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !luthier_core::panics::in_guarded_call() {
            aborting(panic);
        }
    }));
}
