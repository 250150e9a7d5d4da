//! The client of the control socket, used by the workbench.

use std::path::Path;
use std::time::{Duration, Instant};

use super::RunError;
use super::directory::RunDir;
use super::event::JournalEvent;
use super::process::Host;
use super::protocol::{PROTOCOL_VERSION, Reply, Request};
use super::socket::{LineReader, LineWriter, connect_checked};
use super::status::Status;

/// The server answers a greeting without the engine, so this can be short.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Default timeout of a request. A step on a slow machine can take that long.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a live run; each request gets one reply.
pub struct Client {
    writer: LineWriter,
    reader: LineReader,
    /// What the run sent when we connected.
    pub greeting: Greeting,
}

/// What a run sends to a client that connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub run: String,
    /// Process id of the engine.
    pub pid: u32,
    pub engine: String,
}

impl Client {
    /// Connects to the run with this status. Take the status from [`RunDir::status`], which detects a dead
    /// run.
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

    pub fn connect_to(socket: &Path) -> Result<Self, RunError> {
        let stream = connect_checked(socket)?;
        let mut writer = LineWriter::new(&stream)?;
        let mut reader = LineReader::new(stream);
        let sent = writer.send(&Request::Hello { version: PROTOCOL_VERSION });
        // A run that refuses a client may have closed the connection before our greeting; its reason comes
        // first.
        let answer = reader.receive(Some(HELLO_TIMEOUT)).map_err(|unheard| sent.err().unwrap_or(unheard))?;
        match answer {
            Some(Reply::Hello { run, pid, engine, .. }) => {
                Ok(Self { writer, reader, greeting: Greeting { run, pid, engine } })
            }
            Some(Reply::Error { message }) => Err(RunError::Answer(message)),
            Some(_) => Err(RunError::Socket("the other side does not speak the control protocol".to_owned())),
            None => Err(RunError::NoAnswer { seconds: HELLO_TIMEOUT.as_secs(), remark: None }),
        }
    }

    /// Sends a request and waits for the reply: its message, or the run's refusal as an error.
    pub fn request(&mut self, request: &Request, timeout: Duration) -> Result<String, RunError> {
        self.writer.send(request)?;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reader.receive(Some(left))? {
                Some(Reply::Ok { message }) => return Ok(message),
                Some(Reply::Error { message }) => return Err(RunError::Answer(message)),
                Some(Reply::Hello { .. } | Reply::Event { .. } | Reply::Missed { .. }) => {}
                None => return Err(RunError::NoAnswer { seconds: timeout.as_secs(), remark: None }),
            }
        }
    }

    /// Turns the connection into a stream of the run's events from now on.
    pub fn subscribe(mut self) -> Result<Subscription, RunError> {
        self.request(&Request::Subscribe, HELLO_TIMEOUT)?;
        Ok(Subscription(self.reader))
    }
}

/// The events of a live run. Use it only as a hint that there is something new: slow readers miss events, but
/// the journal has all of them.
pub struct Subscription(LineReader);

#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Event(Box<JournalEvent>),
    /// This many events were dropped.
    Missed(u64),
}

impl Subscription {
    /// The next event, or `Ok(None)` if none came within `timeout`. An error if the run is gone.
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

/// Connects to a run and sends one request.
pub fn ask(run: &RunDir, request: &Request) -> Result<String, RunError> {
    let asked =
        Client::connect(&run.status()?).and_then(|mut client| client.request(request, REQUEST_TIMEOUT));
    asked.map_err(|error| match error {
        RunError::NoAnswer { seconds, .. } => {
            RunError::NoAnswer { seconds, remark: run.status().ok().and_then(|status| status.remark) }
        }
        other => other,
    })
}
