//! Entry point of `luthier`.

use std::process::ExitCode;

/// Tokenising a dataset allocates for each word: a quarter of its time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    luthier_workbench::cli::run()
}
