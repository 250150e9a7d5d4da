//! What `make setup` installs: tests/setup.py, against a pip index in a folder.

use std::path::Path;
use std::process::Command;

#[test]
fn setup_installs_the_torch_that_the_driver_runs() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.py");
    let done = Command::new("python3").arg(&script).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("Ran 5 tests"), "{said}");
}
