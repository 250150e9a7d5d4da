//! Where the programs under test and the reference data lie.

use std::path::{Path, PathBuf};

/// The built `luthier`.
pub fn luthier() -> PathBuf {
    program("luthier")
}

/// The built `luthier-engine`.
pub fn engine() -> PathBuf {
    program("luthier-engine")
}

/// A path below `tests/references`.
pub fn reference(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("references").join(path);
    assert!(path.exists(), "{} is missing from the repository", path.display());
    path
}

/// Test executables lie in `target/PROFILE/deps`, programs in `target/PROFILE`.
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
