//! The serving engine: connected to where one listens, started where none does, started again where it died.

use std::fmt;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luthier_core::config::ReviewSection;
use luthier_core::files;
use luthier_core::runs::serving::{SERVING_VERSION, Sampling, ServeReply, ServeRequest, ServingClient};
use luthier_core::runs::{RUNS_FOLDER, RunError, serving_socket_path};
use luthier_core::text::clean_line;
use rustix::process::{Pid, Signal, kill_process};

/// How long an engine may take to load libtorch and listen.
const LISTENS_WITHIN: Duration = Duration::from_mins(2);

/// How long the workbench waits for the engine's end when it closes.
const CLOSES_WITHIN: Duration = Duration::from_millis(500);

/// How often it is asked whether to go on while the engine is silent.
const LOOK: Duration = Duration::from_millis(50);

/// Answers to a greeting and to a load.
const READY: usize = 2;

/// How often an ending engine is looked at.
const STEP: Duration = Duration::from_millis(10);

/// How often a starting engine is tried to connect to.
const KNOCK: Duration = Duration::from_millis(50);

/// Lines of the engine's log shown when it ended.
const LOG_LINES: usize = 8;

/// Bytes at the end of the log that are looked at.
const LOG_TAIL: u64 = 16 * 1024;

/// Starts a serving engine for a project: the process, and the socket it will listen at.
pub type StartServing = Box<dyn Fn(&Path) -> Result<(Child, PathBuf), RunError> + Send + Sync>;

/// Why there is no conversation with the engine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// It is no longer wanted.
    #[error("the engine is no longer waited for")]
    Cancelled,
    /// It could not be started, or refused the model.
    #[error("{0}")]
    Failed(String),
    /// It went away before it had loaded the model. Another one may not.
    #[error("the engine died: {error}\n\n{log}")]
    Died {
        /// How that was noticed.
        error: String,
        /// The end of its log.
        log: String,
    },
}

impl From<RunError> for Unserved {
    fn from(error: RunError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Hears what is waited for now, where that is new, and says whether to go on.
pub type Waiting<'a> = dyn FnMut(Option<&str>) -> ControlFlow<()> + 'a;

fn go_on(answer: ControlFlow<()>) -> Result<(), Unserved> {
    if answer.is_break() { Err(Unserved::Cancelled) } else { Ok(()) }
}

/// An engine that has loaded a base model.
pub struct Served {
    /// Our end of the conversation.
    pub client: ServingClient,
    /// Fingerprint of the base weights that it has loaded.
    pub base: String,
}

/// How replies are sampled with these settings.
pub fn sampling(review: &ReviewSection) -> Sampling {
    Sampling {
        temperature: review.temperature,
        top_p: review.top_p,
        top_k: review.top_k,
        max_new_tokens: review.max_new_tokens,
    }
}

/// The project's serving engine.
pub struct Server {
    project: PathBuf,
    start: StartServing,
    /// The process started from here, if one was.
    child: Mutex<Option<Child>>,
    /// Length of the log when that process was started: what is above is about others.
    log_begins: AtomicU64,
    /// Whether the workbench is closing: nothing is started any more.
    closed: AtomicBool,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("project", &self.project).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

impl Server {
    /// The server of `project`; nothing is started yet.
    pub fn new(project: PathBuf, start: StartServing) -> Self {
        Self {
            project,
            start,
            child: Mutex::default(),
            log_begins: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process started from here, and starts no other, so that its memory is free for what comes next.
    /// Another workbench that used it starts one of its own.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.end(CLOSES_WITHIN);
    }

    /// Ends the process started from here, waiting at most `patience` for its end: one in the middle of
    /// something ends after it.
    pub fn end(&self, patience: Duration) {
        let Some(mut child) = self.child().take() else { return };
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let deadline = Instant::now() + patience;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(STEP);
        }
    }

    /// Connects to the engine, starting one where none listens, and lets it load the base model of the run in the
    /// folder `run`.
    pub fn serve(&self, run: &Path, progress: &mut Waiting) -> Result<Served, Unserved> {
        let mut client = self.connect(progress)?;
        let died = |error: RunError| Unserved::Died { error: error.to_string(), log: self.log() };
        client.sender.send(&ServeRequest::Hello { version: SERVING_VERSION }).map_err(died)?;
        client.sender.send(&ServeRequest::Load { run: Some(run.to_owned()) }).map_err(died)?;
        go_on(progress(Some("waiting for the engine")))?;
        let mut ready = 0;
        let mut base = String::new();
        while ready < READY {
            let message = match client.receiver.receive(LOOK).map_err(died)? {
                Some(ServeReply::Ready { base_fingerprint, .. }) => {
                    base = base_fingerprint;
                    ready += 1;
                    None
                }
                Some(ServeReply::Loading { message }) => Some(message),
                Some(ServeReply::Error { message, .. }) => return Err(Unserved::Failed(message)),
                Some(ServeReply::Token { .. } | ServeReply::Done { .. }) | None => None,
            };
            go_on(progress(message.as_deref()))?;
        }
        Ok(Served { client, base })
    }

    fn connect(&self, progress: &mut Waiting) -> Result<ServingClient, Unserved> {
        let mut socket = serving_socket_path(&self.project)?;
        if let Ok(client) = ServingClient::connect(&socket) {
            return Ok(client);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Unserved::Cancelled);
        }
        go_on(progress(Some("starting the engine")))?;
        if self.ended().is_some() {
            // Wait for one that is still starting; replace one that has ended.
            *self.child() = None;
        }
        if self.child().is_none() {
            let written = fs::metadata(self.log_path()).map_or(0, |found| found.len());
            self.log_begins.store(written, Ordering::Release);
            let (child, listens_at) = (self.start)(&self.project)?;
            *self.child() = Some(child);
            socket = listens_at;
        }
        let deadline = Instant::now() + LISTENS_WITHIN;
        loop {
            match ServingClient::connect(&socket) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() >= deadline => {
                    return Err(Unserved::Failed(format!("{error}\n\n{}", self.log())));
                }
                Err(_) => {}
            }
            if let Some(how) = self.ended() {
                *self.child() = None;
                return Err(Unserved::Failed(format!(
                    "The engine ended as it started: {how}.\n\n{}",
                    self.log()
                )));
            }
            go_on(progress(None))?;
            thread::sleep(KNOCK);
        }
    }

    /// How the process started from here ended, if it did.
    fn ended(&self) -> Option<String> {
        match self.child().as_mut()?.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(format!("it cannot be watched: {error}")),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.project.join(RUNS_FOLDER).join("serve.log")
    }

    /// The end of what the engine printed, with where the rest is.
    pub fn log(&self) -> String {
        let path = self.log_path();
        let shown = clean_line(&path.display().to_string()).into_owned();
        let lines = tail(&path, self.log_begins.load(Ordering::Acquire)).unwrap_or_default();
        if lines.is_empty() {
            format!("Its log is {shown}")
        } else {
            format!("{}\n\n({shown})", lines.join("\n"))
        }
    }
}

/// The last lines of a log after its first `before` bytes.
fn tail(path: &Path, before: u64) -> std::io::Result<Vec<String>> {
    let (mut file, length) = files::open(path)?;
    let cut = length.saturating_sub(LOG_TAIL);
    let begin = cut.max(before);
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().skip(usize::from(cut > before)).filter(|line| !line.trim().is_empty());
    let lines: Vec<String> = lines.map(|line| clean_line(line).into_owned()).collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].to_vec())
}
