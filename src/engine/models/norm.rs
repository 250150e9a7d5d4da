//! Normalisation over the last dimension.

use luthier_core::model::architecture::Norm as Spec;
use tch::{Kind, Tensor};

use crate::error::Result;
use crate::layers::Pass;
use crate::weights::Loader;
use crate::{csrc, ops};

/// A norm with its weights.
pub(super) struct Norm {
    spec: Spec,
    weight_name: String,
    /// In the form that the forward pass uses: for [`Spec::RmsPlusOne`], 1 is added in f32.
    weight: Tensor,
    bias: Option<(String, Tensor)>,
}

impl Norm {
    pub fn load(spec: Spec, module: &str, loader: &Loader) -> Result<Self> {
        let weight_name = format!("{module}.weight");
        let weight = ready(spec, &loader.tensor(&weight_name)?, loader.kind())?;
        let bias = spec.has_bias().then(|| {
            let name = format!("{module}.bias");
            loader.tensor(&name).map(|bias| (name, bias))
        });
        Ok(Self { spec, weight_name, weight, bias: bias.transpose()? })
    }

    /// The name of its weight, if the forward pass uses it in f32 with any compute type.
    pub fn exact_weight(&self) -> Option<&str> {
        matches!(self.spec, Spec::RmsPlusOne { .. }).then_some(self.weight_name.as_str())
    }

    /// `[N, …, H]` → `[N, …, H]`
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if !self.is_replaced(pass) {
            return self.apply(x, &self.weight, self.bias.as_ref().map(|(_, bias)| bias));
        }
        pass.by_adapter(x, |adapter, x| {
            let find = |name: &str| adapter.and_then(|adapter| adapter.replacement(name));
            let weight = find(&self.weight_name).map(|weight| ready(self.spec, weight, x.kind()));
            let bias = self.bias.as_ref().map(|(name, bias)| match find(name) {
                Some(replacement) => ops::to_kind(replacement, x.kind()),
                None => Ok(bias.shallow_clone()),
            });
            let (weight, bias) = (weight.transpose()?, bias.transpose()?);
            self.apply(x, weight.as_ref().unwrap_or(&self.weight), bias.as_ref())
        })
    }

    /// `x + other`, and the norm of that.
    pub fn after_sum(&self, x: &Tensor, other: &Tensor, pass: &Pass) -> Result<(Tensor, Tensor)> {
        if let Spec::Rms { epsilon } = self.spec
            && !self.is_replaced(pass)
        {
            return ops::add_rms_norm(x, other, &self.weight, epsilon);
        }
        let sum = ops::add(x, other)?;
        let norm = self.forward(&sum, pass)?;
        Ok((sum, norm))
    }

    fn is_replaced(&self, pass: &Pass) -> bool {
        let bias_name = self.bias.as_ref().map(|(name, _)| name);
        std::iter::once(&self.weight_name).chain(bias_name).any(|name| pass.replaces(name))
    }

    fn apply(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self.spec {
            Spec::Rms { epsilon } => ops::rms_norm(x, weight, epsilon),
            Spec::RmsPlusOne { epsilon } => ops::rms_norm_rounded_last(x, weight, epsilon),
            Spec::Layer { epsilon } => ops::layer_norm(x, weight, bias, epsilon),
        }
    }
}

/// Converts a stored or trained weight to the form that the forward pass uses.
fn ready(spec: Spec, weight: &Tensor, kind: Kind) -> Result<Tensor> {
    match spec {
        Spec::RmsPlusOne { .. } => ops::add_number(&ops::to_kind(weight, Kind::Float)?, 1.0),
        // Without a gradient there is a faster kernel.
        Spec::Rms { .. } | Spec::Layer { .. } if kind != Kind::Float => {
            csrc::as_recorded(&ops::to_kind(weight, kind)?)
        }
        Spec::Rms { .. } | Spec::Layer { .. } => ops::to_kind(weight, kind),
    }
}
