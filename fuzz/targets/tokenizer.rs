//! `tokenizer.json`, which a library reads that is known to panic.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::data::Tokenizer;
use luthier_core::model::ModelFiles;
use luthier_fuzz::{Scratch, allow_guarded_panics};

static MODEL: LazyLock<(Scratch, ModelFiles)> = LazyLock::new(|| {
    let scratch = Scratch::with_model();
    let model = ModelFiles::open(scratch.path()).expect("the reference model is right");
    (scratch, model)
});

fuzz_target!(init: allow_guarded_panics(), |input: &[u8]| {
    let (scratch, model) = &*MODEL;
    scratch.write("tokenizer.json", input);
    let Ok(tokenizer) = Tokenizer::open(model) else { return };
    let text = "Hello, wörld! 日本 <|im_end|>\n";
    let Ok(encoding) = tokenizer.encode(text, true) else { return };
    assert!(encoding.offsets.iter().all(|&(start, end)| text.get(start..end).is_some()));
    let _ = tokenizer.decode(&encoding.ids, false);
    let mut stream = tokenizer.stream();
    for &id in &encoding.ids {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
});
