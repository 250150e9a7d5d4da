//! Entry point of `luthier`.

use std::process::ExitCode;

/// Tokenising a dataset allocates for each word, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    luthier_workbench::cli::run()
}
