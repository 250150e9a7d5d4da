//! Processes that are not children of the test.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Whether a process is alive; a zombie is not.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a process is alive whose command line has a path in the folder.
pub fn works_on(pid: u32, folder: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(&*folder.to_string_lossy())
}

/// Sends a signal, such as `INT`. Does nothing if the process has exited.
pub fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).output().unwrap();
    assert!(sent.status.success() || !is_alive(pid), "{}", String::from_utf8_lossy(&sent.stderr));
}
