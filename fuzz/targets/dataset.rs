//! Dataset files of text. The first byte of the input says of which kind.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::config::Config;
use luthier_core::data::read_dataset;
use luthier_fuzz::{Scratch, settings};

const FILES: [&str; 5] = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"];

static PROJECT: LazyLock<(Scratch, [Config; 5])> = LazyLock::new(|| (Scratch::new(), FILES.map(settings)));

fuzz_target!(|input: &[u8]| {
    let Some((&which, content)) = input.split_first() else { return };
    let (scratch, configs) = &*PROJECT;
    let which = usize::from(which) % FILES.len();
    scratch.write(FILES[which], content);
    if let Ok(dataset) = read_dataset(&configs[which], scratch.path()) {
        assert!(dataset.rows.iter().enumerate().all(|(index, row)| row.is_ok_and(|row| row.index == index)));
    }
});
