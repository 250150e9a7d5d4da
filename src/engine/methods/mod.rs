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
/// nothing.
pub trait Adapter: Send {
    /// What the optimizer updates and a checkpoint holds.
    fn parameters(&self) -> &Parameters;

    /// Content of PEFT's `adapter_config.json`.
    fn peft_config(&self) -> serde_json::Value;

    /// The output of a linear layer: `x` `[N, in]` is its input, `y` `[N, out]` what the base weights make of it. `noise`
    /// is given in training only.
    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let _ = (linear, x, noise);
        Ok(y)
    }

    /// The weight (f32, on the CPU) that alone does what `dense` and this adapter do together; `None` where it leaves
    /// the layer as it is.
    fn fold(&self, linear: &Linear, dense: &Tensor) -> Result<Option<Tensor>> {
        let _ = (linear, dense);
        Ok(None)
    }
}
