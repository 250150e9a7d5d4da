//! Process-wide matters: signals, threads and the log.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use tracing_subscriber::EnvFilter;

/// How often an idle OpenMP thread checks for work before it sleeps. libgomp's default, 300,000, keeps a core
/// busy that another process could use; a thread that waits for its turn on that core then delays all others.
/// `bench/bench.py --beside` measures it, alone and with busy processes.
const SPIN_COUNT: &str = "1000";

/// OpenMP's settings with which a user says how threads wait.
const WAIT_SETTINGS: [&str; 3] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"];

/// The variable that limits how long OpenMP's threads wait busily, unless the environment already says how they wait.
pub fn bound_busy_waiting() -> Option<(&'static str, String)> {
    let is_said = WAIT_SETTINGS.iter().any(|name| is_set(name));
    (!is_said).then(|| ("GOMP_SPINCOUNT", SPIN_COUNT.to_owned()))
}

/// Starts this process once more with other variables, the same arguments and the same process id: OpenMP reads its
/// settings when it is loaded, before `main`, and CUDA its own when it starts. Call before anything else. Returns if there
/// is nothing to set.
pub fn start_again_with(variables: &[(&'static str, String)]) {
    if variables.is_empty() {
        return;
    }
    let Ok(executable) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(executable);
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let error = command.exec();
    tracing::warn!(
        "the settings of OpenMP and CUDA stay as they are, because this process could not restart itself: {error}"
    );
}

/// Whether the environment sets the number of OpenMP threads.
pub fn threads_are_set() -> bool {
    is_set("OMP_NUM_THREADS")
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value != OsStr::new(""))
}

/// A flag that SIGTERM and SIGINT set. Work checks it at points where it can stop cleanly.
#[derive(Debug, Clone, Default)]
pub struct Termination {
    raised: Arc<AtomicBool>,
}

impl Termination {
    /// Handles SIGTERM and SIGINT, and ignores SIGHUP and SIGPIPE: losing a terminal or a reader must not end
    /// the work.
    pub fn listen() -> io::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&raised))?;
        }
        let nothing = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGPIPE] {
            signal_hook::flag::register(signal, Arc::clone(&nothing))?;
        }
        Ok(Self { raised })
    }

    /// Sets the flag from this process.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Relaxed);
    }

    /// Whether the process was asked to end.
    pub fn asked(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }
}

/// Writes log lines to standard error, filtered by `LUTHIER_LOG` (default: `info`).
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("LUTHIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let outcome =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
    if let Err(error) = outcome {
        eprintln!("luthier-engine: logging was already set up: {error}");
    }
}

/// `VmHWM` of this process, in bytes; 0 if the system does not report it: the largest resident memory since it started, or
/// since [`forget_peak_memory`].
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}

/// Lets [`peak_memory`] begin again from what is resident, where the system can do that.
pub fn forget_peak_memory() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!(%error, "the peak of memory cannot be forgotten");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_seen_and_can_be_forgotten() {
        const BYTES: usize = 1 << 30;
        let before = peak_memory();
        drop(vec![1_u8; BYTES]);
        let high = peak_memory();
        assert!(before > 0 && high >= BYTES as u64, "{before} {high}");
        forget_peak_memory();
        let after = peak_memory();
        // Other tests may take memory meanwhile, but not half of that.
        let falls = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        assert!(!falls || after + BYTES as u64 / 2 <= high, "{after} {high}");
    }
}
