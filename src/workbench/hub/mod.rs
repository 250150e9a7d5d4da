//! Fetching models from a Hugging Face hub into the download cache that all tools of the hub share
//! ([`luthier_core::model::hub`] finds them there).
//!
//! What a repository holds and where its files lie is asked through hf-hub. The transfer itself is not hf-hub's: that one
//! puts a whole file behind a part where a server knows no ranges, cannot go on from a part that was complete but for its
//! renaming, compares neither length nor hash, makes paths of headers as they come, and hands the token to whatever host a
//! redirect names.

mod choice;
mod credentials;
mod error;
mod remote;
mod transfer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use luthier_core::machine;
use luthier_core::model::hub::{HubCache, HubModel};
use luthier_core::model::shard_names;
use serde::Serialize;

pub use credentials::{Endpoint, Token};
pub use error::HubError;
pub use remote::Hub;

use choice::Choice;
use remote::{Listing, RemoteFile};
use transfer::Transfer;

/// A model that lies in the download cache.
#[derive(Debug, Serialize)]
pub struct Pulled {
    /// Its name, as `model.path` takes it.
    pub model: String,
    /// Its folder, or the GGUF file.
    pub path: PathBuf,
    /// The commit for which the revision stands.
    pub revision: String,
    /// What Luthier needs of it.
    pub files: Vec<PulledFile>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that came over the network; 0 where everything was there.
    pub fetched_bytes: u64,
}

/// One file of a model.
#[derive(Debug, Serialize)]
pub struct PulledFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Bytes of it that came over the network.
    pub fetched_bytes: u64,
}

/// What happens while a model is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// So many files of so many bytes are missing.
    Planned {
        /// Files to fetch.
        files: usize,
        /// Bytes to fetch.
        bytes: u64,
    },
    /// Another process fetches this file; its end is waited for.
    Waiting(&'a str),
    /// A file's transfer begins, or goes on.
    Begun {
        /// The file.
        file: &'a str,
        /// Bytes of it that are there from an earlier attempt.
        held: u64,
        /// Its length.
        bytes: u64,
    },
    /// So many bytes of the file are there now.
    Received(u64),
    /// The transfer broke off and is taken up again.
    Broken(&'a str),
    /// The file is complete.
    Done {
        /// The file.
        file: &'a str,
        /// Its length.
        bytes: u64,
    },
}

/// Fetches what Luthier needs of `model`, unless it is there, and tells `see` how it goes.
pub fn pull(
    hub: &Hub,
    cache: &HubCache,
    model: &HubModel,
    see: &mut dyn FnMut(Event),
) -> Result<Pulled, HubError> {
    let listing = hub.list(model)?;
    let Choice { mut files, index } = choice::choose(model, &listing.files)?;
    let mut pull = Pull { hub, cache, model, listing: &listing, done: Vec::new() };
    if let Some(index) = index {
        pull.fetch(&[index.to_owned()], see)?;
        let shards = shard_names(&pull.snapshot().join(index))?;
        files.extend(choice::shards(model, &listing.files, shards)?);
    }
    pull.fetch(&files, see)?;
    if model.commit().is_none() {
        note_commit(&cache.references(model), &cache.reference(model), &listing.commit)?;
    }
    let files = pull.done;
    Ok(Pulled {
        model: model.to_string(),
        path: cache.find(model)?,
        bytes: files.iter().map(|file| file.bytes).sum(),
        fetched_bytes: files.iter().map(|file| file.fetched_bytes).sum(),
        revision: listing.commit,
        files,
    })
}

struct Pull<'a> {
    hub: &'a Hub,
    cache: &'a HubCache,
    model: &'a HubModel,
    listing: &'a Listing,
    done: Vec<PulledFile>,
}

impl Pull<'_> {
    fn snapshot(&self) -> PathBuf {
        self.cache.snapshot(self.model, &self.listing.commit)
    }

    /// Fetches those of these files that the commit's folder does not hold.
    fn fetch(&mut self, names: &[String], see: &mut dyn FnMut(Event)) -> Result<(), HubError> {
        let snapshot = self.snapshot();
        let mut missing = Vec::new();
        for name in names {
            // A commit never changes: what is there is right.
            match fs::metadata(snapshot.join(name)) {
                Ok(held) => {
                    self.done.push(PulledFile { name: name.clone(), bytes: held.len(), fetched_bytes: 0 });
                }
                Err(_) => missing.push(self.hub.describe(self.model, &self.listing.commit, name)?),
            }
        }
        let transfers: Vec<Transfer> =
            missing.into_iter().map(|file| Transfer::new(self.cache, self.model, file)).collect();
        let bytes = transfers.iter().map(Transfer::lacking).sum();
        self.check_room(bytes)?;
        if !transfers.is_empty() {
            see(Event::Planned { files: transfers.len(), bytes });
        }
        for transfer in transfers {
            let fetched_bytes = transfer.run(self.hub, self.model, see)?;
            let RemoteFile { name, bytes, etag, .. } = transfer.file;
            link(&snapshot, &name, &etag)?;
            see(Event::Done { file: &name, bytes });
            self.done.push(PulledFile { name, bytes, fetched_bytes });
        }
        Ok(())
    }

    fn check_room(&self, needed: u64) -> Result<(), HubError> {
        match machine::free_disk_bytes(self.cache.root()) {
            Ok(free) if free < needed => {
                Err(HubError::DiskFull { cache: self.cache.root().to_owned(), needed, free })
            }
            // Where the file system does not say, the transfer finds out.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Makes a file of a commit's folder a link to its content.
fn link(snapshot: &Path, name: &str, etag: &str) -> Result<(), HubError> {
    fs::create_dir_all(snapshot).map_err(HubError::file("make", snapshot))?;
    let link = snapshot.join(name);
    let failed = HubError::file("link", &link);
    // What does not lead to a file by now leads to content that was removed.
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    match std::os::unix::fs::symlink(format!("../../blobs/{etag}"), &link) {
        // Another process was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed),
    }
}

/// Notes in a file below `root` for which commit a revision stands; readers see the old one or the new one.
fn note_commit(root: &Path, reference: &Path, commit: &str) -> Result<(), HubError> {
    if fs::read_to_string(reference).is_ok_and(|noted| noted == commit) {
        return Ok(());
    }
    let folder = reference.parent().unwrap_or(reference);
    // A hub has no branch `a` beside a branch `a/b`: what stands in the way is of one that is gone.
    for above in folder.ancestors().take_while(|above| *above != root) {
        if above.is_file() {
            fs::remove_file(above).map_err(HubError::file("replace", above))?;
        }
    }
    if reference.is_dir() {
        fs::remove_dir_all(reference).map_err(HubError::file("replace", reference))?;
    }
    fs::create_dir_all(folder).map_err(HubError::file("make", folder))?;
    let mut aside = reference.as_os_str().to_owned();
    aside.push(format!(".{}.tmp", std::process::id()));
    fs::write(&aside, commit)
        .and_then(|()| fs::rename(&aside, reference))
        .map_err(HubError::file("write", reference))
}
