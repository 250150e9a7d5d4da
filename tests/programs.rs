//! Paths of the programs under test and of the reference data.

use std::path::{Path, PathBuf};

pub fn luthier() -> PathBuf {
    program("luthier")
}

pub fn engine() -> PathBuf {
    program("luthier-engine")
}

/// A path in `tests/references`.
pub fn reference(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("references").join(path);
    assert!(path.exists(), "{} is missing from the repository", path.display());
    path
}

/// Test executables are in `target/PROFILE/deps`, programs in `target/PROFILE`.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(Path::parent).unwrap();
    let program = folder.join(name);
    assert!(
        program.is_file(),
        "{} is not built; run `cargo build --workspace --bins` first (with --release where the tests run so)",
        program.display()
    );
    program
}
