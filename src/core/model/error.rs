//! Errors about models on disk, written for the user.

use std::fmt;
use std::path::Path;

use crate::text::Shown;

use super::storage::Storage;
use crate::hub::{HubModel, HubNameError};

/// Why a model cannot be opened. Untrusted names in messages are cleaned and shortened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    #[error("{path} does not exist; check model.path")]
    NotFound {
        /// As given by the user.
        path: Shown,
    },
    /// A name that begins like a hub model's but is malformed.
    #[error(transparent)]
    HubName(HubNameError),
    /// A hub model that is not in the cache, or only in part.
    #[error("{model} is not in the download cache {cache}; fetch it with `luthier model pull {model}`")]
    NotInCache { model: HubModel, cache: Shown },
    /// The folder of the hub's download cache is unknown.
    #[error("no folder for models of the hub: there is no home folder; set HF_HOME to a folder of your own")]
    NoHubCache,
    #[error("cannot read {file}: {source}")]
    Read { file: Shown, source: std::io::Error },
    /// Neither a model folder nor a GGUF file.
    #[error(
        "{path} is not a model: {found}; give a folder with config.json and model.safetensors, or a .gguf file"
    )]
    NotAModel {
        /// As given by the user.
        path: Shown,
        /// What was found instead.
        found: String,
    },
    /// The weights are there, but only as a pickle.
    #[error(
        "{file} is a pickle file, which can run code when it is opened; Luthier reads only safetensors and GGUF. \
         Convert it where you trust it: python3 -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )]
    Pickle {
        file: Shown,
        /// The folder of the file.
        folder: Shown,
    },
    /// As `Pickle`, for an adapter.
    #[error(
        "{file} is a pickle file, which can run code when it is opened; Luthier reads only safetensors. Convert it \
         where you trust it: python3 -c \"import torch; from safetensors.torch import save_file as s; \
         s(torch.load('{file}', weights_only=True), '{folder}/adapter_model.safetensors')\""
    )]
    AdapterPickle {
        file: Shown,
        /// The folder of the file.
        folder: Shown,
    },
    #[error("{folder} is not an adapter: it holds no {missing}; give a folder that PEFT or Luthier saved")]
    NotAnAdapter {
        folder: Shown,
        /// The name of the missing file.
        missing: &'static str,
    },
    /// A link to a file outside of its folder.
    #[error(
        "{file} is a link to {target}, outside of its folder, and is not opened; put the file into the folder"
    )]
    Outside { file: Shown, target: Shown },
    #[error(
        "{folder} holds no weights: it has neither model.safetensors nor model.safetensors.index.json; \
         was it downloaded completely?"
    )]
    NoWeights { folder: Shown },
    /// A value in a configuration file is missing or wrong.
    #[error("{file}: {problem}")]
    Settings {
        file: Shown,
        /// The key and what is wrong with it.
        problem: String,
    },
    #[error("{file}: unknown architecture `{found}`; supported: {}", supported.join(", "))]
    UnknownArchitecture {
        /// The file that names it.
        file: Shown,
        /// `model_type` or `general.architecture`.
        found: Shown,
        supported: Vec<&'static str>,
    },
    /// A known family with an option that Luthier does not have.
    #[error("{file}: {feature} is not available in this version of Luthier; {remedy}")]
    Unsupported {
        /// The file that has the option.
        file: Shown,
        /// The option.
        feature: String,
        /// What to do instead.
        remedy: String,
    },
    /// A header that contradicts its format or the size of its file.
    #[error("{file} is damaged or was not downloaded completely: {problem}")]
    Damaged { file: Shown, problem: String },
    /// A tensor in an encoding that Luthier does not read.
    #[error("{file}: tensor `{tensor}` is stored as {found}; readable: {}", Storage::ALL.map(Storage::name).join(", "))]
    TensorType {
        file: Shown,
        tensor: Shown,
        /// Name or number of the encoding.
        found: Shown,
    },
    /// The tensors do not match the architecture.
    #[error("{root} does not have the tensors that its configuration needs:{problems}")]
    Tensors { root: Shown, problems: TensorProblems },
    #[error("{file}: {problem}")]
    Tokenizer {
        file: Shown,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

/// A problem found by a parser that does not know the file's path.
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

/// All differences between the tensors that an architecture needs and those in the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// Needed but not found.
    pub missing: Vec<String>,
    /// Found but not needed.
    pub unexpected: Vec<String>,
    /// Found with another shape: name, needed shape, found shape.
    pub shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorProblems {
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }
}

/// Most names listed for each kind of problem; the rest are only counted.
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
    fn all_problems_are_listed_up_to_a_limit() {
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
