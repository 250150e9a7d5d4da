//! Fetching models from a Hugging Face hub into the download cache that all tools of the hub share
//! ([`luthier_core::model::hub`] finds them there).
//!
//! hf-hub lists a repository and the addresses of its files. The transfer is our own, because hf-hub's appends a whole file
//! to a part where a server does not support ranges, cannot continue a part that only lacked its renaming, checks neither
//! length nor hash, builds paths from unchecked headers, and sends the token to any host that a redirect names.

mod choice;
mod credentials;
mod error;
mod remote;
mod transfer;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use luthier_core::files::{Access, replace};
use luthier_core::hub::HubModel;
use luthier_core::machine;
use luthier_core::model::hub::HubCache;
use luthier_core::model::shard_names;
use serde::Serialize;

pub use credentials::{Endpoint, Token};
pub use error::HubError;
pub use remote::Hub;

use choice::Choice;
use remote::{Listing, RemoteFile};
use transfer::Transfer;

/// A model in the download cache.
#[derive(Debug, Serialize)]
pub struct Pulled {
    /// Its name, as `model.path` takes it.
    pub model: String,
    /// Its folder, or the GGUF file.
    pub path: PathBuf,
    /// The commit that the revision names.
    pub revision: String,
    /// What Luthier needs of it.
    pub files: Vec<PulledFile>,
    pub bytes: u64,
    /// Bytes that came over the network; 0 where everything was there.
    pub fetched_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct PulledFile {
    pub name: String,
    pub bytes: u64,
    /// Bytes of it that came over the network.
    pub fetched_bytes: u64,
}

/// What happens while a model is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// What is missing.
    Planned { files: usize, bytes: u64 },
    /// Another process fetches this file; wait for it.
    Waiting(&'a str),
    /// A file's transfer begins, or continues.
    Begun {
        file: &'a str,
        /// Bytes of it that are there from an earlier attempt.
        held: u64,
        bytes: u64,
    },
    /// Bytes of the file that are there now.
    Received(u64),
    /// The transfer was interrupted and is tried again.
    Broken(&'a str),
    /// The file is complete.
    Done { file: &'a str, bytes: u64 },
}

/// Is called with the progress of a pull, and may cancel it.
pub type See<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

fn go_on(answer: ControlFlow<()>) -> Result<(), HubError> {
    if answer.is_break() { Err(HubError::Cancelled) } else { Ok(()) }
}

/// Fetches what Luthier needs of `model`, unless it is there, and passes its progress to `see`. What was fetched before
/// `see` cancels stays, and the next pull continues from it.
pub fn pull(hub: &Hub, cache: &HubCache, model: &HubModel, see: &mut See) -> Result<Pulled, HubError> {
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

    /// Fetches those of these files that are missing in the commit's folder.
    fn fetch(&mut self, names: &[String], see: &mut See) -> Result<(), HubError> {
        let snapshot = self.snapshot();
        let mut missing = Vec::new();
        for name in names {
            // A commit never changes: a file that is there is up to date.
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
            go_on(see(Event::Planned { files: transfers.len(), bytes }))?;
        }
        for transfer in transfers {
            let fetched_bytes = transfer.run(self.hub, self.model, see)?;
            let RemoteFile { name, bytes, etag, .. } = transfer.file;
            link(&snapshot, &name, &etag)?;
            go_on(see(Event::Done { file: &name, bytes }))?;
            self.done.push(PulledFile { name, bytes, fetched_bytes });
        }
        Ok(())
    }

    fn check_room(&self, needed: u64) -> Result<(), HubError> {
        match machine::free_disk_bytes(self.cache.root()) {
            Ok(free) if free < needed => {
                Err(HubError::DiskFull { cache: self.cache.root().to_owned(), needed, free })
            }
            // If free space is unknown, the transfer fails where there is too little.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Links a file of a commit's folder to its content.
fn link(snapshot: &Path, name: &str, etag: &str) -> Result<(), HubError> {
    let link = snapshot.join(name);
    let folder = link.parent().unwrap_or(snapshot);
    fs::create_dir_all(folder).map_err(HubError::file("make", folder))?;
    let up = "../".repeat(2 + name.matches('/').count());
    let failed = HubError::file("link", &link);
    // A link that leads to no file belongs to content that was removed.
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    match std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &link) {
        // Another process has made it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed),
    }
}

/// Writes the commit that a revision names to a file below `root`; readers see the old one or the new one.
fn note_commit(root: &Path, reference: &Path, commit: &str) -> Result<(), HubError> {
    if fs::read_to_string(reference).is_ok_and(|noted| noted == commit) {
        return Ok(());
    }
    let folder = reference.parent().unwrap_or(reference);
    // A hub cannot have branches `a` and `a/b` at once: a file in the way belongs to a deleted branch.
    for above in folder.ancestors().take_while(|above| *above != root) {
        if above.is_file() {
            fs::remove_file(above).map_err(HubError::file("replace", above))?;
        }
    }
    if reference.is_dir() {
        fs::remove_dir_all(reference).map_err(HubError::file("replace", reference))?;
    }
    fs::create_dir_all(folder).map_err(HubError::file("make", folder))?;
    replace(reference, commit.as_bytes(), Access::Shared).map_err(HubError::file("write", reference))
}
