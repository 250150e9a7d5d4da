//! Unix sockets that only their user may use: where they are, who may connect, and how lines are sent.

use std::fs::{self, DirBuilder};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::getuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::RunError;
use super::error::{io_error, shown};
use super::protocol::MESSAGE_LIMIT;
use crate::hash::hex;

/// Longest socket path the kernel accepts (`sun_path` of 108 bytes with its terminating zero, see unix(7)).
const PATH_LIMIT: usize = 107;

/// A peer that reads nothing for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel takes a timeout of zero as no timeout.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The folder of this user's sockets: `$XDG_RUNTIME_DIR/luthier`, or `/tmp/luthier-UID`. Created with mode
/// 0700 if missing. Refused unless it is a real folder that belongs to the user and is closed to others.
pub fn socket_folder() -> Result<PathBuf, RunError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    socket_folder_in(runtime.as_deref(), Path::new("/tmp"))
}

/// Longest file name used: `serve-`, 16 hexadecimal digits, `.sock`.
const NAME_LENGTH: usize = 27;

fn socket_folder_in(runtime: Option<&Path>, temporary: &Path) -> Result<PathBuf, RunError> {
    let uid = getuid().as_raw();
    let own = runtime.filter(|folder| {
        folder.is_absolute()
            && folder.as_os_str().len() + "/luthier/".len() + NAME_LENGTH <= PATH_LIMIT
            && fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == uid)
    });
    let folder = match own {
        Some(runtime) => runtime.join("luthier"),
        None => temporary.join(format!("luthier-{uid}")),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(RunError::Io { doing: "make", path: folder, source }),
    }
    check_folder(&folder, uid)?;
    Ok(folder)
}

fn check_folder(folder: &Path, uid: u32) -> Result<(), RunError> {
    let found = fs::symlink_metadata(folder).map_err(io_error("read", folder))?;
    let complaint = if !found.is_dir() {
        "it is not a folder"
    } else if found.uid() != uid {
        "it belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "other users may enter it"
    } else {
        return Ok(());
    };
    Err(RunError::Socket(format!(
        "`{0}` cannot hold control sockets: {complaint}; remove it (or, if it is yours, `chmod 700 {0}`) and try again",
        shown(folder)
    )))
}

/// The path of a run's control socket. The name is a hash of the run directory's path, because socket paths
/// are limited to 107 bytes.
pub fn control_socket_path(run: &Path) -> Result<PathBuf, RunError> {
    named_socket("run", run)
}

/// The path of a project's serving socket.
pub fn serving_socket_path(project: &Path) -> Result<PathBuf, RunError> {
    named_socket("serve", project)
}

fn named_socket(prefix: &str, of: &Path) -> Result<PathBuf, RunError> {
    let of = of.canonicalize().map_err(io_error("find", of))?;
    let digest = hex(&Sha256::digest(of.as_os_str().as_bytes())[..8]);
    Ok(socket_folder()?.join(format!("{prefix}-{digest}.sock")))
}

/// The process at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id.
    pub pid: u32,
}

/// The other end as the kernel recorded it when it connected (`SO_PEERCRED`).
fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let found = socket_peercred(stream)?;
    Ok(Peer { uid: found.uid.as_raw(), pid: found.pid.as_raw_nonzero().get().unsigned_abs() })
}

/// A listening socket that only its owner may use: mode 0600, and every peer's uid is checked. Removed when
/// dropped.
pub struct OwnListener {
    listener: UnixListener,
    path: PathBuf,
}

impl OwnListener {
    /// Listens at `path`. A socket left by a dead process is replaced; one that is in use is an error.
    pub fn bind(path: &Path) -> Result<Self, RunError> {
        if path.as_os_str().len() > PATH_LIMIT {
            return Err(RunError::Socket(format!(
                "`{}` is too long for a socket: at most {PATH_LIMIT} bytes",
                shown(path)
            )));
        }
        if is_stale(path) {
            fs::remove_file(path).map_err(io_error("remove the stale socket", path))?;
        }
        let listener = UnixListener::bind(path).map_err(io_error("listen at", path))?;
        let own = Self { listener, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io_error("protect", path))?;
        Ok(own)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next connection of the same user and refuses others. Returns an error once
    /// [`OwnListener::closer`] was used.
    pub fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let uid = getuid().as_raw();
        loop {
            let (stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match peer_of(&stream) {
                Ok(peer) if peer.uid == uid => return Ok((stream, peer)),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid, "refused a connection of another user");
                }
                Err(error) => tracing::warn!(%error, "cannot find out who connects"),
            }
        }
    }

    /// A handle that makes a waiting [`OwnListener::accept`] return an error.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.listener.try_clone()?))
    }
}

/// Stops an [`OwnListener`] from another thread.
pub struct Closer(UnixListener);

impl Closer {
    pub fn close(&self) {
        // An error means that the socket is closed already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

impl Drop for OwnListener {
    fn drop(&mut self) {
        // An error means that it is removed already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether no process listens on a socket file any more.
fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes the sockets in the user's folder on which no process listens any more.
pub fn sweep_stale_sockets(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "sock") && is_stale(&path) {
            // Another process may have removed it already.
            let _ = fs::remove_file(&path);
        }
    }
}

/// Connects to a socket and checks that the process there belongs to the same user.
pub fn connect_checked(path: &Path) -> Result<UnixStream, RunError> {
    let stream = UnixStream::connect(path).map_err(io_error("connect to", path))?;
    let peer = peer_of(&stream).map_err(io_error("check", path))?;
    if peer.uid == getuid().as_raw() {
        return Ok(stream);
    }
    Err(RunError::Socket(format!(
        "the process at `{}` belongs to another user (uid {})",
        shown(path),
        peer.uid
    )))
}

/// Writes JSON lines to a socket. Fails if the peer reads nothing for five seconds.
pub struct LineWriter(UnixStream);

impl LineWriter {
    /// Duplicates the handle, so that the connection can be read elsewhere.
    pub fn new(stream: &UnixStream) -> Result<Self, RunError> {
        let gone = |error| RunError::Socket(format!("cannot use the connection: {error}"));
        let stream = stream.try_clone().map_err(gone)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(gone)?;
        Ok(Self(stream))
    }

    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), RunError> {
        let mut line = serde_json::to_vec(message)
            .map_err(|error| RunError::Socket(format!("cannot write the message as JSON: {error}")))?;
        line.push(b'\n');
        self.send_line(&line)
    }

    /// Sends a message that is already serialised.
    pub fn send_line(&mut self, line: &[u8]) -> Result<(), RunError> {
        if line.len() > MESSAGE_LIMIT {
            return Err(RunError::Socket(format!(
                "the message is too long: {} bytes, at most {MESSAGE_LIMIT}",
                line.len()
            )));
        }
        self.0.write_all(line).map_err(|error| RunError::Socket(format!("the connection broke: {error}")))
    }
}

/// Reads JSON lines from a socket, each at most [`MESSAGE_LIMIT`] bytes long.
pub struct LineReader {
    stream: UnixStream,
    /// Bytes read and not returned yet; the next line begins at `begin`.
    buffer: Vec<u8>,
    begin: usize,
    /// No line end before this position.
    searched: usize,
}

impl LineReader {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), begin: 0, searched: 0 }
    }

    /// The next message, or `Ok(None)` if none came within `timeout` (`None` waits for ever). An error if the
    /// connection ended or the line cannot be parsed; after the latter the next line can still be read.
    pub fn receive<T: DeserializeOwned>(&mut self, timeout: Option<Duration>) -> Result<Option<T>, RunError> {
        let Some(line) = self.line(timeout)? else { return Ok(None) };
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| RunError::Answer(format!("not understood: {error}")))
    }

    fn line(&mut self, timeout: Option<Duration>) -> Result<Option<Vec<u8>>, RunError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut looked = false;
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                self.searched += end + 1;
                let line = self.buffer[self.begin..self.searched].to_vec();
                self.begin = self.searched;
                return Ok(Some(line));
            }
            self.buffer.drain(..self.begin);
            self.begin = 0;
            self.searched = self.buffer.len();
            if self.buffer.len() > MESSAGE_LIMIT {
                return Err(RunError::Socket(format!(
                    "the other side sent a line longer than {MESSAGE_LIMIT} bytes"
                )));
            }
            if !self.fill(deadline, looked)? {
                return Ok(None);
            }
            looked = true;
        }
    }

    /// Reads the available bytes. `false` once the deadline has passed, but only after at least one read.
    fn fill(&mut self, deadline: Option<Instant>, looked: bool) -> Result<bool, RunError> {
        let broke = |error: io::Error| RunError::Socket(format!("the connection broke: {error}"));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if looked && left == Some(Duration::ZERO) {
            return Ok(false);
        }
        self.stream.set_read_timeout(left.map(|left| left.max(SHORTEST_WAIT))).map_err(broke)?;
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(RunError::Socket("the other side closed the connection".to_owned())),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(broke(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::Value;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    #[test]
    fn only_its_user_may_enter_the_folder() {
        let base = folder();
        let own = socket_folder_in(Some(base.path()), Path::new("/nowhere")).unwrap();
        assert_eq!(own, base.path().join("luthier"));
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        assert_eq!(socket_folder_in(Some(base.path()), Path::new("/nowhere")).unwrap(), own);
    }

    #[test]
    fn without_a_runtime_folder_it_is_created_in_tmp() {
        let base = folder();
        let expected = base.path().join(format!("luthier-{}", getuid().as_raw()));
        let long = base.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        for runtime in
            [None, Some(Path::new("relative")), Some(Path::new("/does/not/exist")), Some(long.as_path())]
        {
            assert_eq!(socket_folder_in(runtime, base.path()).unwrap(), expected, "{runtime:?}");
        }
    }

    #[test]
    fn a_planted_folder_is_refused() {
        let target = folder();
        let plant: [fn(&Path, &Path); 3] = [
            |place, target| symlink(target, place).unwrap(),
            |place, _| fs::write(place, b"").unwrap(),
            |place, _| {
                fs::create_dir(place).unwrap();
                fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
            },
        ];
        for (plant, complaint) in plant.iter().zip(["not a folder", "not a folder", "other users may enter"])
        {
            let base = folder();
            plant(&base.path().join("luthier"), target.path());
            let error = socket_folder_in(Some(base.path()), Path::new("/nowhere")).unwrap_err().to_string();
            assert!(error.contains(complaint) && error.contains("chmod 700"), "{error}");
        }
        if getuid().is_root() {
            let base = folder();
            fs::create_dir(base.path().join("luthier")).unwrap();
            std::os::unix::fs::chown(base.path().join("luthier"), Some(12345), None).unwrap();
            let error = socket_folder_in(Some(base.path()), Path::new("/nowhere")).unwrap_err().to_string();
            assert!(error.contains("another user"), "{error}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let base = folder();
        let path = base.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = OwnListener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(OwnListener::bind(&path).is_err());
        assert!(path.exists());

        let stale = base.path().join("b.sock");
        drop(UnixListener::bind(&stale).unwrap());
        fs::write(base.path().join("notes.txt"), b"").unwrap();
        sweep_stale_sockets(base.path());
        assert!(path.exists() && !stale.exists() && base.path().join("notes.txt").exists());
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let base = folder();
        let error = OwnListener::bind(&base.path().join("x".repeat(120))).err().unwrap().to_string();
        assert!(error.contains("too long for a socket"), "{error}");
    }

    #[test]
    fn lines_sent_in_pieces_are_joined() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut reader = LineReader::new(there);
        assert_eq!(reader.receive::<Value>(Some(Duration::from_millis(1))).unwrap(), None);
        let mut raw = here.try_clone().unwrap();
        raw.write_all(b"{\"a\":1}\n[2").unwrap();
        assert_eq!(reader.receive::<Value>(None).unwrap().unwrap()["a"], 1);
        assert_eq!(reader.receive::<Value>(Some(Duration::ZERO)).unwrap(), None);
        raw.write_all(b",3]\nnonsense\n\"next\"\n").unwrap();
        assert_eq!(reader.receive::<Value>(None).unwrap().unwrap()[1], 3);
        assert!(matches!(reader.receive::<Value>(None), Err(RunError::Answer(_))));
        assert_eq!(reader.receive::<Value>(None).unwrap().unwrap(), "next");
        drop((raw, here));
        assert!(matches!(reader.receive::<Value>(None), Err(RunError::Socket(_))));
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut reader = LineReader::new(there);
        let writing = std::thread::spawn(move || {
            let mut here = here;
            // The reader hangs up in the middle of it.
            let _ = here.write_all(&vec![b'x'; MESSAGE_LIMIT + 100_000]);
        });
        let error = reader.receive::<Value>(None).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
        drop(reader);
        writing.join().unwrap();
    }
}
