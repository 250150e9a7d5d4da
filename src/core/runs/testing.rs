//! Helpers for tests of runs and of what is built on them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::RunDir;
use crate::config::Config;

/// How long a condition may take to come true on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A valid configuration that needs no files.
pub(crate) fn config(set: &[&str]) -> Config {
    let set: Vec<_> = set.iter().map(|set| (*set).to_owned()).collect();
    let text = "[model]\npath = \"model\"\n[data]\ntrain = \"train.jsonl\"\n";
    Config::parse(text, Path::new("luthier.toml"), &set).unwrap()
}

/// A run in a project of its own.
pub(crate) fn run() -> (tempfile::TempDir, RunDir) {
    let project = tempfile::tempdir().unwrap();
    let run = RunDir::create(project.path(), &config(&[]), Some("a")).unwrap();
    (project, run)
}

/// An executable shell script. `body` gets the engine's arguments as `$1` `$2` …
pub(crate) fn script(folder: &Path, name: &str, body: &str) -> PathBuf {
    let path = folder.join(name);
    let beside = folder.join(format!("{name}.new"));
    fs::write(&beside, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&beside, &path).unwrap();
    path
}
