//! Adapters loaded on demand, the least recently used dropped first.

use std::path::{Path, PathBuf};

use luthier_core::runs::weights_fingerprint;

use crate::error::{EngineError, Result};
use crate::layers::Adapter;
use crate::methods;
use crate::models::Model;

/// Adapters kept at a time.
const KEPT: usize = 8;

/// Bytes of trained weights that those kept beyond what is asked for may take: whole models are as large as their base.
const KEPT_BYTES: usize = 1 << 30;

/// An adapter with what tells it from every other.
pub struct Loaded {
    folder: PathBuf,
    /// Names the weights that answer with it: [`weights_fingerprint`].
    pub fingerprint: String,
    /// The adapter.
    pub adapter: Box<dyn Adapter>,
}

impl Loaded {
    fn bytes(&self) -> usize {
        self.adapter.parameters().values().map(|parameter| 4 * parameter.numel()).sum()
    }
}

/// Adapters by folder, the last used last.
#[derive(Default)]
pub struct Adapters {
    loaded: Vec<Loaded>,
}

impl Adapters {
    /// Makes sure that the adapter in each of `folders` is loaded as its files are now.
    pub fn load(&mut self, folders: &[&Path], model: &Model) -> Result<()> {
        for folder in folders {
            let fingerprint = fingerprint(folder, model)?;
            let known = self.loaded.iter().position(|loaded| loaded.folder == *folder);
            if let Some(index) = known {
                let loaded = self.loaded.remove(index);
                if loaded.fingerprint == fingerprint {
                    self.loaded.push(loaded);
                    continue;
                }
            }
            self.make_room(folders);
            let adapter = methods::load(folder, model)?;
            if self::fingerprint(folder, model)? != fingerprint {
                return Err(EngineError::Data(format!(
                    "the adapter {} changed while it was read; ask again",
                    luthier_core::text::clean_line(&folder.display().to_string())
                )));
            }
            self.loaded.push(Loaded { folder: folder.to_path_buf(), fingerprint, adapter });
        }
        Ok(())
    }

    /// Drops those not used for longest, but none that is asked for, until one more may come.
    fn make_room(&mut self, wanted: &[&Path]) {
        let is_full = |loaded: &[Loaded]| {
            loaded.len() >= KEPT || loaded.iter().map(Loaded::bytes).sum::<usize>() > KEPT_BYTES
        };
        while is_full(&self.loaded) {
            let spare = self.loaded.iter().position(|loaded| !wanted.contains(&loaded.folder.as_path()));
            let Some(index) = spare else { return };
            self.loaded.remove(index);
        }
    }

    /// The adapter of a folder that [`Adapters::load`] was called for.
    pub fn get(&self, folder: &Path) -> Option<&Loaded> {
        self.loaded.iter().find(|loaded| loaded.folder == folder)
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.loaded.clear();
    }
}

fn fingerprint(folder: &Path, model: &Model) -> Result<String> {
    weights_fingerprint(folder, model.fingerprint()).map_err(|source| EngineError::File {
        action: "read",
        path: folder.to_owned(),
        source,
    })
}
