//! What is trained: a method turns settings into an adapter, an adapter changes what linear layers compute.

pub mod lora;
mod peft;

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

pub use lora::LoraMethod;
pub use peft::save;

use crate::error::Result;
use crate::models::{Model, Noise};
use crate::weights::Linear;

/// Trainable tensors by the name and in the shape that PEFT stores them with: leaves that gather gradients, f32.
pub type Parameters = BTreeMap<String, Tensor>;

/// A way of fine-tuning: settings to adapter. One file each.
pub trait Method: Sync {
    /// A new adapter for `model`; the same for the same seed.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>>;

    /// An adapter from a PEFT folder. Everything that does not fit `model` is reported at once.
    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>>;
}

/// What a method trains, and how it changes a forward pass. Base weights are never written to; the hooks' defaults do
/// nothing. P virtual tokens, g key-value heads of size d, hidden width H.
pub trait Adapter: Send {
    /// What the optimizer updates and a checkpoint holds.
    fn parameters(&self) -> &Parameters;

    /// Content of PEFT's `adapter_config.json`.
    fn peft_config(&self) -> serde_json::Value;

    /// The tensor that is used in the place of the base model's of this Hugging Face name, of the same shape.
    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        let _ = tensor;
        None
    }

    /// Whether a linear layer's product of base weights and unchanged input serves this adapter: its input and weights
    /// are those of the base model.
    fn shares_product(&self, linear: &Linear) -> bool {
        let _ = linear;
        true
    }

    /// What a linear layer reads instead of `x` `[N, in]`; `None` where it reads `x`.
    fn input(&self, linear: &Linear, x: &Tensor) -> Result<Option<Tensor>> {
        let _ = (linear, x);
        Ok(None)
    }

    /// The output of a linear layer: `x` `[N, in]` is its input, `y` `[N, out]` what its weights make of it, which may be
    /// written to. `noise` is given in training only.
    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let _ = (linear, x, noise);
        Ok(y)
    }

    /// Tokens of the adapter's own that stand before every document: P.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Keys and values of the virtual tokens in a layer, `[P, g, d]` each, where the adapter gives those directly.
    fn prefix(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let _ = layer;
        Ok(None)
    }

    /// Embeddings of the virtual tokens, `[P, H]`, where the adapter gives those.
    fn prompt(&self) -> Option<&Tensor> {
        None
    }

    /// The weight `[out, in]` and bias `[out]` that alone do what those given and this adapter do together. They keep
    /// their type and device; gradients reach the adapter's parameters.
    fn fold(&self, linear: &Linear, weight: Tensor, bias: Option<Tensor>) -> Result<Folded> {
        let _ = linear;
        Ok(Folded { weight, bias })
    }
}

/// What [`Adapter::fold`] makes.
#[derive(Debug)]
pub struct Folded {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}
