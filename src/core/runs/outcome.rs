//! The trained weights that a run writes: in its result folder and in each checkpoint.

use std::fs::File;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config::MethodKind;
use crate::hash;
use crate::model::ModelFiles;

/// What a folder with trained weights holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultForm {
    /// An adapter in PEFT layout.
    Adapter,
    /// A whole model in Hugging Face layout.
    Model,
}

impl ResultForm {
    pub const ALL: [Self; 2] = [Self::Adapter, Self::Model];

    /// What a method writes.
    pub fn of_method(method: MethodKind) -> Self {
        match method {
            MethodKind::Full => Self::Model,
            MethodKind::Lora
            | MethodKind::Qlora
            | MethodKind::Prefix
            | MethodKind::Prompt
            | MethodKind::Ia3 => Self::Adapter,
        }
    }

    /// What a folder holds, by its file names.
    pub fn of(folder: &Path) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.files().iter().all(|name| folder.join(name).is_file()))
    }

    /// The name of the result folder in a run directory.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Model => "model",
        }
    }

    /// The files by which the form is recognised.
    const fn files(self) -> [&'static str; 2] {
        match self {
            Self::Adapter => ["adapter_config.json", "adapter_model.safetensors"],
            Self::Model => ["config.json", "model.safetensors"],
        }
    }
}

/// Identifies the weights in `folder` over the base weights with fingerprint `base`, as 64 hex digits. For an
/// adapter it is computed from all bytes of its files, for a whole model from [`ModelFiles::fingerprint`].
pub fn weights_fingerprint(folder: &Path, base: &str) -> io::Result<String> {
    let content = match ResultForm::of(folder) {
        Some(ResultForm::Model) => ModelFiles::open(folder).map_err(io::Error::other)?.fingerprint,
        Some(ResultForm::Adapter) | None => {
            let mut digest = Sha256::new();
            for name in ResultForm::Adapter.files() {
                let path = folder.join(name);
                let mut file = File::open(&path)?;
                if !file.metadata()?.is_file() {
                    return Err(io::Error::other(format!("{} is not a regular file", path.display())));
                }
                io::copy(&mut file, &mut digest)?;
            }
            hash::hex(digest.finalize())
        }
    };
    Ok(hash::sha256(format!("{base}\n{content}")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_fingerprint_depends_on_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ResultForm::of(folder.path()), None);
        assert!(weights_fingerprint(folder.path(), "base").is_err());
        for name in ResultForm::Adapter.files() {
            fs::write(folder.path().join(name), name).unwrap();
        }
        assert_eq!(ResultForm::of(folder.path()), Some(ResultForm::Adapter));
        let before = weights_fingerprint(folder.path(), "base").unwrap();
        assert_eq!(before, weights_fingerprint(folder.path(), "base").unwrap());
        assert_ne!(before, weights_fingerprint(folder.path(), "other").unwrap());
        fs::write(folder.path().join("adapter_model.safetensors"), "other").unwrap();
        assert_ne!(before, weights_fingerprint(folder.path(), "base").unwrap());
    }

    #[test]
    fn a_whole_model_has_its_own_fingerprint_over_the_base() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
        assert_eq!(ResultForm::of(path.as_ref()), Some(ResultForm::Model));
        let found = weights_fingerprint(path.as_ref(), "base").unwrap();
        let own = ModelFiles::open(path.as_ref()).unwrap().fingerprint;
        assert_eq!(found, hash::sha256(format!("base\n{own}")));
    }
}
