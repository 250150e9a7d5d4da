//! Transfers one file into the download cache, in several parts where it is interrupted, and checks it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use luthier_core::hash::hex;
use luthier_core::hub::HubModel;
use luthier_core::model::hub::HubCache;
use sha2::{Digest, Sha256};

use super::error::HubError;
use super::remote::{Hub, Interruption, RemoteFile};
use super::{Event, See, go_on};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Attempts without a new byte before a transfer is given up.
const FRUITLESS: u32 = 4;

/// Pause after the first fruitless attempt; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(500);

/// A file that is to be fetched.
pub(super) struct Transfer {
    /// What the hub says about it.
    pub file: RemoteFile,
    blob: PathBuf,
    partial: PathBuf,
    lock: PathBuf,
}

impl Transfer {
    pub fn new(cache: &HubCache, model: &HubModel, file: RemoteFile) -> Self {
        let blob = cache.blob(model, &file.etag);
        let partial = blob.with_file_name(format!("{}.incomplete", file.etag));
        Self { lock: cache.lock(model, &file.etag), file, blob, partial }
    }

    /// Bytes that are not there yet.
    pub fn lacking(&self) -> u64 {
        if self.blob.is_file() {
            return 0;
        }
        let held = fs::metadata(&self.partial).map_or(0, |held| held.len());
        self.file.bytes.saturating_sub(held)
    }

    /// Fetches the content into the cache and returns the number of bytes that came over the network. A part from an
    /// earlier attempt, also another tool's, is continued.
    pub fn run(&self, hub: &Hub, model: &HubModel, see: &mut See) -> Result<u64, HubError> {
        let _lock = self.take_lock(see)?;
        if self.blob.is_file() {
            return Ok(0);
        }
        let mut partial = Partial::open(&self.partial, &self.file)?;
        go_on(see(Event::Begun { file: &self.file.name, held: partial.held, bytes: self.file.bytes }))?;
        let fetched = self.complete(hub, model, &mut partial, see)?;
        partial.finish(&self.file.name)?;
        fs::rename(&self.partial, &self.blob).map_err(HubError::file("move", &self.partial))?;
        Ok(fetched)
    }

    /// Takes the lock that huggingface_hub uses too: its holder writes the part.
    fn take_lock(&self, see: &mut See) -> Result<File, HubError> {
        make_folder_of(&self.lock)?;
        let failed = HubError::file("lock", &self.lock);
        let file =
            File::options().write(true).create(true).truncate(false).open(&self.lock).map_err(&failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                go_on(see(Event::Waiting(&self.file.name)))?;
                file.lock().map_err(failed)?;
            }
            // A file system without locks: the hash shows if two processes wrote at once.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(file)
    }

    /// Tries again after an interruption, as long as new bytes arrive.
    fn complete(
        &self,
        hub: &Hub,
        model: &HubModel,
        partial: &mut Partial,
        see: &mut See,
    ) -> Result<u64, HubError> {
        let (mut fetched, mut fruitless, mut furthest) = (0, 0, partial.held);
        while partial.held < self.file.bytes {
            let Err(interruption) = self.attempt(hub, model, partial, &mut fetched, see) else { continue };
            let reason = match interruption {
                Interruption::Passing(reason) => reason,
                Interruption::Lasting(error) => return Err(error),
            };
            fruitless = if partial.held > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(partial.held);
            if fruitless == FRUITLESS {
                let RemoteFile { name, bytes, .. } = &self.file;
                let held = partial.held;
                return Err(HubError::Broken { file: name.clone(), held, bytes: *bytes, reason });
            }
            go_on(see(Event::Broken(&reason)))?;
            if fruitless > 0 {
                thread::sleep(PAUSE * 2_u32.pow(fruitless - 1));
            }
        }
        Ok(fetched)
    }

    fn attempt(
        &self,
        hub: &Hub,
        model: &HubModel,
        partial: &mut Partial,
        fetched: &mut u64,
        see: &mut See,
    ) -> Result<(), Interruption> {
        let (body, start) = hub.read(model, &self.file, partial.held)?;
        if start != partial.held {
            partial.restart().map_err(Interruption::Lasting)?;
        }
        let mut reader = body.into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match reader.read(&mut chunk) {
                Ok(0) if partial.held == self.file.bytes => return Ok(()),
                Ok(0) => return Err(Interruption::Passing("the connection was closed".to_owned())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Interruption::Passing(error.to_string())),
            };
            if count as u64 > self.file.bytes - partial.held {
                let problem = format!("it sends more of {} than its stated length", self.file.name);
                return Err(Interruption::Lasting(hub.no_hub(&problem)));
            }
            partial.append(&chunk[..count]).map_err(Interruption::Lasting)?;
            *fetched += count as u64;
            go_on(see(Event::Received(partial.held))).map_err(Interruption::Lasting)?;
        }
    }
}

/// The part of a file that is there, with its hash where the hash of the whole is known.
struct Partial {
    file: File,
    path: PathBuf,
    held: u64,
    hash: Option<Sha256>,
    expected: String,
}

impl Partial {
    /// Opens the part from an earlier attempt, or begins one. A part that is too long is discarded.
    fn open(path: &Path, remote: &RemoteFile) -> Result<Self, HubError> {
        make_folder_of(path)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::file("open", path))?;
        let expected = remote.etag.clone();
        let hash = is_sha256(&expected).then(Sha256::new);
        let mut partial = Self { file, path: path.to_owned(), held: 0, hash, expected };
        if partial.read_held().map_err(HubError::file("read", path))? > remote.bytes {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn read_held(&mut self) -> io::Result<u64> {
        self.held = match &mut self.hash {
            Some(hash) => io::copy(&mut self.file, hash)?,
            None => self.file.seek(SeekFrom::End(0))?,
        };
        Ok(self.held)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(HubError::file("write", &self.path))?;
        self.held = 0;
        if let Some(hash) = &mut self.hash {
            hash.reset();
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::file("write", &self.path))?;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.held += bytes.len() as u64;
        Ok(())
    }

    /// Checks and syncs what is complete. A damaged file is deleted, so that the next attempt starts over.
    fn finish(self, name: &str) -> Result<(), HubError> {
        if let Some(hash) = self.hash
            && hex(hash.finalize()) != self.expected
        {
            fs::remove_file(&self.path).map_err(HubError::file("remove", &self.path))?;
            return Err(HubError::Damaged { file: name.to_owned() });
        }
        self.file.sync_all().map_err(HubError::file("write", &self.path))
    }
}

/// Content in large-file storage is named by its SHA-256, other content by 40 digits of git's own.
fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn make_folder_of(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(HubError::file("make", folder))
}
