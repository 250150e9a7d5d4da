//! How the engine's OpenMP threads wait, and how many there are.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::process::Command;

use luthier_tests::engine;
use serde_json::Value;

const SETTINGS: [&str; 4] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"];

fn engine_with(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(engine());
    for setting in SETTINGS {
        command.env_remove(setting);
    }
    command.envs(environment.iter().copied());
    command
}

/// The spin count that libgomp reports. The last report is that of the process that does the work.
fn spin_count(environment: &[(&str, &str)]) -> String {
    let mut command = engine_with(environment);
    // A missing model ends the process soon after its start.
    command.env("OMP_DISPLAY_ENV", "VERBOSE").args(["verify", "no-model", "--reference", "no-reference"]);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let report = String::from_utf8(output.stderr).unwrap();
    let mut counts = report.lines().filter_map(|line| line.trim().strip_prefix("GOMP_SPINCOUNT = "));
    counts
        .next_back()
        .unwrap_or_else(|| panic!("libgomp reports no spin count: {report}"))
        .trim_matches('\'')
        .to_owned()
}

#[test]
fn threads_spin_briefly_unless_the_environment_decides() {
    assert_eq!(spin_count(&[]), "1000");
    assert_eq!(spin_count(&[("GOMP_SPINCOUNT", "777")]), "777");
    assert_eq!(spin_count(&[("OMP_WAIT_POLICY", "PASSIVE")]), "0");
}

#[test]
fn the_environment_can_set_the_number_of_threads() {
    let threads = |environment: &[(&str, &str)]| {
        let output = engine_with(environment).args(["doctor", "--json"]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["threads"].as_u64()
    };
    assert_eq!(threads(&[("OMP_NUM_THREADS", "1")]), Some(1));
    assert_eq!(threads(&[]), std::thread::available_parallelism().ok().map(|count| count.get() as u64));
}
