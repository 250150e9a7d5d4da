//! The decoder block: residual connections around attention ([`super::attention`]) and feed-forward part
//! ([`super::mlp`]).
//!
//! ```text
//! Residual::PreNorm      x ──┬─ norm ─ attention ─┬─ + ──┬─ norm ─ mlp ─┬─ +
//!                            └────────────────────┘      └──────────────┘
//! Residual::Sandwich     x ──┬─ norm ─ attention ─ norm ─┬─ + ──┬─ norm ─ mlp ─ norm ─┬─ +
//!                            └───────────────────────────┘      └─────────────────────┘
//! Residual::Parallel     x ──┬─ norm ─┬─ attention ─┬─ +     with one norm for both,
//!                            ├────────┼─────────────┤        or a second one before the mlp
//!                            └─(norm)─┴─ mlp ───────┘
//! ```

use luthier_core::model::architecture::{Architecture, LayerSpec, Residual};
use luthier_core::model::roles::Role;
use tch::Tensor;

use super::attention::Attention;
use super::frame::Frame;
use super::mlp::Mlp;
use super::norm::Norm;
use crate::error::{EngineError, Result};
use crate::layers::{LayerCache, Linear};
use crate::ops;
use crate::weights::Loader;

/// The module name for a role in the layer being loaded.
pub(super) type Module<'a> = &'a dyn Fn(Role) -> Result<String>;

pub(super) struct Block {
    norms: Norms,
    attention: Attention,
    mlp: Mlp,
}

/// How the two parts join the residual stream, with the norms before and after them.
enum Norms {
    Pre { attention: Norm, mlp: Norm },
    Sandwich { attention: Norm, after_attention: Norm, mlp: Norm, after_mlp: Norm },
    Parallel { attention: Norm, mlp: Option<Norm> },
}

impl Block {
    /// `rope` is the index of the layer's rotation in the model's list.
    pub fn load(
        architecture: &Architecture,
        layer: usize,
        rope: Option<usize>,
        loader: &mut Loader,
    ) -> Result<Self> {
        let LayerSpec { residual, norm, attention, mlp } = &architecture.layers[layer];
        let module = |role: Role| {
            architecture.module(role, layer).ok_or_else(|| {
                EngineError::Config(format!("{} models have no {role:?} module", architecture.family))
            })
        };
        let load = |role: Role| Norm::load(*norm, &module(role)?, loader);
        let norms = match residual {
            Residual::PreNorm => {
                Norms::Pre { attention: load(Role::AttentionNorm)?, mlp: load(Role::MlpNorm)? }
            }
            Residual::Sandwich => Norms::Sandwich {
                attention: load(Role::AttentionNorm)?,
                after_attention: load(Role::PostAttentionNorm)?,
                mlp: load(Role::MlpNorm)?,
                after_mlp: load(Role::PostMlpNorm)?,
            },
            Residual::Parallel { shared_norm } => Norms::Parallel {
                attention: load(Role::AttentionNorm)?,
                mlp: (!shared_norm).then(|| load(Role::MlpNorm)).transpose()?,
            },
        };
        let attention = Attention::load(attention, layer, rope, &module, loader)?;
        Ok(Self { norms, attention, mlp: Mlp::load(*mlp, &module, loader)? })
    }

    /// `[N, H]` → `[N, H]`. Keys and values of the new tokens are written to `cache`.
    pub fn forward(&self, x: &Tensor, frame: &Frame, cache: Option<&LayerCache>) -> Result<Tensor> {
        let pass = frame.pass;
        match &self.norms {
            Norms::Pre { attention, mlp } => {
                let mixed = self.attention.forward(&attention.forward(x, pass)?, frame, cache)?;
                let (x, normed) = mlp.after_sum(x, &mixed, pass)?;
                ops::add(&x, &self.mlp.forward(&normed, pass)?)
            }
            Norms::Sandwich { attention, after_attention, mlp, after_mlp } => {
                let mixed = self.attention.forward(&attention.forward(x, pass)?, frame, cache)?;
                let x = ops::add(x, &after_attention.forward(&mixed, pass)?)?;
                let changed = self.mlp.forward(&mlp.forward(&x, pass)?, pass)?;
                ops::add(&x, &after_mlp.forward(&changed, pass)?)
            }
            Norms::Parallel { attention, mlp } => {
                let shared = attention.forward(x, pass)?;
                let mixed = self.attention.forward(&shared, frame, cache)?;
                let own = mlp.as_ref().map(|norm| norm.forward(x, pass)).transpose()?;
                let changed = self.mlp.forward(own.as_ref().unwrap_or(&shared), pass)?;
                ops::add(&ops::add(&mixed, &changed)?, x)
            }
        }
    }

    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let own = match &self.norms {
            Norms::Pre { attention, mlp } => [Some(attention), Some(mlp), None, None],
            Norms::Sandwich { attention, after_attention, mlp, after_mlp } => {
                [attention, after_attention, mlp, after_mlp].map(Some)
            }
            Norms::Parallel { attention, mlp } => [Some(attention), mlp.as_ref(), None, None],
        };
        own.into_iter().flatten().chain(self.attention.norms())
    }

    /// In site order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.mlp.linears())
    }
}
