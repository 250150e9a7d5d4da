//! Copies of base tensors that are trained instead of the base's: all tensors in full fine-tuning, a few in
//! addition to an adapter's factors (PEFT's `modules_to_save` and `bias`).

use std::collections::BTreeMap;

use luthier_core::model::roles::Part;
use luthier_core::model::trained::Copied;
use luthier_core::model::{Arrangement, ModelFiles, Quantisation};
use tch::{Kind, Tensor};

use super::peft::Weights;
use super::trained;
use crate::error::Result;
use crate::layers::Linear;
use crate::models::Model;
use crate::ops;
use crate::weights::Loader;

/// Trained copies by the Hugging Face name of the tensor that they replace.
#[derive(Debug, Default)]
pub(super) struct Copies(BTreeMap<String, Copy>);

#[derive(Debug)]
struct Copy {
    stored: String,
    /// In the stored layout.
    leaf: Tensor,
    /// In the forward pass's layout, over the same memory.
    used: Tensor,
}

impl Copies {
    /// Copies of the tensors in a model's files, which are laid out like those of `model`; `name` gives the
    /// stored name.
    pub fn of_files(
        files: &ModelFiles,
        wanted: &[Copied],
        model: &Model,
        name: impl Fn(&Copied) -> String,
    ) -> Result<Self> {
        let loader = Loader::open(files, model.device(), Kind::Float, Quantisation::None)?;
        let mut copies = Self::default();
        for copied in wanted {
            // Copied, because the loaded tensor may be in the mapped file.
            let own = ops::copy(&loader.tensor(&source(copied, model))?)?;
            copies.insert(copied, name(copied), &arranged(&own, copied.arrangement)?, model)?;
        }
        Ok(copies)
    }

    /// Takes the required tensors from an adapter's.
    pub fn take(
        wanted: &[Copied],
        weights: &mut Weights,
        model: &Model,
        name: impl Fn(&Copied) -> String,
    ) -> Result<Self> {
        let mut copies = Self::default();
        for copied in wanted {
            let mut shape: Vec<i64> = copied.shape.iter().map(|&length| length as i64).collect();
            if copied.arrangement == Arrangement::Transposed {
                shape.reverse();
            }
            let stored = name(copied);
            if let Some(found) = weights.need(&stored, &shape)?
                && weights.problems.is_empty()
            {
                copies.insert(copied, stored, &found, model)?;
            }
        }
        Ok(copies)
    }

    /// `values` are in the stored layout.
    fn insert(&mut self, copied: &Copied, stored: String, values: &Tensor, model: &Model) -> Result<()> {
        let leaf = trained(values, model)?;
        let used = match copied.arrangement {
            Arrangement::Transposed => ops::transpose(&leaf, 0, 1)?,
            _ => leaf.shallow_clone(),
        };
        self.0.insert(copied.tensor(), Copy { stored, leaf, used });
        Ok(())
    }

    /// The replacement of the base tensor with this Hugging Face name.
    pub fn get(&self, tensor: &str) -> Option<&Tensor> {
        self.0.get(tensor).map(|copy| &copy.used)
    }

    /// The replacement of a layer's weight under the layer's own name, also for a tied head.
    pub fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        if self.0.is_empty() { None } else { self.get(&format!("{}.weight", linear.name)) }
    }

    /// The same copies over the same memory; tables and matrices as type `kind`, in which they are used.
    pub fn settled(&self, kind: Kind) -> Result<Self> {
        let settle = |(name, Copy { stored, leaf, used }): (&String, &Copy)| {
            let used = if used.dim() == 2 { ops::to_kind(used, kind)? } else { used.shallow_clone() };
            Ok((name.clone(), Copy { stored: stored.clone(), leaf: leaf.shallow_clone(), used }))
        };
        Ok(Self(self.0.iter().map(settle).collect::<Result<_>>()?))
    }

    /// The trained tensors, by stored name.
    pub fn parameters(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.0.values().map(|copy| (copy.stored.clone(), copy.leaf.shallow_clone()))
    }
}

/// The tensor that a copy starts from. For a tied head this is the embedding.
fn source(copied: &Copied, model: &Model) -> String {
    let linear = model.linears().find(|linear| linear.name == copied.module);
    match (linear, copied.part) {
        (Some(linear), Part::Weight) => linear.tensors()[0].to_owned(),
        _ => copied.tensor(),
    }
}

/// Converts a tensor from the architecture's layout to the stored one.
pub(super) fn arranged(tensor: &Tensor, arrangement: Arrangement) -> Result<Tensor> {
    match arrangement {
        Arrangement::Transposed => ops::contiguous(&ops::transpose(tensor, 0, 1)?),
        _ => Ok(tensor.shallow_clone()),
    }
}
