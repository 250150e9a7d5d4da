//! The connections of the serving process. Each has one thread for reading and one for writing, so that a
//! slow client does not block the others.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use luthier_core::runs::serving::{ServeReply, ServeRequest};
use luthier_core::runs::{LineReader, LineWriter, OwnListener, RunError};

/// Most clients at a time.
const CLIENTS: usize = 16;

/// Replies that may wait for a slow client. With more, the client is disconnected.
const WAITING_REPLIES: usize = 16_384;

pub type ClientId = u64;

/// Messages from clients.
#[derive(Debug)]
pub enum Arrival {
    Request(ClientId, ServeRequest),
    /// The client disconnected.
    Gone(ClientId),
}

pub struct Clients {
    shared: Arc<Shared>,
    arrivals: Receiver<Arrival>,
}

struct Shared {
    writers: Mutex<BTreeMap<ClientId, SyncSender<ServeReply>>>,
    arrivals: Sender<Arrival>,
}

impl Clients {
    /// Listens at `socket` in its own threads.
    pub fn listen(socket: &Path) -> Result<Self, RunError> {
        let listener = OwnListener::bind(socket)?;
        let (sender, arrivals) = mpsc::channel();
        let shared = Arc::new(Shared { writers: Mutex::default(), arrivals: sender });
        let accepting = Arc::clone(&shared);
        let spawned = thread::Builder::new().name("accept".into()).spawn(move || {
            let mut next = 0;
            while let Ok((stream, _)) = listener.accept() {
                next += 1;
                if let Err(error) = accepting.admit(next, stream) {
                    tracing::warn!(%error, "a connection could not be served");
                }
            }
        });
        spawned.map_err(|error| RunError::Socket(format!("no thread to listen: {error}")))?;
        Ok(Self { shared, arrivals })
    }

    /// The next message; `None` if none came within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<Arrival> {
        self.arrivals.recv_timeout(timeout).ok()
    }

    /// A message that has already arrived.
    pub fn poll(&self) -> Option<Arrival> {
        self.arrivals.try_recv().ok()
    }

    /// Number of connected clients.
    pub fn count(&self) -> usize {
        self.shared.writers().len()
    }

    /// Sends a reply to a client without waiting. A client that does not read is disconnected.
    pub fn reply(&self, client: ClientId, reply: ServeReply) {
        let mut writers = self.shared.writers();
        if writers.get(&client).is_some_and(|writer| writer.try_send(reply).is_err()) {
            writers.remove(&client);
        }
    }
}

impl Shared {
    fn writers(&self) -> MutexGuard<'_, BTreeMap<ClientId, SyncSender<ServeReply>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, client: ClientId, stream: UnixStream) -> Result<(), RunError> {
        let broke = |error| RunError::Socket(format!("no thread for a connection: {error}"));
        let mut writer = LineWriter::new(&stream)?;
        let closing = stream.try_clone().map_err(broke)?;
        let (replies, waiting) = mpsc::sync_channel(WAITING_REPLIES);
        {
            let mut writers = self.writers();
            if writers.len() >= CLIENTS {
                let message = format!("{CLIENTS} clients are already connected; close one of them");
                return writer.send(&ServeReply::Error { id: 0, message });
            }
            writers.insert(client, replies);
        }
        let writing = thread::Builder::new().name("client-write".into()).spawn(move || {
            // Ends when the client is dropped and its waiting replies are written, or when the client
            // disconnects.
            for reply in waiting {
                if writer.send(&reply).is_err() {
                    break;
                }
            }
            // Wakes the reader. An error means that the client is already gone.
            let _ = closing.shutdown(std::net::Shutdown::Both);
        });
        let shared = Arc::clone(self);
        let reading = writing.and_then(|_| {
            thread::Builder::new().name("client-read".into()).spawn(move || {
                shared.read(client, LineReader::new(stream));
                shared.writers().remove(&client);
                // The engine thread may have ended already.
                let _ = shared.arrivals.send(Arrival::Gone(client));
            })
        });
        if let Err(error) = reading {
            self.writers().remove(&client);
            return Err(broke(error));
        }
        Ok(())
    }

    fn read(&self, client: ClientId, mut reader: LineReader) {
        loop {
            let arrival = match reader.receive(None) {
                Ok(Some(request)) => Arrival::Request(client, request),
                Ok(None) => continue,
                Err(RunError::Answer(message)) => {
                    let writer = self.writers().get(&client).cloned();
                    if writer
                        .is_none_or(|writer| writer.try_send(ServeReply::Error { id: 0, message }).is_err())
                    {
                        return;
                    }
                    continue;
                }
                Err(_) => return,
            };
            if self.arrivals.send(arrival).is_err() {
                return;
            }
        }
    }
}
