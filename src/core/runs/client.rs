//! The workbench's end of the control socket.

use std::path::Path;
use std::time::{Duration, Instant};

use super::RunError;
use super::directory::RunDir;
use super::event::Event;
use super::process::Host;
use super::protocol::{PROTOCOL_VERSION, Reply, Request};
use super::socket::{LineReader, LineWriter, connect_checked};
use super::status::Status;

/// How long a greeting may take: the server answers it without the engine's help.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a run has to answer a request by default. A step on a slow machine can take that long.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A conversation with a live run: one request, one answer.
pub struct Client {
    writer: LineWriter,
    reader: LineReader,
    /// What the run said of itself.
    pub greeting: Greeting,
}

/// What a run says of itself when a client connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The run's id.
    pub run: String,
    /// The engine's process.
    pub pid: u32,
    /// The engine's version.
    pub engine: String,
}

impl Client {
    /// Connects to the run that stands so. Take the status from [`RunDir::status`], so that a dead run is
    /// known as such.
    pub fn connect(status: &Status) -> Result<Self, RunError> {
        let host = Host::this().name;
        if !status.state.is_live() {
            return Err(RunError::Socket(format!("no process works on this run: it is {}", status.state)));
        }
        if status.host != host {
            return Err(RunError::Socket(format!(
                "the run is on {}; control it there, or edit its config.toml",
                crate::text::clean_line(&status.host)
            )));
        }
        let socket = status.socket.as_deref().ok_or_else(|| {
            RunError::Socket("the run has no control socket yet: it is still starting".to_owned())
        })?;
        Self::connect_to(socket)
    }

    /// Connects to a control socket.
    pub fn connect_to(socket: &Path) -> Result<Self, RunError> {
        let stream = connect_checked(socket)?;
        let mut writer = LineWriter::new(&stream)?;
        let mut reader = LineReader::new(stream);
        let sent = writer.send(&Request::Hello { version: PROTOCOL_VERSION });
        // A run that turns its client away may have hung up before the greeting: why comes first.
        let answer = reader.receive(Some(HELLO_TIMEOUT)).map_err(|unheard| sent.err().unwrap_or(unheard))?;
        match answer {
            Some(Reply::Hello { run, pid, engine, .. }) => {
                Ok(Self { writer, reader, greeting: Greeting { run, pid, engine } })
            }
            Some(Reply::Error { message }) => Err(RunError::Answer(message)),
            Some(_) => Err(RunError::Socket("the other side does not speak the control protocol".to_owned())),
            None => Err(RunError::NoAnswer { seconds: HELLO_TIMEOUT.as_secs() }),
        }
    }

    /// Asks, and waits for the answer: its message, or the run's refusal as an error.
    pub fn request(&mut self, request: &Request, timeout: Duration) -> Result<String, RunError> {
        self.writer.send(request)?;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reader.receive(Some(left))? {
                Some(Reply::Ok { message }) => return Ok(message),
                Some(Reply::Error { message }) => return Err(RunError::Answer(message)),
                Some(Reply::Hello { .. } | Reply::Event { .. } | Reply::Missed { .. }) => {}
                None => return Err(RunError::NoAnswer { seconds: timeout.as_secs() }),
            }
        }
    }

    /// Turns the conversation into a stream of the run's events from now on.
    pub fn subscribe(mut self) -> Result<Subscription, RunError> {
        self.request(&Request::Subscribe, HELLO_TIMEOUT)?;
        Ok(Subscription(self.reader))
    }
}

/// The events of a live run. Only a hint that there is something new: slow readers miss events, the journal
/// has all of them.
pub struct Subscription(LineReader);

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Box<Event>),
    /// That many events were dropped.
    Missed(u64),
}

impl Subscription {
    /// What comes next, or `Ok(None)` where nothing came within `timeout`. An error where the run is gone.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Heard>, RunError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.0.receive(Some(left))? {
                Some(Reply::Event { event }) => return Ok(Some(Heard::Event(event))),
                Some(Reply::Missed { events }) => return Ok(Some(Heard::Missed(events))),
                Some(Reply::Hello { .. } | Reply::Ok { .. } | Reply::Error { .. }) => {}
                None => return Ok(None),
            }
        }
    }
}

/// Asks a run one thing over its control socket.
pub fn ask(run: &RunDir, request: &Request) -> Result<String, RunError> {
    Client::connect(&run.status()?)?.request(request, REQUEST_TIMEOUT)
}
