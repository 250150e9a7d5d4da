//! The server of the control socket, used by the engine.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::RunError;
use super::directory::RunDir;
use super::event::JournalEvent;
use super::protocol::{PROTOCOL_VERSION, Reply, Request};
use super::socket::{
    Closer, LineReader, LineWriter, OwnListener, Peer, control_socket_path, sweep_stale_sockets,
};

/// Most clients at the same time.
const CLIENTS: usize = 32;

/// Most requests that wait for the engine.
const WAITING_REQUESTS: usize = 64;

/// Most events that wait for a slow subscriber; beyond that the oldest are dropped.
const WAITING_EVENTS: usize = 256;

/// A client that sends nothing for this long after connecting is disconnected.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that the engine must answer.
#[derive(Debug)]
pub struct Call {
    /// Never `Hello` or `Subscribe`, which the server answers itself.
    pub request: Request,
    /// Who sent the request.
    pub peer: Peer,
    /// Sends the reply. Dropping it unused tells the client that the run ended.
    pub responder: Responder,
}

impl Call {
    pub fn reply(self, reply: Reply) {
        self.responder.reply(reply);
    }
}

/// Sends the reply to one request.
#[derive(Debug)]
pub struct Responder(SyncSender<Reply>);

impl Responder {
    /// Sends the reply. The client may be gone, which does not matter to the run.
    pub fn reply(self, reply: Reply) {
        let _ = self.0.try_send(reply);
    }
}

/// Listens on a run's control socket, in its own threads, until dropped.
pub struct Server {
    path: PathBuf,
    closer: Closer,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    run: String,
    engine: String,
    calls: SyncSender<Call>,
    clients: Mutex<Vec<Arc<Client>>>,
}

struct Client {
    stream: UnixStream,
    outbox: Outbox,
}

impl Server {
    /// Listens on the run's control socket. `engine` is the engine's version, for clients. The caller holds
    /// the run's lock, answers the calls from the receiver, and writes [`Server::path`] to the status.
    pub fn start(run: &RunDir, engine: &str) -> Result<(Self, Receiver<Call>), RunError> {
        let path = control_socket_path(run.path())?;
        if let Some(folder) = path.parent() {
            sweep_stale_sockets(folder);
        }
        Self::start_at(&path, run.id(), engine)
    }

    pub(crate) fn start_at(path: &Path, run: &str, engine: &str) -> Result<(Self, Receiver<Call>), RunError> {
        let listener = OwnListener::bind(path)?;
        let broke = |error| RunError::Socket(format!("the control socket cannot be opened: {error}"));
        let closer = listener.closer().map_err(broke)?;
        let (calls, receiver) = mpsc::sync_channel(WAITING_REQUESTS);
        let shared = Arc::new(Shared {
            run: run.to_owned(),
            engine: engine.to_owned(),
            calls,
            clients: Mutex::new(Vec::new()),
        });
        let listening = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || shared.listen(&listener))
                .map_err(broke)?
        };
        Ok((Self { path: path.to_owned(), closer, shared, listening: Some(listening) }, receiver))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends an event to every subscriber. Never waits: a slow subscriber misses events and gets their
    /// number.
    pub fn publish(&self, event: &JournalEvent) {
        let clients: Vec<_> =
            self.shared.clients().iter().filter(|client| client.outbox.is_subscriber()).cloned().collect();
        if clients.is_empty() {
            return;
        }
        let reply = Reply::Event { event: Box::new(event.clone()) };
        let Some(line) = to_line(&reply) else { return };
        let line: Arc<[u8]> = line.into();
        for client in clients {
            client.outbox.push_event(Arc::clone(&line));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closer.close();
        if let Some(listening) = self.listening.take() {
            // A panic in that thread must not affect the run.
            let _ = listening.join();
        }
        for client in self.shared.clients().drain(..) {
            client.outbox.close();
        }
    }
}

fn to_line(reply: &Reply) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(reply).ok()?;
    line.push(b'\n');
    Some(line)
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(self: &Arc<Self>, listener: &OwnListener) {
        while let Ok((stream, peer)) = listener.accept() {
            if let Err(error) = self.admit(stream, peer) {
                tracing::warn!(%error, "a control connection could not be served");
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream, peer: Peer) -> Result<(), RunError> {
        let broke = |error| RunError::Socket(format!("cannot start a thread for a connection: {error}"));
        let mut writer = LineWriter::new(&stream)?;
        let reading = stream.try_clone().map_err(broke)?;
        let client = Arc::new(Client { stream, outbox: Outbox::default() });
        {
            let mut clients = self.clients();
            if clients.len() >= CLIENTS {
                return writer.send(&Reply::error(format!(
                    "{CLIENTS} clients are already connected; close one of them"
                )));
            }
            clients.push(Arc::clone(&client));
        }
        let writing = {
            let client = Arc::clone(&client);
            thread::Builder::new().name("control-write".to_owned()).spawn(move || {
                while let Some(line) = client.outbox.next() {
                    if writer.send_line(&line).is_err() {
                        break;
                    }
                }
                client.end();
            })
        };
        let shared = Arc::clone(self);
        let reader = LineReader::new(reading);
        let reading = writing.and_then(|_| {
            let client = Arc::clone(&client);
            thread::Builder::new().name("control-read".to_owned()).spawn(move || {
                shared.converse(&client, reader, peer);
                client.outbox.close();
                shared.clients().retain(|other| !Arc::ptr_eq(other, &client));
            })
        });
        if let Err(error) = reading {
            client.outbox.close();
            self.clients().retain(|other| !Arc::ptr_eq(other, &client));
            return Err(broke(error));
        }
        Ok(())
    }

    fn converse(&self, client: &Client, mut reader: LineReader, peer: Peer) {
        match reader.receive(Some(HELLO_TIMEOUT)) {
            Ok(Some(Request::Hello { version: PROTOCOL_VERSION })) => client.outbox.push(&self.hello()),
            Ok(Some(Request::Hello { version })) => {
                client.outbox.push(&Reply::error(format!(
                    "this run speaks version {PROTOCOL_VERSION} of the control protocol, the client version \
                     {version}; use the `luthier` that came with the engine of this run ({})",
                    self.engine
                )));
                return;
            }
            Ok(Some(_)) => {
                client.outbox.push(&Reply::error("the first request must be `hello`"));
                return;
            }
            Ok(None) | Err(_) => return,
        }
        loop {
            let request = match reader.receive(None) {
                Ok(Some(request)) => request,
                Ok(None) => continue,
                Err(RunError::Answer(message)) => {
                    client.outbox.push(&Reply::error(message));
                    continue;
                }
                Err(_) => return,
            };
            let reply = match request {
                Request::Hello { .. } => self.hello(),
                Request::Subscribe => {
                    client.outbox.subscribe();
                    Reply::ok("subscribed")
                }
                request => self.call(request, peer),
            };
            client.outbox.push(&reply);
        }
    }

    fn hello(&self) -> Reply {
        Reply::Hello {
            version: PROTOCOL_VERSION,
            run: self.run.clone(),
            pid: std::process::id(),
            engine: self.engine.clone(),
        }
    }

    fn call(&self, request: Request, peer: Peer) -> Reply {
        let (answer, answered) = mpsc::sync_channel(1);
        match self.calls.try_send(Call { request, peer, responder: Responder(answer) }) {
            Ok(()) => {
                answered.recv().unwrap_or_else(|_| Reply::error("the run ended before it could answer"))
            }
            Err(TrySendError::Full(_)) => {
                Reply::error("too many requests wait for this run already; try again after its current step")
            }
            Err(TrySendError::Disconnected(_)) => Reply::error("the run is ending"),
        }
    }
}

impl Client {
    fn end(&self) {
        // An error means that the connection is closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Lines to write to one client.
#[derive(Default)]
struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Replies; few, because a client waits for each.
    replies: VecDeque<Vec<u8>>,
    events: VecDeque<Arc<[u8]>>,
    missed: u64,
    subscriber: bool,
    closed: bool,
}

impl Outbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_subscriber(&self) -> bool {
        self.waiting().subscriber
    }

    fn subscribe(&self) {
        self.waiting().subscriber = true;
    }

    fn push(&self, reply: &Reply) {
        if let Some(line) = to_line(reply) {
            self.waiting().replies.push_back(line);
            self.changed.notify_one();
        }
    }

    fn push_event(&self, line: Arc<[u8]>) {
        let mut waiting = self.waiting();
        if waiting.events.len() == WAITING_EVENTS {
            waiting.events.pop_front();
            waiting.missed += 1;
        }
        waiting.events.push_back(line);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Lines pushed earlier are still written.
    fn close(&self) {
        self.waiting().closed = true;
        self.changed.notify_one();
    }

    /// The next line to write; waits for one. `None` once closed and empty.
    fn next(&self) -> Option<Arc<[u8]>> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.replies.pop_front() {
                return Some(line.into());
            }
            if waiting.missed > 0 {
                let events = std::mem::take(&mut waiting.missed);
                if let Some(line) = to_line(&Reply::Missed { events }) {
                    return Some(line.into());
                }
            }
            if let Some(line) = waiting.events.pop_front() {
                return Some(line);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::runs::client::{Client as Caller, Heard};
    use crate::runs::event::StepEvent;
    use crate::runs::protocol::StopWhen;
    use crate::runs::testing::wait_until;

    const LONG: Duration = Duration::from_secs(30);

    struct Running {
        _folder: tempfile::TempDir,
        path: PathBuf,
        server: Server,
        calls: Receiver<Call>,
    }

    fn start() -> Running {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.sock");
        let (server, calls) = Server::start_at(&path, "20260823-140211-a", "0.1.0").unwrap();
        Running { _folder: folder, path, server, calls }
    }

    fn step(number: u64) -> JournalEvent {
        JournalEvent::now(Some(number), StepEvent::default())
    }

    fn raw(path: &Path, text: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_request_gets_the_engines_reply() {
        let running = start();
        let engine = thread::spawn({
            let calls = running.calls;
            move || {
                let call = calls.recv().unwrap();
                assert_eq!(call.request, Request::Stop { when: StopWhen::AfterEval });
                assert_eq!(call.peer.pid, std::process::id());
                call.reply(Reply::ok("stopping after the next evaluation"));
                let call = calls.recv().unwrap();
                call.reply(Reply::error("not while stopping"));
                drop(calls.recv().unwrap());
            }
        });
        let mut client = Caller::connect_to(&running.path).unwrap();
        assert_eq!(
            (client.greeting.run.as_str(), client.greeting.pid),
            ("20260823-140211-a", std::process::id())
        );
        let answer = client.request(&Request::Stop { when: StopWhen::AfterEval }, LONG).unwrap();
        assert_eq!(answer, "stopping after the next evaluation");
        let refusal = client.request(&Request::Pause, LONG).unwrap_err();
        assert_eq!(refusal.to_string(), "not while stopping");
        let unanswered = client.request(&Request::Evaluate, LONG).unwrap_err();
        assert!(unanswered.to_string().contains("ended before it could answer"), "{unanswered}");
        engine.join().unwrap();
        let after = client.request(&Request::Pause, LONG).unwrap_err();
        assert_eq!(after.to_string(), "the run is ending");
    }

    #[test]
    fn a_request_times_out_during_a_long_step() {
        let running = start();
        let mut client = Caller::connect_to(&running.path).unwrap();
        let error = client.request(&Request::Pause, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, RunError::NoAnswer { .. }), "{error}");
        assert_eq!(running.calls.recv().unwrap().request, Request::Pause);
    }

    #[test]
    fn a_client_without_a_proper_hello_is_disconnected() {
        let running = start();
        let answer = raw(&running.path, "{\"request\":\"pause\"}\n");
        assert!(answer.contains("first request must be `hello`"), "{answer}");
        let answer = raw(&running.path, "{\"request\":\"hello\",\"version\":999}\n{\"request\":\"pause\"}\n");
        assert!(answer.contains("speaks version 1") && answer.contains("999"), "{answer}");
        assert_eq!(raw(&running.path, "garbage\n"), "");
        assert!(running.calls.try_recv().is_err());
    }

    #[test]
    fn an_unknown_request_does_not_end_the_connection() {
        let running = start();
        let answer = raw(
            &running.path,
            "{\"request\":\"hello\",\"version\":1}\n{\"request\":\"explode\"}\n{\"request\":\"hello\",\"version\":1}\n",
        );
        let lines: Vec<_> = answer.lines().collect();
        assert_eq!(lines.len(), 3, "{answer}");
        assert!(lines[1].contains("not understood"), "{answer}");
        assert!(lines[2].contains("\"reply\":\"hello\""), "{answer}");
    }

    #[test]
    fn only_subscribers_get_events() {
        let running = start();
        let mut subscription = Caller::connect_to(&running.path).unwrap().subscribe().unwrap();
        let mut other = Caller::connect_to(&running.path).unwrap();
        running.server.publish(&step(7));
        let heard = subscription.next(LONG).unwrap();
        assert!(matches!(heard, Some(Heard::Event(event)) if event.step == Some(7)));
        assert!(other.request(&Request::Pause, Duration::from_millis(10)).is_err());
        assert_eq!(subscription.next(Duration::from_millis(1)).unwrap(), None);
    }

    #[test]
    fn a_subscriber_that_does_not_read_blocks_nobody() {
        const EVENTS: u64 = 20_000;
        let running = start();
        let mut subscription = Caller::connect_to(&running.path).unwrap().subscribe().unwrap();
        for number in 1..=EVENTS {
            running.server.publish(&step(number));
        }
        let (mut heard, mut missed) = (0, 0);
        loop {
            match subscription.next(LONG).unwrap().unwrap() {
                Heard::Event(event) => {
                    heard += 1;
                    if event.step == Some(EVENTS) {
                        break;
                    }
                }
                Heard::Missed(events) => missed += events,
            }
        }
        assert!(missed > 0, "the socket cannot hold them all");
        assert_eq!(heard + missed, EVENTS);
    }

    #[test]
    fn the_number_of_clients_is_limited() {
        let running = start();
        let clients: Vec<_> = (0..CLIENTS).map(|_| Caller::connect_to(&running.path).unwrap()).collect();
        let refused = Caller::connect_to(&running.path).err().unwrap();
        assert!(refused.to_string().contains("clients are already connected"), "{refused}");
        drop(clients);
        wait_until("a place is free again", || Caller::connect_to(&running.path).is_ok());
    }

    #[test]
    fn its_end_closes_connections_and_removes_the_socket() {
        let Running { _folder, path, server, calls: _calls } = start();
        let mut subscription = Caller::connect_to(&path).unwrap().subscribe().unwrap();
        server.publish(&step(1));
        drop(server);
        assert!(subscription.next(LONG).unwrap().is_some(), "events published earlier still arrive");
        assert!(subscription.next(LONG).is_err());
        assert!(!path.exists());
        assert!(Server::start_at(&path, "again", "0.1.0").is_ok());
    }
}
