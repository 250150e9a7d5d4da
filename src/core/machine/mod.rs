//! The machine's cores, memory, processes, GPUs and disk, and how busy they are. Control groups are included,
//! because a process inside one may not use all that the machine has.

mod gpus;
mod logout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use serde::Serialize;

pub use gpus::{CudaVersion, Gpu, GpuProcess, Gpus, Sighting};
pub use logout::{LogOut, log_out};

use crate::text;

/// Memory in bytes, within the tightest control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The limit for this process and its group.
    pub total: u64,
    /// What can still be allocated without swapping; page cache counts as free.
    pub available: u64,
}

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Process {
    /// Resident memory in bytes; 0 for a zombie.
    pub resident_bytes: u64,
    /// The part of it that is no page of a file: what the system could not free by itself.
    pub own_bytes: u64,
    /// User and system time of all its threads so far, in seconds, without that of children.
    pub cpu_seconds: f64,
    /// When it started, in clock ticks since boot. With the boot id this distinguishes it from a later
    /// process with the same pid.
    pub start: u64,
}

/// User-space clock ticks per second in `/proc`: `USER_HZ`, which is 100 on every architecture that libtorch
/// supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// Cores this process may use, limited by scheduler affinity and control-group quota.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Whether the processor has instructions for bf16 products, which make bf16 faster than f32. Without them it widens each
/// number first.
pub fn multiplies_in_bf16() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| has_bf16_products(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
}

/// From the flags of the first processor in `/proc/cpuinfo`. Luthier's kernels use AVX512_BF16, libtorch's AMX.
fn has_bf16_products(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| matches!(flag, "avx512_bf16" | "amx_bf16"))
}

/// Memory this process may use; zeros if the system does not report it.
pub fn memory() -> Memory {
    memory_below(Path::new("/"))
}

/// Empty if the system does not report it.
pub fn host_name() -> String {
    kernel_line("hostname")
}

/// The random id of this boot; empty if the system does not report it.
pub fn boot_id() -> String {
    kernel_line("random/boot_id")
}

/// The process with this id; `None` if there is none.
pub fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_process(&stat, &status)
}

/// The states of a process's threads as in proc(5), a letter each: `S` sleeps, `D` waits for the disk, `T` was stopped by
/// a signal. Empty if there is no such process.
pub fn thread_states(pid: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            stat.rsplit_once(')')?.1.trim_start().chars().next()
        })
        .collect()
}

pub fn own_process() -> Option<Process> {
    process(std::process::id())
}

/// Bytes an unprivileged user may still write to the file system of `path`, which need not exist.
pub fn free_disk_bytes(path: &Path) -> io::Result<u64> {
    let mut place = std::path::absolute(path)?;
    loop {
        match rustix::fs::statvfs(&place) {
            Ok(found) => return Ok(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(rustix::io::Errno::NOENT) if place.pop() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn kernel_line(name: &str) -> String {
    let line = fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).unwrap_or_default();
    text::clean_line(line.trim()).into_owned()
}

/// Field numbers as in proc(5). The command name may contain spaces and brackets, so fields are counted from
/// the last bracket.
fn parse_process(stat: &str, status: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system, start) = (field(14)?, field(15)?, field(22)?);
    Some(Process {
        resident_bytes: kilobytes(status, "VmRSS:").unwrap_or(0),
        own_bytes: kilobytes(status, "RssAnon:").unwrap_or(0),
        cpu_seconds: user.saturating_add(system) as f64 / TICKS_PER_SECOND,
        start,
    })
}

/// Bytes in a line `Name:   123 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn memory_below(root: &Path) -> Memory {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let mut memory = Memory {
        total: kilobytes(&meminfo, "MemTotal:").unwrap_or(0),
        available: kilobytes(&meminfo, "MemAvailable:").unwrap_or(0),
    };
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let hierarchy = if controllers.is_empty() {
            &V2
        } else if controllers.split(',').any(|controller| controller == "memory") {
            &V1
        } else {
            continue;
        };
        for limit in hierarchy.limits(root, group) {
            memory.total = memory.total.min(limit.total);
            memory.available = memory.available.min(limit.available);
        }
    }
    memory
}

/// Where a control-group version has its memory figures.
struct Hierarchy {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Pages of files, which the system frees when memory is needed.
    reclaimable: [&'static str; 2],
}

const V2: Hierarchy = Hierarchy {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file ", "active_file "],
};

const V1: Hierarchy = Hierarchy {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

impl Hierarchy {
    /// The limits of `group` and of all groups around it. Inside a container the path named in `/proc` may
    /// not exist below the mount; the mount itself is then the container's own group.
    fn limits(&self, root: &Path, group: &str) -> Vec<Memory> {
        let mount = root.join(self.mount);
        let inside: PathBuf = Path::new(group)
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        let innermost = mount.join(inside);
        innermost
            .ancestors()
            .take_while(|folder| folder.starts_with(&mount))
            .filter_map(|folder| self.limit(folder))
            .collect()
    }

    fn limit(&self, folder: &Path) -> Option<Memory> {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        // `max` does not parse and means no limit.
        let total = number(self.limit)?;
        let usage = number(self.usage)?;
        let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let bytes = |line: &str| {
            self.reclaimable.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        let reclaimable = statistics.lines().filter_map(bytes).fold(0, u64::saturating_add);
        let available = total.saturating_sub(usage.saturating_sub(reclaimable));
        Some(Memory { total, available })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    pub(super) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n");

    #[test]
    fn a_processors_flags_say_whether_it_has_bf16_products() {
        let cpuinfo =
            |flags: &str| format!("processor\t: 0\nmodel name\t: some\nflags\t\t: fpu {flags} sse\n");
        assert!(has_bf16_products(&cpuinfo("avx512f avx512_bf16")));
        assert!(has_bf16_products(&cpuinfo("amx_bf16 amx_tile")));
        assert!(!has_bf16_products(&cpuinfo("avx512f avx512_vnni")));
        assert!(!has_bf16_products(""));
    }

    #[test]
    fn memory_without_groups_is_that_of_the_machine() {
        let root = tree(&[MEMINFO]);
        assert_eq!(memory_below(root.path()), Memory { total: 1000 * 1024, available: 600 * 1024 });
    }

    #[test]
    fn the_tightest_group_of_version_2_is_used_and_cache_is_free() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/memory.max", "500000\n"),
            ("sys/fs/cgroup/job/memory.current", "300000\n"),
            ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 70000\nactive_file 30000\n"),
            ("sys/fs/cgroup/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/job/step/memory.current", "5\n"),
        ]);
        assert_eq!(memory_below(root.path()), Memory { total: 500_000, available: 300_000 });
    }

    #[test]
    fn version_1_inside_a_container_uses_the_mount() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/../gone\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "390000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 7\nactive_file 7\ntotal_inactive_file 60000\ntotal_active_file 30000\n",
            ),
        ]);
        assert_eq!(memory_below(root.path()), Memory { total: 400_000, available: 100_000 });
    }

    #[test]
    fn a_group_without_limit_changes_nothing() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "390000\n"),
        ]);
        assert_eq!(memory_below(root.path()), Memory { total: 1000 * 1024, available: 600 * 1024 });
    }

    #[test]
    fn process_fields_count_from_the_last_bracket() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 2 3 4 250 50 9 9 20 0 1 0 12345 1 2 3";
        let process = parse_process(stat, "Name:\tx\nVmRSS:\t     20 kB\nRssAnon:\t  8 kB\n").unwrap();
        assert_eq!(
            process,
            Process { resident_bytes: 20_480, own_bytes: 8192, cpu_seconds: 3.0, start: 12_345 }
        );
        assert_eq!(parse_process("7 (a", ""), None);
        assert_eq!(parse_process("7 (a) S 1", ""), None);
    }

    #[test]
    fn this_process_is_alive_and_a_free_pid_is_not() {
        let own = own_process().unwrap();
        assert!(own.resident_bytes > 0 && own.start > 0);
        assert_eq!(process(u32::MAX), None);
        assert!(thread_states(std::process::id()).contains('R'));
        assert_eq!(thread_states(u32::MAX), "");
        let memory = memory();
        assert!(memory.total >= memory.available && memory.available > 0);
        assert!(cores() >= 1);
        assert!(!host_name().is_empty() && !boot_id().is_empty());
    }

    #[test]
    fn disk_space_of_a_missing_folder_is_its_parents() {
        let root = tempfile::tempdir().unwrap();
        assert!(free_disk_bytes(&root.path().join("not/yet/there")).unwrap() > 0);
    }
}
