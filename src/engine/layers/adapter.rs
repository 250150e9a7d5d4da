//! What training adds to a model, as its layers see it.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Linear, Noise};
use crate::csrc;
use crate::error::Result;

/// Trainable tensors by the name and in the shape that they are stored with: leaves that gather gradients, f32.
pub type Parameters = BTreeMap<String, Tensor>;

/// How an adapter lies in a folder.
#[derive(Debug)]
pub enum Form<'a> {
    /// As PEFT has it, with this `adapter_config.json`.
    Peft(serde_json::Value),
    /// As the base model of these files.
    Model(&'a luthier_core::model::ModelFiles),
}

/// What a method trains, and how it changes a forward pass. Base weights are never written to; the hooks' defaults do
/// nothing. P virtual tokens, g key-value heads of size d, hidden width H.
pub trait Adapter: Send {
    /// What the optimizer updates and a checkpoint holds.
    fn parameters(&self) -> &Parameters;

    /// How it lies in a folder.
    fn form(&self) -> Form<'_>;

    /// The tensor that is used in the place of the base model's of this Hugging Face name, of the same shape.
    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        let _ = tensor;
        None
    }

    /// The weight `[out, in]` that is used in the place of a linear layer's. A tied head's is that of the embedding, unless
    /// the adapter keeps the two apart.
    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        self.replacement(linear.tensors()[0])
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

    /// What is added to a linear layer's product where that is all that the adapter does to it beside replacing its bias;
    /// [`Adapter::output`] then does the same. `noise` is given in training only.
    fn low_rank(&self, linear: &Linear, noise: Option<&Noise>) -> Option<csrc::LowRank<'_>> {
        let _ = (linear, noise);
        None
    }

    /// The output of a linear layer: `x` `[N, in]` is its input, `y` `[N, out]` what its weights make of it, which may be
    /// written to. `noise` is given in training only.
    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let _ = (linear, x, noise);
        Ok(y)
    }

    /// Whether training changes equal tokens in different ways: dropout.
    fn is_random(&self) -> bool {
        false
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

    /// The weight `[out, in]` and bias `[out]` that alone do what those given and this adapter do together, where those given
    /// are the adapter's own already, if it has any. They keep their type and device; gradients reach the adapter's
    /// parameters.
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
