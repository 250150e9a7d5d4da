//! Adapters loaded on demand, the least recently used dropped first.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{EngineError, Result};
use crate::methods::{Adapter, LoraMethod, Method};
use crate::models::Model;

/// Adapters kept at a time.
const KEPT: usize = 8;

/// The files that make an adapter what it is.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// An adapter with what tells it from every other.
pub struct Loaded {
    folder: PathBuf,
    /// SHA-256 over its files.
    content: String,
    /// Names the weights that answer with it: a hash of the base weights' fingerprint and of `content`.
    pub fingerprint: String,
    /// The adapter.
    pub adapter: Box<dyn Adapter>,
}

/// Adapters by folder, the last used last.
#[derive(Default)]
pub struct Adapters {
    loaded: Vec<Loaded>,
}

impl Adapters {
    /// Makes sure that the adapter in each of `folders` is loaded as its files are now.
    pub fn load(&mut self, folders: &[&Path], model: &Model, method: &LoraMethod) -> Result<()> {
        for folder in folders {
            let content = content(folder)?;
            let known = self.loaded.iter().position(|loaded| loaded.folder == *folder);
            if let Some(index) = known {
                let loaded = self.loaded.remove(index);
                if loaded.content == content {
                    self.loaded.push(loaded);
                    continue;
                }
            }
            let adapter = method.load(folder, model)?;
            if self::content(folder)? != content {
                return Err(EngineError::Data(format!(
                    "the adapter {} changed while it was read; ask again",
                    luthier_core::text::clean_line(&folder.display().to_string())
                )));
            }
            let fingerprint = fingerprint(model.fingerprint(), &content);
            self.loaded.push(Loaded { folder: folder.to_path_buf(), content, fingerprint, adapter });
        }
        let surplus = self.loaded.len().saturating_sub(KEPT.max(folders.len()));
        self.loaded.drain(..surplus);
        Ok(())
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

/// SHA-256 over an adapter's files, hexadecimal.
fn content(folder: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    for name in FILES {
        let path = folder.join(name);
        let failed = |source| EngineError::File { action: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is no ordinary file")));
        }
        io::copy(&mut file, &mut digest).map_err(failed)?;
    }
    Ok(format!("{:x}", digest.finalize()))
}

/// Names base weights with an adapter over them.
fn fingerprint(base: &str, content: &str) -> String {
    format!("{:x}", Sha256::digest(format!("{base}\n{content}")))
}
