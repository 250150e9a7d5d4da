//! The scripts' own tests, in Python.

use std::path::Path;
use std::process::Command;

/// Runs a file of tests of this folder, which has so many.
fn run(script: &str, tests: usize) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let done = Command::new("python3").arg("-B").arg(&script).output().expect("python3 starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains(&format!("Ran {tests} tests")), "{said}");
}

#[test]
fn setup_installs_the_torch_that_the_driver_runs() {
    run("setup.py", 5);
}

#[test]
fn a_gpu_is_checked_with_our_kernels() {
    run("gpu_check.py", 3);
}

#[test]
fn kernels_must_be_able_to_start() {
    run("kernels.py", 4);
}
