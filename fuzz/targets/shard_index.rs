//! The index of a model in several files: whatever it names, only files of its folder are opened.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::model::ModelFiles;
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::with_model();
    let (whole, shard) = ("model.safetensors", "model-00001-of-00001.safetensors");
    fs::rename(scratch.path().join(whole), scratch.path().join(shard)).expect("TMPDIR can be written");
    scratch
});

fuzz_target!(|input: &[u8]| {
    SCRATCH.write("model.safetensors.index.json", input);
    let Ok(model) = ModelFiles::open(SCRATCH.path()) else { return };
    let inside = SCRATCH.path().canonicalize().expect("it is there");
    assert!(model.files.iter().all(|file| file.canonicalize().is_ok_and(|file| file.starts_with(&inside))));
});
