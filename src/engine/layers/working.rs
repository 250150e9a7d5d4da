//! Copies of trained weights in the compute type.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::{csrc, ops};

/// The copies of an adapter's parameters, by stored name. A parameter without one is used itself.
pub type WorkingCopies = BTreeMap<String, WorkingCopy>;

/// A parameter in the compute type, which the forward pass uses instead of it, so that weights are not rounded,
/// and gradients not converted, in every micro-batch. It is written after each update.
#[derive(Debug)]
pub struct WorkingCopy {
    /// In the parameter's stored shape.
    values: Tensor,
    /// Over the memory of `values`.
    leaf: Tensor,
    /// The same for a second layer: the gradients of two layers are added in f32.
    other: Option<Tensor>,
}

impl WorkingCopy {
    /// Of a parameter that one layer uses, or two if it `is_shared`.
    pub fn new(parameter: &Tensor, kind: Kind, is_shared: bool) -> Result<Self> {
        let values = ops::detach(&ops::to_kind(parameter, kind)?)?;
        let leaf = ops::leaf(&values)?;
        let other = is_shared.then(|| ops::leaf(&values)).transpose()?;
        Ok(Self { values, leaf, other })
    }

    /// In the parameter's stored shape, without gradient.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// What a layer uses.
    pub fn leaf(&self) -> &Tensor {
        &self.leaf
    }

    /// What the second layer uses.
    pub fn other(&self) -> Option<&Tensor> {
        self.other.as_ref()
    }

    /// Writes a changed parameter to the copy.
    pub fn write(&self, parameter: &Tensor) -> Result<()> {
        ops::copy_into(&mut self.values.shallow_clone(), parameter)
    }

    /// Takes the gradient from the leaves: f32 if two layers had one.
    pub fn take_gradient(&self) -> Result<Option<Tensor>> {
        let mut sum = None;
        for leaf in std::iter::once(&self.leaf).chain(&self.other) {
            if let Some(gradient) = csrc::take_gradient(leaf)? {
                sum = Some(added(sum, gradient)?);
            }
        }
        Ok(sum)
    }
}

/// The f32 sum of two gradients; the second itself if there is no first.
pub fn added(sum: Option<Tensor>, more: Tensor) -> Result<Tensor> {
    let Some(sum) = sum else { return Ok(more) };
    let mut sum = ops::to_kind(&sum, Kind::Float)?;
    ops::add_into(&mut sum, &more)?;
    Ok(sum)
}
