//! The header of a safetensors file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::model::safetensors::Header;
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|input: &[u8]| {
    let path = SCRATCH.write_with_data("model.safetensors", input);
    let Ok((file, header)) = Header::open(&path) else { return };
    let data: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(header.bytes + data, file.metadata().expect("it is open").len());
});
