//! Which weights are asked, known without the engine that answers: what it reports must be equal.

use std::io;
use std::path::{Path, PathBuf};

use luthier_core::eval::Contender;
use luthier_core::files;
use luthier_core::model::ModelFiles;
use luthier_core::runs::RunDir;
use luthier_core::text::clean_line;
use sha2::{Digest, Sha256};

use crate::panes::review::Target;

/// The files that make an adapter what it is, in the order they are hashed.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The weights asked for, by fingerprint.
#[derive(Debug)]
pub struct Weights {
    /// Folder of the tuned side's adapter.
    pub adapter: PathBuf,
    /// The base model's fingerprint.
    pub base: String,
    /// The fingerprint of the base model with the adapter over it.
    pub tuned: String,
}

impl Weights {
    /// Looks at the files of `target`, which belongs to `run`, and of its base model.
    pub fn find(run: &RunDir, target: &Target, model: &str) -> Result<Self, String> {
        let adapter = match target.step {
            None => run.adapter_path(),
            Some(step) => match run.checkpoints().into_iter().find(|checkpoint| checkpoint.step == step) {
                Some(checkpoint) => checkpoint.path,
                None => {
                    return Err(format!(
                        "The checkpoint at step {step} is gone: a run keeps its newest ones only. Choose another \
                         with r; train.keep_checkpoints says how many are kept."
                    ));
                }
            },
        };
        if !is_adapter(&adapter) {
            return Err(format!(
                "`{}` holds no adapter. Choose another run or checkpoint with r.",
                clean_line(&adapter.display().to_string())
            ));
        }
        let files = ModelFiles::open(&run.project().join(model))
            .map_err(|error| format!("The base model cannot be used: {error}"))?;
        let content = content(&adapter).map_err(|error| format!("The adapter cannot be read: {error}"))?;
        let tuned = format!("{:x}", Sha256::digest(format!("{}\n{content}", files.fingerprint)));
        Ok(Self { adapter, base: files.fingerprint, tuned })
    }

    /// The fingerprint that must answer for `who`.
    pub fn of(&self, who: Contender) -> &str {
        match who {
            Contender::Base | Contender::Baseline => &self.base,
            Contender::Tuned => &self.tuned,
        }
    }

    /// The adapter that answers for `who`.
    pub fn adapter_of(&self, who: Contender) -> Option<PathBuf> {
        match who {
            Contender::Base | Contender::Baseline => None,
            Contender::Tuned => Some(self.adapter.clone()),
        }
    }
}

/// Whether a folder looks like an adapter's.
pub fn is_adapter(folder: &Path) -> bool {
    FILES.iter().all(|name| folder.join(name).is_file())
}

/// SHA-256 over an adapter's files, hexadecimal.
fn content(folder: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    for name in FILES {
        io::copy(&mut files::open(&folder.join(name))?.0, &mut digest)?;
    }
    Ok(format!("{:x}", digest.finalize()))
}
