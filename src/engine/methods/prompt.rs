//! Prompt tuning (arXiv 2104.08691): trained embeddings before every document, computed like tokens.

use std::path::{Path, PathBuf};

use luthier_core::config::MethodSection;
use luthier_core::model::hub;
use luthier_core::random;
use serde_json::{Value, json};
use tch::Tensor;

use super::peft;
use super::prefix::{EMBEDDINGS, LONGEST};
use super::{Method, normal, trained};
use crate::error::Result;
use crate::layers::{Adapter, Form, Parameters};
use crate::models::Model;

/// PEFT's name for it.
pub(super) const PEFT_TYPE: &str = "PROMPT_TUNING";

/// The keys of PEFT's `PromptTuningConfig` that are applied, or that only describe the initial prompt.
const KNOWN: [&str; 9] = [
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

/// Settings of a new prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptMethod {
    /// Number of virtual tokens, at least 1.
    pub virtual_tokens: usize,
    /// Written to `base_model_name_or_path`.
    pub base: PathBuf,
}

impl PromptMethod {
    /// From `[method]`; `base` is the base model's path.
    pub fn from_config(method: &MethodSection, base: &Path) -> Self {
        Self { virtual_tokens: method.virtual_tokens, base: base.to_owned() }
    }
}

impl Method for PromptMethod {
    /// PEFT's initial values: normally distributed around 0.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>> {
        let shape = [self.virtual_tokens as i64, model.architecture().hidden as i64];
        let values = normal(&shape, random::derive_name(seed, EMBEDDINGS))?;
        Prompt::new(&values, hub::public_name(&self.base), model).map(super::boxed)
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Prompt::load(folder, model).map(super::boxed)
    }
}

/// A trained prompt of one model.
#[derive(Debug)]
pub struct Prompt {
    /// `[P, H]`
    embeddings: Tensor,
    layers: usize,
    heads: usize,
    base: String,
    parameters: Parameters,
}

impl Prompt {
    fn new(values: &Tensor, base: String, model: &Model) -> Result<Self> {
        let embeddings = trained(values, model)?;
        let parameters = [(EMBEDDINGS.to_owned(), embeddings.shallow_clone())].into();
        let layers = &model.architecture().layers;
        let heads = layers.first().map_or(0, |layer| layer.attention.heads);
        Ok(Self { embeddings, layers: layers.len(), heads, base, parameters })
    }

    /// Reads a PEFT folder. All problems are reported at once.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let (mut config, mut weights) = peft::open(folder, model)?;
        config.check(PEFT_TYPE, &KNOWN);
        let count = config.size("num_virtual_tokens", 1, LONGEST) as i64;
        let submodules = config.value("num_transformer_submodules").and_then(Value::as_i64).unwrap_or(1);
        if submodules != 1 {
            config.problem(format!("its num_transformer_submodules is {submodules}, but 1 is needed"));
        }
        let found = weights.need(EMBEDDINGS, &[count, model.architecture().hidden as i64])?;
        let base = config.base();
        let problems = weights.finish(config);
        match found {
            Some(values) if problems.is_empty() => Self::new(&values, base, model),
            _ => Err(peft::refusal(folder, problems)),
        }
    }
}

impl Adapter for Prompt {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        Form::Peft(json!({
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "inference_mode": true,
            "num_virtual_tokens": self.virtual_tokens(),
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_transformer_submodules": 1,
            "token_dim": self.embeddings.size().last(),
            "prompt_tuning_init": "RANDOM",
        }))
    }

    fn virtual_tokens(&self) -> usize {
        self.embeddings.size().first().map_or(0, |&count| count as usize)
    }

    fn prompt(&self) -> Option<&Tensor> {
        Some(&self.embeddings)
    }
}
