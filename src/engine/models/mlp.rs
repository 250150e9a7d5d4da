//! Feed-forward part of a layer.

use luthier_core::model::architecture::{Activation, Mlp as Spec};
use luthier_core::model::roles::Role;
use tch::Tensor;

use super::block::Module;
use crate::error::Result;
use crate::layers::{Linear, Pass};
use crate::ops;
use crate::weights::Loader;

pub(super) enum Mlp {
    /// `down(activation(gate(x)) · up(x))`
    Gated { activation: Activation, gate: Linear, up: Linear, down: Linear },
    /// As `Gated`, with one matrix for gate and up.
    GatedFused { activation: Activation, gate_up: Linear, down: Linear },
    /// `down(activation(up(x)))`
    Plain { activation: Activation, up: Linear, down: Linear },
}

impl Mlp {
    pub fn load(spec: Spec, module: Module, loader: &mut Loader) -> Result<Self> {
        match spec {
            Spec::Gated { activation, bias, .. } => Ok(Self::Gated {
                activation,
                gate: Linear::load(loader, &module(Role::Gate)?, bias)?,
                up: Linear::load(loader, &module(Role::Up)?, bias)?,
                down: Linear::load(loader, &module(Role::Down)?, bias)?,
            }),
            Spec::GatedFused { activation, bias, .. } => Ok(Self::GatedFused {
                activation,
                gate_up: Linear::load(loader, &module(Role::GateUp)?, bias)?,
                down: Linear::load(loader, &module(Role::Down)?, bias)?,
            }),
            Spec::Plain { activation, bias, .. } => Ok(Self::Plain {
                activation,
                up: Linear::load(loader, &module(Role::Up)?, bias)?,
                down: Linear::load(loader, &module(Role::Down)?, bias)?,
            }),
        }
    }

    /// `[N, H]` → `[N, H]`
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self {
            Self::Gated { activation, gate, up, down } => {
                let [gate, up] = Linear::forward_all([gate, up], x, pass)?;
                joined(*activation, &gate, &up, down, pass)
            }
            Self::GatedFused { activation, gate_up, down } => {
                let both = gate_up.forward(x, pass)?; // [N, 2 · width]
                let width = both.size().last().copied().unwrap_or_default() / 2;
                let half = |start| ops::contiguous(&ops::narrow(&both, -1, start, width)?);
                joined(*activation, &half(0)?, &half(width)?, down, pass)
            }
            Self::Plain { activation, up, down } => {
                down.forward(&activate(*activation, &up.forward(x, pass)?)?, pass)
            }
        }
    }

    /// In site order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let all = match self {
            Self::Gated { gate, up, down, .. } => [Some(gate), Some(up), Some(down)],
            Self::GatedFused { gate_up, down, .. } => [Some(gate_up), Some(down), None],
            Self::Plain { up, down, .. } => [Some(up), Some(down), None],
        };
        all.into_iter().flatten()
    }
}

/// `down(activation(gate) · up)`
fn joined(activation: Activation, gate: &Tensor, up: &Tensor, down: &Linear, pass: &Pass) -> Result<Tensor> {
    match activation {
        Activation::Silu => down.forward_gated(gate, up, pass),
        Activation::Gelu | Activation::GeluTanh | Activation::Relu => {
            down.forward(&ops::multiply(&activate(activation, gate)?, up)?, pass)
        }
    }
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => ops::silu(x),
        Activation::Gelu => ops::gelu(x, false),
        Activation::GeluTanh => ops::gelu(x, true),
        Activation::Relu => ops::relu(x),
    }
}
