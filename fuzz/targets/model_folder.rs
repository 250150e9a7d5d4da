//! The small files of a model folder. The first byte of the input says which.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::model::ModelFiles;
use luthier_fuzz::Scratch;

const FILES: [&str; 5] = [
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::with_model);

fuzz_target!(|input: &[u8]| {
    let Some((&which, content)) = input.split_first() else { return };
    let name = FILES[usize::from(which) % FILES.len()];
    let path = SCRATCH.path().join(name);
    let before = fs::read(&path).ok();
    SCRATCH.write(name, content);
    if let Ok(model) = ModelFiles::open(SCRATCH.path()) {
        let vocabulary = model.architecture.vocabulary;
        assert!(model.special.eos_ids().iter().all(|&id| (id as usize) < vocabulary));
    }
    match before {
        Some(before) => drop(SCRATCH.write(name, &before)),
        None => fs::remove_file(&path).expect("it was written"),
    }
});
