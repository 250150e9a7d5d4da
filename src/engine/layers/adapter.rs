//! The adapter trait: how trained weights change a model's layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use luthier_core::model::ModelFiles;
use tch::{Kind, Tensor};

use super::{Linear, Noise, WorkingCopies};
use crate::csrc;
use crate::error::Result;

/// Trainable tensors by stored name and in stored shape: f32, and leaves with gradients unless they have a
/// [`super::WorkingCopy`].
pub type Parameters = BTreeMap<String, Tensor>;

/// The format of an adapter's folder.
#[derive(Debug, Clone)]
pub enum Form {
    /// A PEFT folder with this `adapter_config.json`.
    Peft(serde_json::Value),
    /// A model folder laid out like these files of the base model.
    Model(Arc<ModelFiles>),
}

/// The weights that a method trains, and how they change a forward pass. Base weights are never written to.
/// By default, the hooks do nothing. P virtual tokens, g key-value heads of size d, hidden width H.
pub trait Adapter: Send {
    /// The tensors that the optimizer updates and a checkpoint contains.
    fn parameters(&self) -> &Parameters;

    fn form(&self) -> Form;

    /// Copies of parameters in the compute type, which have the gradients instead of them.
    fn working(&self) -> Option<&WorkingCopies> {
        None
    }

    /// Replaces the base model's tensor of this Hugging Face name; same shape.
    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        let _ = tensor;
        None
    }

    /// Replaces a linear layer's weight, `[out, in]`. A tied head's replacement is that of the embedding,
    /// unless the adapter trains the two separately.
    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        self.replacement(linear.tensors()[0])
    }

    /// Whether the product of a linear layer's base weights and unchanged input can be used: the adapter
    /// changes neither.
    fn shares_product(&self, linear: &Linear) -> bool {
        let _ = linear;
        true
    }

    /// Replaces a linear layer's input `x` `[N, in]`; `None` if it is unchanged.
    fn input(&self, linear: &Linear, x: &Tensor) -> Result<Option<Tensor>> {
        let _ = (linear, x);
        Ok(None)
    }

    /// A low-rank term added to a linear layer's product, if this and a replaced bias are the adapter's only
    /// changes to the layer. [`Adapter::output`] must give the same result. `noise` is given only in
    /// training.
    fn low_rank(&self, linear: &Linear, noise: Option<&Noise>) -> Option<csrc::LowRank<'_>> {
        let _ = (linear, noise);
        None
    }

    /// The output of a linear layer with input `x` `[N, in]`. `y` `[N, out]` is the product with its weights,
    /// and may be overwritten. `noise` is given only in training.
    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let _ = (linear, x, noise);
        Ok(y)
    }

    /// The same adapter for forward passes without gradients, if it can hold what each pass over these layers would
    /// compute from its parameters alone; `kind` is the activations' type. Valid until a parameter changes.
    fn settled(
        &self,
        linears: &mut dyn Iterator<Item = &Linear>,
        kind: Kind,
    ) -> Result<Option<Box<dyn Adapter>>> {
        let _ = (linears, kind);
        Ok(None)
    }

    /// Whether training treats equal tokens differently, because of dropout.
    fn is_random(&self) -> bool {
        false
    }

    /// Virtual tokens before every document: P.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Keys and values of the virtual tokens in a layer, `[P, g, d]` each, if the adapter stores these.
    fn prefix(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let _ = layer;
        Ok(None)
    }

    /// Embeddings of the virtual tokens, `[P, H]`, if the adapter stores these.
    fn prompt(&self) -> Option<&Tensor> {
        None
    }

    /// The weight `[out, in]` and bias `[out]` that include the adapter's effect. The given ones are already
    /// those that replace the base model's, if the adapter has any. Type and device stay the same; gradients
    /// reach the adapter's parameters.
    fn fold(&self, linear: &Linear, weight: Tensor, bias: Option<Tensor>) -> Result<Folded> {
        let _ = linear;
        Ok(Folded { weight, bias })
    }
}

/// Result of [`Adapter::fold`].
#[derive(Debug)]
pub struct Folded {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}
