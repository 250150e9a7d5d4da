//! Fingerprints of the weights to be asked, computed without the engine: those it reports must be equal.

use std::path::PathBuf;

use luthier_core::eval::Contender;
use luthier_core::model::ModelFiles;
use luthier_core::runs::{ResultForm, RunDir, weights_fingerprint};
use luthier_core::text::clean_line;

use crate::panes::review::Target;

/// The weights asked for, by fingerprint.
#[derive(Debug)]
pub struct Weights {
    /// Folder of the tuned side's weights: an adapter, or a whole model.
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
            None => run.result().map(|(_, folder)| folder).ok_or_else(|| {
                format!("Run {} has no result yet. Choose another run or checkpoint with r.", run.id())
            })?,
            Some(step) => match run.checkpoints().into_iter().find(|checkpoint| checkpoint.step == step) {
                Some(checkpoint) => checkpoint.path,
                None => {
                    return Err(format!(
                        "The checkpoint at step {step} was deleted: a run keeps only its newest ones. Choose another \
                         with r; train.keep_checkpoints sets how many are kept."
                    ));
                }
            },
        };
        if ResultForm::of(&adapter).is_none() {
            return Err(format!(
                "`{}` has no trained weights. Choose another run or checkpoint with r.",
                clean_line(&adapter.display().to_string())
            ));
        }
        let files = ModelFiles::find(model, run.project())
            .map_err(|error| format!("The base model cannot be used: {error}"))?;
        let tuned = weights_fingerprint(&adapter, &files.fingerprint)
            .map_err(|error| format!("The trained weights cannot be read: {error}"))?;
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
