//! Reads model folders, GGUF files and adapter folders without torch: architecture, where each tensor is,
//! tokenizer, chat template, special tokens.

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
pub use folder::{TOOL_TEMPLATE, is_pickle, shard_names};
pub use quantisation::{Held, NF4_BLOCK, NF4_SCALES, Quantisation, nf4_bytes};
pub use settings::Settings;
pub use storage::{Block, Storage};
pub use targets::{TargetError, match_targets};

/// A base model on disk: everything its files say about it, without the weights.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder, or the GGUF file.
    pub root: PathBuf,
    pub kind: ModelKind,
    pub architecture: Architecture,
    /// Exactly the tensors of [`Architecture::parameters`], by Hugging Face name.
    pub tensors: IndexMap<String, TensorEntry>,
    /// The files with tensors; [`TensorEntry::file`] is an index into this list.
    pub files: Vec<PathBuf>,
    pub tokenizer: TokenizerSource,
    /// The model's own Jinja template, if it has one.
    pub chat_template: Option<String>,
    /// The model's template for conversations with tools, if it has one of its own (`tool_use`).
    pub tool_template: Option<String>,
    /// Tokens with a special meaning.
    pub special: SpecialTokens,
    /// 64 hex digits that identify the weights: the same for a moved or copied model, different for other
    /// weights.
    pub fingerprint: String,
}

/// The format of a model on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// A folder with `config.json`, safetensors files and `tokenizer.json`.
    HuggingFace,
    /// One `.gguf` file.
    Gguf,
}

/// Where a tensor is and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Shape in the architecture, row-major (GGUF lists dimensions in reverse).
    pub shape: Vec<usize>,
    pub storage: Storage,
    /// Index into [`ModelFiles::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes; `offset + bytes` is within the file.
    pub bytes: u64,
    /// The order of its elements in the file.
    pub arrangement: Arrangement,
}

impl TensorEntry {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product()
    }
}

/// The order of a weight's or bias's elements in the file, compared with the architecture's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// The same.
    Plain,
    /// `[in, out]` instead of `[out, in]`, as in the weight of GPT-2's `Conv1D`.
    Transposed,
    /// Rows of a query or key projection whose rotary pairs are adjacent, as llama.cpp stores llama:
    /// row `2i + j` of a head is Hugging Face's row `j · head_size/2 + i` (`LlamaModel.permute` in
    /// `convert_hf_to_gguf.py`).
    RotaryPairs {
        /// Heads of this projection; the number of rows is a multiple of it.
        heads: usize,
    },
    /// A fused projection with all query heads first, then all key heads, then all value heads, where the
    /// architecture has them by group ([`architecture::Qkv::FusedByGroup`]). This is how llama.cpp stores
    /// Falcon and GPT-NeoX.
    ByPart {
        /// Number of key-value heads.
        groups: usize,
        /// Number of query heads for each.
        shared: usize,
    },
}

impl Arrangement {
    /// The row in the file that is row `row` of `rows`, for arrangements that keep rows whole.
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

/// Where the tokenizer comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// A `tokenizer.json`.
    HuggingFace {
        /// Its path; the file exists.
        tokenizer_json: PathBuf,
        /// Content of `tokenizer_config.json`; always an object.
        config: Option<serde_json::Value>,
    },
    /// The vocabulary inside a GGUF file.
    Gguf(GgufVocabulary),
}

/// The vocabulary of a GGUF file (`tokenizer.ggml.*`), as stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE, `llama` SentencePiece-like.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer.
    pub pre: Option<String>,
    /// By id.
    pub tokens: Vec<String>,
    /// By id; empty if the file has none.
    pub scores: Vec<f32>,
    /// By id; empty if the file has none.
    pub types: Vec<GgufTokenType>,
    /// `left right`, best first; empty if the file has none.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`; this id and those below are within `tokens`.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// End of turn.
    pub end_of_turn: Option<u32>,
    /// Unknown token.
    pub unknown: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding starts with `bos`, if the file says so.
    pub add_bos: Option<bool>,
    /// Whether encoding ends with `eos`, if the file says so.
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text (SentencePiece), if the file says so.
    pub add_space_prefix: Option<bool>,
}

/// `tokenizer.ggml.token_type`, with the numbers of `llama_token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufTokenType {
    /// 1: ordinary.
    Normal,
    /// 2: used for text that cannot be encoded.
    Unknown,
    /// 3: special; never produced from text.
    Control,
    /// 4: added; found in text as a whole.
    UserDefined,
    /// 5: never used.
    Unused,
    /// 6: one byte, written `<0xNN>`.
    Byte,
    /// 0, or a number of a later format.
    Undefined,
}

/// A token with a special meaning, as far as the files define it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct SpecialToken {
    /// Within the vocabulary.
    pub id: Option<u32>,
    /// Its text, as chat templates use it.
    pub text: Option<String>,
}

/// The special tokens that a model declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<SpecialToken>,
    /// All tokens that end a generation: first the tokenizer's `eos_token` (the one templates use), then
    /// those of `generation_config.json`, or of `config.json` if that file is missing.
    pub eos: Vec<SpecialToken>,
    /// Padding.
    pub pad: Option<SpecialToken>,
    /// Used for text that cannot be encoded.
    pub unknown: Option<SpecialToken>,
}

impl SpecialTokens {
    /// Ids of [`SpecialTokens::eos`].
    pub fn eos_ids(&self) -> Vec<u32> {
        self.eos.iter().filter_map(|token| token.id).collect()
    }
}

/// A linear layer, to which an adapter can be added.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LinearModule {
    /// Hugging Face module name, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub role: Role,
    /// Its layer; `None` for the head.
    pub layer: Option<usize>,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
}

impl ModelFiles {
    /// Reads the files at `path`: a folder with `config.json`, or a `.gguf` file. Reads only headers and a
    /// bounded sample of the weights.
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

    /// Opens the model in `model.path`: a path, relative to `project` unless absolute, or a hub model in its
    /// download cache. See [`hub::locate`].
    pub fn find(path: impl AsRef<Path>, project: &Path) -> Result<Self, ModelError> {
        Self::open(&hub::locate(path.as_ref(), project)?)
    }

    /// All linear layers in order; the head comes last, even if it is tied.
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        self.architecture.linear_modules()
    }

    /// Number of elements in all tensors; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(TensorEntry::elements).sum()
    }
}
