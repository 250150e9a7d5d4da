//! Entry point of `luthier`.

use std::process::ExitCode;

fn main() -> ExitCode {
    luthier_workbench::cli::run()
}
