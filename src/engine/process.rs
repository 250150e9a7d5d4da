//! What belongs to the process as a whole: signals and where log lines go.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use tracing_subscriber::EnvFilter;

/// How many times an idle OpenMP thread looks for work before it sleeps. libgomp's own 300,000 keep a core busy that
/// another process could use, and a thread that waits for its turn on that core then holds up all the others.
/// `bench/bench.py --beside` measures it, alone and beside busy processes.
const SPIN_COUNT: &str = "10000";

/// Settings of OpenMP with which a person says how threads wait.
const WAIT_SETTINGS: [&str; 3] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"];

/// Bounds how long OpenMP's threads wait busily, unless the environment says how they wait. OpenMP reads its settings
/// when it is loaded, before `main`, so the process starts itself once more, with the same arguments and process id.
/// Call before anything else; returns where there is nothing to set.
pub fn bound_busy_waiting() {
    if WAIT_SETTINGS.iter().any(|name| is_set(name)) {
        return;
    }
    let Ok(executable) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(executable);
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env("GOMP_SPINCOUNT", SPIN_COUNT);
    let error = command.exec();
    tracing::warn!(
        "OpenMP's threads wait as they do by default: this process could not start itself again: {error}"
    );
}

/// Whether the environment says how many threads OpenMP may use.
pub fn threads_are_set() -> bool {
    is_set("OMP_NUM_THREADS")
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value != OsStr::new(""))
}

/// A flag that SIGTERM and SIGINT raise. The work looks at it where it can stop cleanly.
#[derive(Debug, Clone, Default)]
pub struct Termination {
    raised: Arc<AtomicBool>,
}

impl Termination {
    /// Takes over SIGTERM and SIGINT, and lets SIGHUP and SIGPIPE do nothing: losing a terminal or a
    /// reader must not end the work.
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

    /// Raises the flag from within.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Relaxed);
    }

    /// True once the process has been asked to end.
    pub fn asked(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }
}

/// Sends log lines to standard error, filtered by `LUTHIER_LOG` (default: `info`).
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("LUTHIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let outcome =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
    if let Err(error) = outcome {
        eprintln!("luthier-engine: logging was already set up: {error}");
    }
}

/// `VmHWM` of this process, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}
