//! An adapter folder. The first two bytes of the input say how long the settings are; the weights follow.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::model::AdapterFiles;
use luthier_core::model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let (config, weights) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    SCRATCH.write(CONFIG_FILE, config);
    let path = SCRATCH.write_with_data(WEIGHTS_FILE, weights);
    let Ok(files) = AdapterFiles::open(SCRATCH.path()) else { return };
    let size = path.metadata().expect("it was written").len();
    assert!(files.tensors.iter().all(|tensor| tensor.offset + tensor.bytes <= size));
});
