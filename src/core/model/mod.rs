//! What a model folder, a GGUF file or an adapter folder says about itself, read without torch: architecture, tensors and
//! where they lie, tokenizer, chat template, special tokens.

pub mod adapter;
pub mod architecture;
mod error;
pub mod families;
mod files;
mod fingerprint;
mod folder;
mod gguf;
pub mod hub;
mod quantisation;
pub mod roles;
pub mod safetensors;
mod settings;
pub(crate) mod special;
mod storage;
mod targets;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;
pub mod trained;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::text::Shown;
use roles::Role;

pub use adapter::AdapterFiles;
pub use architecture::Architecture;
pub use error::{ModelError, TensorProblems};
pub use folder::{is_pickle, shard_names};
pub use quantisation::{Held, NF4_BLOCK, NF4_SCALES, Quantisation, nf4_bytes};
pub use settings::Settings;
pub use storage::{Block, Storage};
pub use targets::{TargetError, match_targets};

/// A base model on disk: everything its files say about it, no weights.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder, or the GGUF file.
    pub root: PathBuf,
    /// Which of the two.
    pub kind: ModelKind,
    /// What it is made of.
    pub architecture: Architecture,
    /// Exactly the tensors of [`Architecture::parameters`], by Hugging Face name.
    pub tensors: IndexMap<String, TensorEntry>,
    /// The files that hold tensors; [`TensorEntry::file`] counts in here.
    pub files: Vec<PathBuf>,
    /// How text becomes tokens.
    pub tokenizer: TokenizerSource,
    /// The model's own Jinja template, if it has one.
    pub chat_template: Option<String>,
    /// Tokens with a meaning of their own.
    pub special: SpecialTokens,
    /// 64 hex digits that name these weights: equal for a moved or copied model, other for other weights.
    pub fingerprint: String,
}

/// The layout a model has on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// A folder with `config.json`, safetensors files and `tokenizer.json`.
    HuggingFace,
    /// One `.gguf` file.
    Gguf,
}

/// Where a tensor lies and how it is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// As the architecture has it, row-major (GGUF lists dimensions the other way round).
    pub shape: Vec<usize>,
    /// Encoding of its elements.
    pub storage: Storage,
    /// Index into [`ModelFiles::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes; `offset + bytes` lies within the file.
    pub bytes: u64,
    /// How its elements lie in the file.
    pub arrangement: Arrangement,
}

impl TensorEntry {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product()
    }
}

/// How the elements of a weight or bias lie in their file, compared with what the architecture has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// The same.
    Plain,
    /// `[in, out]` instead of `[out, in]`, as GPT-2's `Conv1D` stores its weight.
    Transposed,
    /// Rows of a query or key projection whose rotary pairs lie side by side, as llama.cpp stores llama: row `2i + j` of a
    /// head holds what Hugging Face has in row `j · head_size/2 + i` (`LlamaModel.permute` in `convert_hf_to_gguf.py`).
    RotaryPairs {
        /// Heads of this projection; the number of rows is a multiple of it.
        heads: usize,
    },
    /// Rows of a fused projection that lie query heads first, then key heads, then value heads, where the architecture has
    /// them by group ([`architecture::Qkv::FusedByGroup`]), as llama.cpp stores Falcon and GPT-NeoX.
    ByPart {
        /// Key-value heads.
        groups: usize,
        /// Query heads of each.
        shared: usize,
    },
}

impl Arrangement {
    /// The row of the file that holds row `row` of `rows`, for arrangements that keep rows whole.
    pub fn source_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed => row,
            Self::RotaryPairs { heads } => {
                let head_size = rows / heads;
                let (head, within) = (row / head_size, row % head_size);
                let half = head_size / 2;
                head * head_size + 2 * (within % half) + within / half
            }
            Self::ByPart { groups, shared } => {
                let head_size = rows / (groups * (shared + 2));
                let (head, within) = (row / head_size, row % head_size);
                let (group, place) = (head / (shared + 2), head % (shared + 2));
                let source = match place.checked_sub(shared) {
                    None => group * shared + place,
                    Some(part) => groups * (shared + part) + group,
                };
                source * head_size + within
            }
        }
    }
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// A `tokenizer.json`.
    HuggingFace {
        /// Path of it; exists.
        tokenizer_json: PathBuf,
        /// Content of `tokenizer_config.json`; always an object.
        config: Option<serde_json::Value>,
    },
    /// The vocabulary inside a GGUF file.
    Gguf(GgufVocabulary),
}

/// The vocabulary of a GGUF file (`tokenizer.ggml.*`), untranslated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE, `llama` SentencePiece-like.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer.
    pub pre: Option<String>,
    /// By id.
    pub tokens: Vec<String>,
    /// By id; empty where the file has none.
    pub scores: Vec<f32>,
    /// By id; empty where the file has none.
    pub types: Vec<GgufTokenType>,
    /// `left right`, best first; empty where the file has none.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`; each id below lies within `tokens`.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// End of turn.
    pub end_of_turn: Option<u32>,
    /// Unknown token.
    pub unknown: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding starts with `bos`, where the file says.
    pub add_bos: Option<bool>,
    /// Whether encoding ends with `eos`, where the file says.
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text (SentencePiece), where the file says.
    pub add_space_prefix: Option<bool>,
}

/// `tokenizer.ggml.token_type`, numbered as `llama_token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufTokenType {
    /// 1: ordinary.
    Normal,
    /// 2: stands for what cannot be encoded.
    Unknown,
    /// 3: special; never produced from text.
    Control,
    /// 4: added, found in text as a whole.
    UserDefined,
    /// 5: never used.
    Unused,
    /// 6: one byte, written `<0xNN>`.
    Byte,
    /// 0 or a number of a later format.
    Undefined,
}

/// A token with a meaning of its own, as far as the files say.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct SpecialToken {
    /// Its id; within the vocabulary.
    pub id: Option<u32>,
    /// Its text, as chat templates use it.
    pub text: Option<String>,
}

/// The special tokens a model declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct SpecialTokens {
    /// Begin of text.
    pub bos: Option<SpecialToken>,
    /// All tokens that end a generation: first the tokenizer's own `eos_token` (which templates mean), then those of
    /// `generation_config.json`, or without it of `config.json`.
    pub eos: Vec<SpecialToken>,
    /// Padding.
    pub pad: Option<SpecialToken>,
    /// What cannot be encoded.
    pub unknown: Option<SpecialToken>,
}

impl SpecialTokens {
    /// Ids of [`SpecialTokens::eos`].
    pub fn eos_ids(&self) -> Vec<u32> {
        self.eos.iter().filter_map(|token| token.id).collect()
    }
}

/// A linear layer: what adapters can be put on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LinearModule {
    /// Hugging Face module name, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its layer; the head has none.
    pub layer: Option<usize>,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
}

impl ModelFiles {
    /// Reads what the files at `path` say: a folder with `config.json`, or a `.gguf` file. Reads headers and a bounded
    /// sample of the weights, never more.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Err(ModelError::NotFound { path: path.into() });
        }
        if path.is_dir() {
            return folder::open(path);
        }
        let extension = path.extension().unwrap_or_default();
        let folder = path.parent().unwrap_or(path);
        if is_pickle(path) {
            return Err(ModelError::Pickle { file: path.into(), folder: folder.into() });
        }
        if extension == "safetensors" || extension == "json" {
            let found = format!("it is one file of a model; give its folder {}", Shown::from(folder));
            return Err(ModelError::NotAModel { path: path.into(), found });
        }
        gguf::open(path)
    }

    /// Opens the model that `model.path` names: a path, relative to `project` unless absolute, or a model of the hub, in
    /// its download cache. See [`hub::locate`].
    pub fn find(path: impl AsRef<Path>, project: &Path) -> Result<Self, ModelError> {
        Self::open(&hub::locate(path.as_ref(), project)?)
    }

    /// All linear layers, layer by layer, the head last (also a tied one).
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        self.architecture.linear_modules()
    }

    /// Number of elements of all tensors; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(TensorEntry::elements).sum()
    }
}
