//! The decoder block: the only forward code there is.
//!
//! Notation: B rows, T columns, N = B × T tokens, H hidden width, h query heads, g key-value heads, d head size, K keys.
//!
//! ```text
//! Residual::PreNorm      x ──┬─ norm ─ attention ─┬─ + ──┬─ norm ─ mlp ─┬─ +
//!                            └────────────────────┘      └──────────────┘
//! ```

use luthier_core::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp as MlpSpec, Norm as NormSpec, Qkv, Residual,
};
use luthier_core::model::roles::Role;
use tch::Tensor;

use super::frame::{Frame, View};
use crate::error::{EngineError, Result};
use crate::generation::LayerCache;
use crate::weights::{Linear, Loader};
use crate::{csrc, ops};

/// Normalisation with its weight.
pub(super) struct Norm {
    spec: NormSpec,
    weight: Tensor,
}

impl Norm {
    pub fn load(spec: NormSpec, module: &str, loader: &Loader) -> Result<Self> {
        Ok(Self { spec, weight: loader.tensor(&format!("{module}.weight"))? })
    }

    /// `[N, H]` → `[N, H]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.spec {
            NormSpec::Rms { epsilon } => ops::rms_norm(x, &self.weight, epsilon),
        }
    }
}

/// One layer.
pub(super) struct Block {
    residual: Residual,
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Block {
    /// `rope` is the index of the layer's rotation in the model's list.
    pub fn load(architecture: &Architecture, layer: usize, rope: usize, loader: &mut Loader) -> Result<Self> {
        let LayerSpec { residual, norm, attention, mlp } = &architecture.layers[layer];
        let module = |role: Role| {
            architecture.module(role, layer).ok_or_else(|| {
                EngineError::Config(format!("{} models have no {role:?} module", architecture.family))
            })
        };
        Ok(Self {
            residual: *residual,
            attention_norm: Norm::load(*norm, &module(Role::AttentionNorm)?, loader)?,
            attention: Attention::load(attention, layer, rope, &module, loader)?,
            mlp_norm: Norm::load(*norm, &module(Role::MlpNorm)?, loader)?,
            mlp: Mlp::load(mlp, &module, loader)?,
        })
    }

    /// `[N, H]` → `[N, H]`; keys and values of the new tokens go into `cache`.
    pub fn forward(&self, x: &Tensor, frame: &Frame, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        match self.residual {
            Residual::PreNorm => {
                let mixed = self.attention.forward(&self.attention_norm.forward(x)?, frame, cache)?;
                let x = ops::add(x, &mixed)?;
                let changed = self.mlp.forward(&self.mlp_norm.forward(&x)?, frame)?;
                ops::add(&x, &changed)
            }
        }
    }

    /// In the order in which sites were given out.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Attention { query, key, value, output, .. } = &self.attention;
        let Mlp { gate, up, down, .. } = &self.mlp;
        [query, key, value, output, gate, up, down].into_iter()
    }
}

/// Causal self-attention with rotary positions and grouped key-value heads.
struct Attention {
    spec: AttentionSpec,
    layer: usize,
    rope: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl Attention {
    fn load(
        spec: &AttentionSpec,
        layer: usize,
        rope: usize,
        module: &impl Fn(Role) -> Result<String>,
        loader: &mut Loader,
    ) -> Result<Self> {
        match spec.qkv {
            Qkv::Split => Ok(Self {
                spec: spec.clone(),
                layer,
                rope,
                query: loader.linear(&module(Role::Query)?, spec.input_bias)?,
                key: loader.linear(&module(Role::Key)?, spec.input_bias)?,
                value: loader.linear(&module(Role::Value)?, spec.input_bias)?,
                output: loader.linear(&module(Role::Output)?, spec.output_bias)?,
            }),
        }
    }

    fn forward(&self, x: &Tensor, frame: &Frame, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let AttentionSpec { heads, key_value_heads, head_size, .. } = self.spec;
        let (h, g, d) = (heads as i64, key_value_heads as i64, head_size as i64);
        let (cos, sin) = &frame.rotations[self.rope];
        let query = ops::reshape(&self.query.forward(x, frame.pass)?, &[-1, h, d])?; // [N, h, d]
        let key = ops::reshape(&self.key.forward(x, frame.pass)?, &[-1, g, d])?; // [N, g, d]
        let value = ops::reshape(&self.value.forward(x, frame.pass)?, &[-1, g, d])?;
        let query = ops::rope(&query, cos, sin)?;
        let key = ops::rope(&key, cos, sin)?;
        let mixed = self
            .mix(&query, &key, &value, frame, cache)
            .map_err(|error| error.within(&format!("layer {}", self.layer)))?; // [N, h · d]
        self.output.forward(&mixed, frame.pass)
    }

    fn mix(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        frame: &Frame,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let scale = self.spec.scale;
        let (rows, width) = (frame.rows, frame.width);
        if let Some(cache) = cache {
            cache.write(&by_row(key, rows, width)?, &by_row(value, rows, width)?)?;
            if let View::Cached { keys, mask } = &frame.view {
                if let Some(mixed) = (width == 1).then(|| cache.attend(query, scale)).flatten() {
                    return mixed;
                }
                let (key, value) = cache.read(*keys)?; // [B, g, K, d]
                return self.mix_cached(query, &key, &value, mask.as_ref(), frame);
            }
        }
        match &frame.view {
            View::Documents(lengths) => documents(query, key, value, lengths, scale),
            View::Causal => {
                let lengths = vec![width; rows as usize];
                documents(query, key, value, &lengths, scale)
            }
            View::Masked(mask) | View::Cached { mask: Some(mask), .. } => {
                let (q, k, v) =
                    (by_row(query, rows, width)?, by_row(key, rows, width)?, by_row(value, rows, width)?);
                by_token(&ops::attention(&q, &k, &v, Some(mask), false, scale)?)
            }
            View::Cached { mask: None, .. } => {
                Err(EngineError::torch("attention", "a cached forward was given no cache"))
            }
        }
    }

    /// New queries against all keys of the cache.
    fn mix_cached(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        frame: &Frame,
    ) -> Result<Tensor> {
        let (rows, width) = (frame.rows, frame.width);
        let (h, g, d) =
            (self.spec.heads as i64, self.spec.key_value_heads as i64, self.spec.head_size as i64);
        if width == 1 {
            // The query heads of one group stand where columns would: nothing is repeated.
            let query = ops::reshape(query, &[rows, g, h / g, d])?;
            let mixed = ops::attention(&query, key, value, mask, false, self.spec.scale)?;
            return ops::reshape(&mixed, &[rows, h * d]);
        }
        by_token(&ops::attention(&by_row(query, rows, width)?, key, value, mask, false, self.spec.scale)?)
    }
}

/// `[N, heads, d]` → `[B, heads, T, d]`, without copying.
fn by_row(x: &Tensor, rows: i64, width: i64) -> Result<Tensor> {
    let size = x.size();
    ops::transpose(&ops::reshape(x, &[rows, width, size[1], size[2]])?, 1, 2)
}

/// `[B, heads, T, d]` → `[N, heads · d]`
fn by_token(x: &Tensor) -> Result<Tensor> {
    let size = x.size();
    ops::reshape(&ops::transpose(x, 1, 2)?, &[size[0] * size[2], size[1] * size[3]])
}

/// Each document by itself: no mask, and no work on pairs that never see each other.
fn documents(query: &Tensor, key: &Tensor, value: &Tensor, lengths: &[i64], scale: f64) -> Result<Tensor> {
    if [query, key, value].into_iter().all(csrc::is_plain) {
        return csrc::attention(query, key, value, lengths, scale);
    }
    if let Some(&length) = lengths.first().filter(|&&first| lengths.iter().all(|&length| length == first)) {
        let rows = lengths.len() as i64;
        let (q, k, v) =
            (by_row(query, rows, length)?, by_row(key, rows, length)?, by_row(value, rows, length)?);
        return by_token(&ops::attention(&q, &k, &v, None, true, scale)?);
    }
    let (queries, keys, values) =
        (ops::split(query, lengths, 0)?, ops::split(key, lengths, 0)?, ops::split(value, lengths, 0)?);
    let mut parts = Vec::with_capacity(lengths.len());
    for ((q, k), (v, &length)) in queries.iter().zip(&keys).zip(values.iter().zip(lengths)) {
        let (q, k, v) = (by_row(q, 1, length)?, by_row(k, 1, length)?, by_row(v, 1, length)?);
        parts.push(by_token(&ops::attention(&q, &k, &v, None, true, scale)?)?);
    }
    ops::concatenate(&parts, 0)
}

/// Feed-forward part.
struct Mlp {
    spec: MlpSpec,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn load(spec: &MlpSpec, module: &impl Fn(Role) -> Result<String>, loader: &mut Loader) -> Result<Self> {
        match *spec {
            MlpSpec::Gated { bias, .. } => Ok(Self {
                spec: *spec,
                gate: loader.linear(&module(Role::Gate)?, bias)?,
                up: loader.linear(&module(Role::Up)?, bias)?,
                down: loader.linear(&module(Role::Down)?, bias)?,
            }),
        }
    }

    fn forward(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        match self.spec {
            MlpSpec::Gated { activation, .. } => {
                let gate = self.gate.forward(x, frame.pass)?; // [N, width]
                let up = self.up.forward(x, frame.pass)?;
                let inner = match activation {
                    Activation::Silu => ops::swiglu(&gate, &up)?,
                };
                self.down.forward(&inner, frame.pass)
            }
        }
    }
}
