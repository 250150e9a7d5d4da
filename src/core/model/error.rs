//! What can be wrong with a model on disk, in words for its user.

use std::fmt;
use std::path::Path;

use crate::text::Shown;

use super::storage::Storage;
use crate::hub::{HubModel, HubNameError};

/// Why a model cannot be opened. Untrusted names inside messages are cleaned and cut short.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Nothing is there.
    #[error("{path} does not exist; check model.path")]
    NotFound {
        /// As given.
        path: Shown,
    },
    /// What is meant as the name of a hub's model is none.
    #[error(transparent)]
    HubName(HubNameError),
    /// A model of a hub that has not been downloaded, or not all of it.
    #[error("{model} is not in the download cache {cache}; fetch it with `luthier model pull {model}`")]
    NotInCache {
        /// The model.
        model: HubModel,
        /// The cache.
        cache: Shown,
    },
    /// The hub's download cache has no place.
    #[error(
        "no home folder is known in which models of the hub could lie; set HF_HOME to a folder of your own"
    )]
    NoHubCache,
    /// A file could not be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: Shown,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither a model folder nor a GGUF file.
    #[error(
        "{path} is not a model: {found}; give a folder with config.json and model.safetensors, or a .gguf file"
    )]
    NotAModel {
        /// As given.
        path: Shown,
        /// What was found instead.
        found: String,
    },
    /// Weights are there, but only as pickle.
    #[error(
        "{file} is a pickle file, which can run code when it is opened; Luthier reads only safetensors and GGUF. \
         Convert it where you trust it: python3 -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )]
    Pickle {
        /// The pickle file.
        file: Shown,
        /// Its folder.
        folder: Shown,
    },
    /// The same of an adapter.
    #[error(
        "{file} is a pickle file, which can run code when it is opened; Luthier reads only safetensors. Convert it \
         where you trust it: python3 -c \"import torch; from safetensors.torch import save_file as s; \
         s(torch.load('{file}', weights_only=True), '{folder}/adapter_model.safetensors')\""
    )]
    AdapterPickle {
        /// The pickle file.
        file: Shown,
        /// Its folder.
        folder: Shown,
    },
    /// A folder without an adapter.
    #[error("{folder} is not an adapter: it holds no {missing}; give a folder that PEFT or Luthier saved")]
    NotAnAdapter {
        /// The folder.
        folder: Shown,
        /// The file that is needed.
        missing: &'static str,
    },
    /// A link that leads out of the folder it stands in.
    #[error(
        "{file} leads to {target}, outside of its folder, and is not opened; put the file itself into the folder"
    )]
    Outside {
        /// The link.
        file: Shown,
        /// Where it leads.
        target: Shown,
    },
    /// A folder without weights.
    #[error(
        "{folder} holds no weights: neither model.safetensors nor model.safetensors.index.json is there; \
         was it downloaded completely?"
    )]
    NoWeights {
        /// The folder.
        folder: Shown,
    },
    /// A value in a configuration file is missing or wrong.
    #[error("{file}: {problem}")]
    Settings {
        /// The file.
        file: Shown,
        /// What is wrong with which key.
        problem: String,
    },
    /// A model that Luthier does not know.
    #[error("{file}: unknown architecture `{found}`; supported: {}", supported.join(", "))]
    UnknownArchitecture {
        /// The file that names it.
        file: Shown,
        /// `model_type` or `general.architecture`.
        found: Shown,
        /// What would be known.
        supported: Vec<&'static str>,
    },
    /// A known family in a form that Luthier does not have.
    #[error("{file}: {feature} is not available in this version of Luthier; {remedy}")]
    Unsupported {
        /// The file that asks for it.
        file: Shown,
        /// What it asks for.
        feature: String,
        /// What to do instead.
        remedy: String,
    },
    /// A header that contradicts its format, or its file.
    #[error("{file} is damaged or was not downloaded completely: {problem}")]
    Damaged {
        /// The file.
        file: Shown,
        /// What contradicts what.
        problem: String,
    },
    /// A tensor in an encoding that Luthier does not read.
    #[error("{file}: tensor `{tensor}` is stored as {found}; readable: {}", Storage::ALL.map(Storage::name).join(", "))]
    TensorType {
        /// The file.
        file: Shown,
        /// The tensor.
        tensor: Shown,
        /// Name or number of the encoding.
        found: Shown,
    },
    /// Tensors do not fit the architecture.
    #[error("{root} does not hold the tensors that its configuration asks for:{problems}")]
    Tensors {
        /// The model.
        root: Shown,
        /// All of them.
        problems: TensorProblems,
    },
    /// The tokenizer is missing or unreadable.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// The file.
        file: Shown,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

/// What a parser finds wrong before it knows, or has to know, which file it reads.
#[derive(Debug)]
pub(super) enum Fault {
    /// See [`ModelError::Read`].
    Read(std::io::Error),
    /// See [`ModelError::Damaged`].
    Damaged(String),
    /// See [`ModelError::TensorType`].
    TensorType { tensor: String, found: String },
    /// See [`ModelError::Unsupported`].
    Unsupported { feature: String, remedy: &'static str },
}

impl Fault {
    /// The error with its file.
    pub(super) fn at(self, file: &Path) -> ModelError {
        let file = Shown::from(file);
        match self {
            Self::Read(source) => ModelError::Read { file, source },
            Self::Damaged(problem) => ModelError::Damaged { file, problem },
            Self::TensorType { tensor, found } => {
                ModelError::TensorType { file, tensor: Shown::new(&tensor), found: Shown::new(&found) }
            }
            Self::Unsupported { feature, remedy } => {
                ModelError::Unsupported { file, feature, remedy: remedy.to_owned() }
            }
        }
    }
}

/// All differences between the tensors an architecture needs and those that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// Needed, not found.
    pub missing: Vec<String>,
    /// Found, not needed.
    pub unexpected: Vec<String>,
    /// Found with another shape: name, needed, found.
    pub shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorProblems {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }
}

/// Names listed per kind of problem before the rest is only counted.
const MAX_LISTED: usize = 20;

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, what: &str, names: &[String]| {
            if names.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {what} ({}):", names.len())?;
            for name in names.iter().take(MAX_LISTED) {
                write!(f, "\n    {}", Shown::new(name))?;
            }
            match names.len().saturating_sub(MAX_LISTED) {
                0 => Ok(()),
                more => write!(f, "\n    … and {more} more"),
            }
        };
        list(f, "missing", &self.missing)?;
        list(f, "not part of this architecture", &self.unexpected)?;
        let shapes: Vec<String> = self
            .shapes
            .iter()
            .map(|(name, needed, found)| format!("{name}: {found:?}, needed {needed:?}"))
            .collect();
        list(f, "of another shape", &shapes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_named_and_floods_counted() {
        let problems = TensorProblems {
            missing: vec!["a.weight".into()],
            unexpected: (0..25).map(|n| format!("extra{n}")).collect(),
            shapes: vec![("c.weight".into(), vec![2, 3], vec![3, 2])],
        };
        let text = problems.to_string();
        assert!(text.contains("missing (1):\n    a.weight"), "{text}");
        assert!(text.contains("extra19") && !text.contains("extra20"), "{text}");
        assert!(text.contains("… and 5 more"), "{text}");
        assert!(text.contains("c.weight: [3, 2], needed [2, 3]"), "{text}");
    }
}
