//! Prefix tuning (arXiv 2101.00190): trained keys and values that every token of every layer sees before
//! those of its document. As in PEFT, and without the paper's projection, which only training needs: one row
//! per virtual token with, layer by layer, the keys of all heads and then their values. Keys are used as they
//! are, without rotation.

use std::path::{Path, PathBuf};

use luthier_core::config::MethodSection;
use luthier_core::model::hub;
use luthier_core::model::trained::prefix_heads;
use luthier_core::random;
use serde_json::{Value, json};
use tch::Tensor;

use super::peft;
use super::{Method, normal, trained};
use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Form, Parameters};
use crate::models::Model;
use crate::ops;

/// PEFT's name for it.
pub(super) const PEFT_TYPE: &str = "PREFIX_TUNING";

/// PEFT's name for the stored virtual tokens.
pub(super) const EMBEDDINGS: &str = "prompt_embeddings";

/// Most virtual tokens that are accepted.
pub(super) const LONGEST: usize = 65_536;

/// The keys of PEFT's `PrefixTuningConfig` that are applied or matter only in training: the result of a
/// projection is stored, not the projection.
const KNOWN: [&str; 8] = [
    "encoder_hidden_size",
    "init_weights",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "prefix_projection",
    "token_dim",
];

/// Settings of a new prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixMethod {
    /// Number of virtual tokens, at least 1.
    pub virtual_tokens: usize,
    /// Written to `base_model_name_or_path`.
    pub base: PathBuf,
}

impl PrefixMethod {
    /// From `[method]`; `base` is the base model's path.
    pub fn from_config(method: &MethodSection, base: &Path) -> Self {
        Self { virtual_tokens: method.virtual_tokens, base: base.to_owned() }
    }
}

impl Method for PrefixMethod {
    /// PEFT's initial values: normally distributed around 0.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>> {
        let layout = Layout::of(model)?;
        let shape = [self.virtual_tokens as i64, layout.width()];
        let values = normal(&shape, random::derive_name(seed, EMBEDDINGS))?;
        Prefix::new(&values, layout, hub::public_name(&self.base), model).map(super::boxed)
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Prefix::load(folder, model).map(super::boxed)
    }
}

/// A prefix of one model.
#[derive(Debug)]
pub struct Prefix {
    /// `[P, layers × 2 × heads × head size]`
    embeddings: Tensor,
    layout: Layout,
    base: String,
    parameters: Parameters,
}

/// The layout of a row of the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    layers: i64,
    heads: i64,
    size: i64,
}

impl Layout {
    fn of(model: &Model) -> Result<Self> {
        let layers = &model.architecture().layers;
        let mut shapes = layers
            .iter()
            .map(|layer| (prefix_heads(&layer.attention) as i64, layer.attention.head_size as i64));
        let first = shapes.next().unwrap_or_default();
        if shapes.any(|shape| shape != first) {
            return Err(EngineError::Config(
                "prefix tuning needs layers with equally many key-value heads of one size, which this model does not \
                 have; use method.kind = \"lora\""
                    .into(),
            ));
        }
        let (heads, size) = first;
        Ok(Self { layers: layers.len() as i64, heads, size })
    }

    fn width(self) -> i64 {
        self.layers * 2 * self.heads * self.size
    }
}

impl Prefix {
    fn new(values: &Tensor, layout: Layout, base: String, model: &Model) -> Result<Self> {
        let embeddings = trained(values, model)?;
        let parameters = [(EMBEDDINGS.to_owned(), embeddings.shallow_clone())].into();
        Ok(Self { embeddings, layout, base, parameters })
    }

    /// Reads a PEFT folder. All problems are reported at once.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let (mut config, mut weights) = peft::open(folder, model)?;
        config.check(PEFT_TYPE, &KNOWN);
        let layout = Layout::of(model)?;
        let count = config.size("num_virtual_tokens", 1, LONGEST) as i64;
        for (key, wanted) in [
            ("num_layers", layout.layers),
            ("num_attention_heads", layout.heads),
            ("token_dim", layout.heads * layout.size),
            ("num_transformer_submodules", 1),
        ] {
            let found = config.value(key).and_then(Value::as_i64).unwrap_or(wanted);
            if found != wanted {
                config.problem(format!("its {key} is {found}, but this model needs {wanted}"));
            }
        }
        let found = weights.need(EMBEDDINGS, &[count, layout.width()])?;
        let base = config.base();
        let problems = weights.finish(config);
        match found {
            Some(values) if problems.is_empty() => Self::new(&values, layout, base, model),
            _ => Err(peft::refusal(folder, problems)),
        }
    }
}

impl Adapter for Prefix {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        let Layout { layers, heads, size } = self.layout;
        Form::Peft(json!({
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "inference_mode": true,
            "num_virtual_tokens": self.virtual_tokens(),
            "num_layers": layers,
            "num_attention_heads": heads,
            "num_transformer_submodules": 1,
            "token_dim": heads * size,
            "encoder_hidden_size": heads * size,
            "prefix_projection": false,
        }))
    }

    fn virtual_tokens(&self) -> usize {
        self.embeddings.size().first().map_or(0, |&count| count as usize)
    }

    fn prefix(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let Layout { heads, size, .. } = self.layout;
        let width = heads * size;
        let part = |index: i64| {
            ops::reshape(&ops::narrow(&self.embeddings, 1, index * width, width)?, &[-1, heads, size])
        };
        let first = 2 * layer as i64;
        Ok(Some((part(first)?, part(first + 1)?)))
    }
}
