//! Adapters loaded on demand, the least recently used dropped first.

use std::path::{Path, PathBuf};

use luthier_core::runs::weights_fingerprint;

use crate::error::{EngineError, Result};
use crate::layers::Adapter;
use crate::methods;
use crate::models::Model;
use crate::ops;

/// Most adapters kept at a time.
const KEPT: usize = 8;

/// Most bytes of trained weights kept beyond those requested. After full fine-tuning, an adapter is as large
/// as its base.
const KEPT_BYTES: usize = 1 << 30;

/// A loaded adapter.
pub struct Loaded {
    folder: PathBuf,
    /// Identifies the weights that answer: [`weights_fingerprint`].
    pub fingerprint: String,
    pub adapter: Box<dyn Adapter>,
}

impl Loaded {
    fn bytes(&self) -> usize {
        self.adapter.parameters().values().map(ops::bytes_of).sum::<u64>() as usize
    }
}

/// Adapters by folder, most recently used last.
#[derive(Default)]
pub struct Adapters {
    loaded: Vec<Loaded>,
}

impl Adapters {
    /// Loads the adapter in each of `folders`, unless it is loaded and its files are unchanged.
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

    /// Drops the least recently used adapters, except the requested ones, until one more fits.
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

    /// The adapter of a folder that was loaded with [`Adapters::load`].
    pub fn get(&self, folder: &Path) -> Option<&Loaded> {
        self.loaded.iter().find(|loaded| loaded.folder == folder)
    }

    /// Drops all adapters.
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
