//! A base model in one GGUF file, up to its tokenizer.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::data::Tokenizer;
use luthier_core::model::ModelFiles;
use luthier_fuzz::{Scratch, allow_guarded_panics};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(init: allow_guarded_panics(), |input: &[u8]| {
    let path = SCRATCH.write_with_data("model.gguf", input);
    let Ok(model) = ModelFiles::open(&path) else { return };
    let size = path.metadata().expect("it was written").len();
    assert!(model.tensors.values().all(|tensor| tensor.offset + tensor.bytes <= size));
    if let Ok(tokenizer) = Tokenizer::open(&model)
        && let Ok(encoding) = tokenizer.encode("Hello, wörld! 日本", true)
    {
        let _ = tokenizer.decode(&encoding.ids, false);
    }
});
