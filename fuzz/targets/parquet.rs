//! Parquet files, which a library reads that is known to panic.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::config::Config;
use luthier_core::data::read_dataset;
use luthier_fuzz::{Scratch, allow_guarded_panics, settings};

static PROJECT: LazyLock<(Scratch, Config)> = LazyLock::new(|| (Scratch::new(), settings("a.parquet")));

fuzz_target!(init: allow_guarded_panics(), |input: &[u8]| {
    let (scratch, config) = &*PROJECT;
    scratch.write("a.parquet", input);
    let _ = read_dataset(config, scratch.path());
});
