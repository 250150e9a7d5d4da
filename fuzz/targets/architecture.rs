//! `config.json` up to the tensors that it asks for.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::model::{Settings, families};
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|input: &[u8]| {
    let Ok(settings) = Settings::read(&SCRATCH.write("config.json", input)) else { return };
    let Ok((_, architecture)) = families::of_config(&settings) else { return };
    assert!(!architecture.parameters().is_empty());
    assert!(
        architecture.linear_modules().iter().all(|module| module.in_features > 0 && module.out_features > 0)
    );
});
