//! Which process is which: a pid alone is not enough, since pids are used again.

use crate::machine;

/// A process that cannot be mistaken for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`, see proc(5)); 0 if unknown.
    pub start: u64,
    /// Machine.
    pub host: String,
    /// Boot of that machine.
    pub boot_id: String,
}

/// A machine in one of its boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Random id of the boot.
    pub boot_id: String,
}

impl Host {
    /// The machine we are on.
    pub fn this() -> Self {
        Self { name: machine::host_name(), boot_id: machine::boot_id() }
    }
}

impl ProcessIdentity {
    /// The calling process.
    pub fn this() -> Self {
        Self::of(std::process::id())
    }

    /// A process of this machine.
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

/// Whether the process that had this pid and start time on this machine still lives. A zombie, which holds
/// no memory, does not.
pub fn is_alive(pid: u32, start: u64) -> bool {
    machine::process(pid)
        .is_some_and(|process| process.resident_bytes > 0 && (start == 0 || process.start == start))
}
