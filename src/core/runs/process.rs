//! Process identity. A pid alone is not enough, since pids are reused.

use crate::machine;

/// Identifies a process even after its pid was reused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`, see proc(5)); 0 if unknown.
    pub start: u64,
    /// Host name.
    pub host: String,
    /// Boot id of that machine.
    pub boot_id: String,
}

/// A machine since its last boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    /// Random id of the boot.
    pub boot_id: String,
}

impl Host {
    pub fn this() -> Self {
        Self { name: machine::host_name(), boot_id: machine::boot_id() }
    }
}

impl ProcessIdentity {
    /// The calling process.
    pub fn this() -> Self {
        Self::of(std::process::id())
    }

    /// A process on this machine.
    pub fn of(pid: u32) -> Self {
        let host = Host::this();
        Self {
            pid,
            start: machine::process(pid).map_or(0, |process| process.start),
            host: host.name,
            boot_id: host.boot_id,
        }
    }
}

/// Whether the process with this pid and start time on this machine is still alive. A zombie holds no memory
/// and counts as dead.
pub fn is_alive(pid: u32, start: u64) -> bool {
    machine::process(pid).is_some_and(|process| process.resident_bytes > 0 && process.start == start)
}
