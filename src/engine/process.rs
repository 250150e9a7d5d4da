//! Process-wide matters: signals, threads and the log.

use std::ffi::{OsStr, c_int};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luthier_core::text::clean;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ,
};
use signal_hook::flag;
use signal_hook::low_level::signal_name;
use tracing_subscriber::EnvFilter;

use crate::csrc;
use crate::error::Result;

/// How often an idle OpenMP thread checks for work before it sleeps. libgomp's default, 300,000, keeps a core
/// busy that another process could use; a thread that waits for its turn on that core then delays all others.
/// `bench/bench.py --beside` measures it, alone and with busy processes.
const SPIN_COUNT: &str = "1000";

/// Most bytes of a run's log before it begins anew; one older log is kept.
const LARGEST_LOG: u64 = 16 << 20;

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

/// Signals that ask to save and end. SLURM and other schedulers send SIGUSR1, SIGUSR2 or SIGXCPU as a warning before they
/// kill.
const ENDING: [c_int; 6] = [SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU];

/// Signals that must not end the work: a terminal or a reader is lost, or a file reached the limit of its size.
const HARMLESS: [c_int; 3] = [SIGHUP, SIGPIPE, SIGXFSZ];

fn asking() -> Vec<c_int> {
    ENDING.into_iter().chain([SIGQUIT]).collect()
}

/// Signals that ask this process to end. Work checks for them at points where it can stop cleanly.
#[derive(Debug, Clone, Default)]
pub struct Termination {
    /// The last signal of [`ENDING`] that was not counted yet; 0 if there is none.
    came: Arc<AtomicUsize>,
    at_once: Arc<AtomicBool>,
    counted: Arc<Mutex<Counted>>,
}

#[derive(Debug, Default)]
struct Counted {
    first: Option<&'static str>,
    count: usize,
}

impl Termination {
    /// Keeps the signals that ask to end until [`Termination::listen`], also where this process starts itself again: they
    /// would end it without a word. Whoever starts a run does the same, so that none comes too early.
    pub fn delay() -> Result<()> {
        csrc::hold_signals(&asking(), true)
    }

    /// Handles the signals that ask to end, and ignores those that must not end the work.
    pub fn listen() -> io::Result<Self> {
        let termination = Self::default();
        for signal in ENDING {
            flag::register_usize(signal, Arc::clone(&termination.came), signal as usize)?;
        }
        flag::register(SIGQUIT, Arc::clone(&termination.at_once))?;
        // A handler that does nothing, because ignoring needs unsafe code.
        let nothing = Arc::new(AtomicBool::new(false));
        for signal in HARMLESS {
            flag::register(signal, Arc::clone(&nothing))?;
        }
        csrc::hold_signals(&asking(), false).map_err(io::Error::other)?;
        Ok(termination)
    }

    /// Sets the flag from this process.
    pub fn raise(&self) {
        self.came.store(SIGTERM as usize, Ordering::Relaxed);
    }

    /// Whether the process was asked to end.
    pub fn asked(&self) -> bool {
        self.at_once() || self.count() > 0
    }

    /// Whether it was asked to end without saving (SIGQUIT).
    pub fn at_once(&self) -> bool {
        self.at_once.load(Ordering::Relaxed)
    }

    /// How often it was asked to save and end. Signals that came between two looks count as one.
    pub fn count(&self) -> usize {
        self.counted().count
    }

    /// The name of the signal that asked it to end: `SIGTERM`, `SIGUSR1` …
    pub fn signal(&self) -> Option<&'static str> {
        if self.at_once() { Some("SIGQUIT") } else { self.counted().first }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let signal = self.came.swap(0, Ordering::Relaxed);
        if signal > 0 {
            counted.count += 1;
            counted.first = counted.first.or(signal_name(signal as c_int)).or(Some("a signal"));
        }
        counted
    }
}

/// Writes log lines to standard error, filtered by `LUTHIER_LOG` (default: `info`). A line that cannot be written is
/// left out.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("LUTHIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    // Its report of a line that could not be written panics if that cannot be written either.
    if let Err(error) = lines.log_internal_errors(false).try_init() {
        say(&format!("logging was already set up: {error}"));
    }
}

/// Writes a sentence to standard error, if that is possible: a full disk must not end the process.
pub fn say(sentence: &str) {
    let _ = writeln!(io::stderr(), "luthier-engine: {}", clean(sentence));
}

/// Begins the log at `path` anew if it is long and this process writes to it; what it held is in the file `….1` then. Before
/// the next call it may become longer.
pub fn bound_log(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let log = path.metadata()?;
    let leads_there = |own: rustix::io::Result<rustix::fs::Stat>| {
        own.is_ok_and(|own| (own.st_dev, own.st_ino) == (log.dev(), log.ino()))
    };
    let [out, errors] = [rustix::fs::fstat(io::stdout()), rustix::fs::fstat(io::stderr())].map(leads_there);
    if log.len() <= LARGEST_LOG || !errors {
        return Ok(());
    }
    let new = begin_anew(&path)?;
    if out {
        rustix::stdio::dup2_stdout(&new)?;
    }
    Ok(rustix::stdio::dup2_stderr(&new)?)
}

/// Puts an empty file in the place of another, which is kept.
fn begin_anew(path: &Path) -> io::Result<File> {
    let named = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let (new, old) = (named(".tmp"), named(".1"));
    let file = File::options().append(true).create(true).mode(0o600).open(&new)?;
    fs::rename(path, old)?;
    fs::rename(&new, path)?;
    Ok(file)
}

/// `VmHWM` of this process, in bytes; 0 if the system does not report it: the largest resident memory since it started, or
/// since [`forget_peak_memory`].
pub fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}

/// Lets [`peak_memory`] begin again from what is resident, where the system can do that.
pub fn forget_peak_memory() {
    if let Err(error) = fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!(%error, "the peak of memory cannot be forgotten");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_begins_anew_keeps_one_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.log");
        fs::write(&path, "first").unwrap();
        for text in ["second", "third"] {
            begin_anew(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        let held = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((held("engine.log"), held("engine.log.1")), ("third".into(), "second".into()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

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
        let falls = fs::write("/proc/self/clear_refs", "5").is_ok();
        assert!(!falls || after + BYTES as u64 / 2 <= high, "{after} {high}");
    }
}
