//! The other files of a project: suite, verdicts, quarantine, edits, a run's status and a checkpoint's manifest.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::data::{Edits, Quarantine};
use luthier_core::eval::{Suite, VerdictStore};
use luthier_core::runs::{Host, Status, newest_valid};
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path().join("checkpoints/step-8")).expect("TMPDIR can be written");
    scratch
});

fuzz_target!(|input: &[u8]| {
    let project = SCRATCH.path();
    let _ = Suite::load(&SCRATCH.write("prompts.jsonl", input));
    SCRATCH.write("verdicts.jsonl", input);
    let _ = VerdictStore::of(project).load();
    SCRATCH.write("quarantine.json", input);
    let _ = Quarantine::load(project);
    SCRATCH.write("edits.jsonl", input);
    let _ = Edits::load(project);
    SCRATCH.write("status.json", input);
    let _ = Status::look(project, &Host::this());
    SCRATCH.write("checkpoints/step-8/manifest.json", input);
    let _ = newest_valid(project);
});
