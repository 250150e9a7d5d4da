//! Causal self-attention with grouped key-value heads.
//!
//! Notation: B rows, T columns, N = B × T tokens, H hidden width, h query heads, g key-value heads, d head size, K keys,
//! P virtual tokens of an adapter.

use luthier_core::model::architecture::{AttentionSpec, Position, Qkv};
use luthier_core::model::roles::Role;
use tch::Tensor;

use super::block::Module;
use super::documents::Documents;
use super::frame::{Cached, Frame, View};
use super::norm::Norm;
use crate::error::{EngineError, Result};
use crate::layers::{LayerCache, Linear};
use crate::weights::Loader;
use crate::{csrc, ops};

pub(super) struct Attention {
    spec: AttentionSpec,
    layer: usize,
    /// Index into the model's rotations, if queries and keys are rotated.
    rope: Option<usize>,
    /// `[h]` f32, if scores get a linear bias.
    slopes: Option<Tensor>,
    projections: Projections,
    /// Of queries and of keys.
    head_norms: Option<(Norm, Norm)>,
    output: Linear,
}

enum Projections {
    Split(Box<Split>),
    Fused(Linear),
}

struct Split {
    query: Linear,
    key: Linear,
    value: Linear,
}

/// Keys and values of an adapter's virtual tokens, `[P, g, d]` each.
type Prefix = (Tensor, Tensor);

impl Attention {
    pub fn load(
        spec: &AttentionSpec,
        layer: usize,
        rope: Option<usize>,
        module: Module,
        loader: &mut Loader,
    ) -> Result<Self> {
        let bias = spec.input_bias;
        let projections = match spec.qkv {
            Qkv::Split => Projections::Split(Box::new(Split {
                query: Linear::load(loader, &module(Role::Query)?, bias)?,
                key: Linear::load(loader, &module(Role::Key)?, bias)?,
                value: Linear::load(loader, &module(Role::Value)?, bias)?,
            })),
            Qkv::Fused | Qkv::FusedByGroup => {
                Projections::Fused(Linear::load(loader, &module(Role::Qkv)?, bias)?)
            }
        };
        let head_norms = match spec.head_norm {
            Some(norm) => Some((
                Norm::load(norm, &module(Role::QueryNorm)?, loader)?,
                Norm::load(norm, &module(Role::KeyNorm)?, loader)?,
            )),
            None => None,
        };
        let slopes = match spec.position {
            Position::Linear => Some(ops::floats(&slopes(spec.heads), loader.device())?),
            Position::Rotary(_) | Position::Embedded => None,
        };
        let output = Linear::load(loader, &module(Role::Output)?, spec.output_bias)?;
        Ok(Self { spec: spec.clone(), layer, rope, slopes, projections, head_norms, output })
    }

    /// In site order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let inputs = match &self.projections {
            Projections::Split(split) => [Some(&split.query), Some(&split.key), Some(&split.value)],
            Projections::Fused(all) => [Some(all), None, None],
        };
        inputs.into_iter().flatten().chain([&self.output])
    }

    /// Of query and key heads.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.head_norms.iter().flat_map(|(query, key)| [query, key])
    }

    /// `[N, H]` → `[N, H]`. Keys and values of the new tokens are written to `cache`.
    pub fn forward(&self, x: &Tensor, frame: &Frame, cache: Option<&LayerCache>) -> Result<Tensor> {
        let (mut query, mut key, value) = self.project(x, frame)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            query = query_norm.forward(&query, frame.pass)?;
            key = key_norm.forward(&key, frame.pass)?;
        }
        if let Some(rope) = self.rope {
            let (cos, sin) = &frame.rotations[rope];
            if let (Some(cache), View::Cached(cached)) = (cache, &frame.view) {
                let tokens = csrc::NewTokens { query: &query, key: &key, value: &value };
                if let Some(query) = cache.write_rotated(tokens, [cos, sin])? {
                    let mixed = self.mix_cached(&query, frame, cache, cached);
                    return self.output.forward(&self.placed(mixed)?, frame.pass);
                }
            }
            (query, key) = (ops::rope(&query, cos, sin)?, ops::rope(&key, cos, sin)?);
        }
        let mixed = self.mix(&query, &key, &value, frame, cache);
        self.output.forward(&self.placed(mixed)?, frame.pass)
    }

    /// A result of attention, `[N, h · d]`, with the layer in its error.
    fn placed(&self, mixed: Result<Tensor>) -> Result<Tensor> {
        mixed.map_err(|error| error.within(&format!("layer {}", self.layer)))
    }

    /// Queries `[N, h, d]`, keys and values `[N, g, d]`.
    fn project(&self, x: &Tensor, frame: &Frame) -> Result<(Tensor, Tensor, Tensor)> {
        let AttentionSpec { heads, key_value_heads, head_size, .. } = self.spec;
        let (h, g, d) = (heads as i64, key_value_heads as i64, head_size as i64);
        let heads = |x: &Tensor, heads: i64| ops::contiguous(&ops::reshape(x, &[-1, heads, d])?);
        match &self.projections {
            Projections::Split(split) => {
                let [query, key, value] =
                    Linear::forward_all([&split.query, &split.key, &split.value], x, frame.pass)?;
                Ok((
                    ops::reshape(&query, &[-1, h, d])?,
                    ops::reshape(&key, &[-1, g, d])?,
                    ops::reshape(&value, &[-1, g, d])?,
                ))
            }
            Projections::Fused(all) => {
                let all = all.forward(x, frame.pass)?;
                // With a layout by group, each group has its own part; otherwise heads follow one another.
                let (groups, shared) = if self.spec.qkv == Qkv::FusedByGroup { (g, h / g) } else { (1, h) };
                let each = if self.spec.qkv == Qkv::FusedByGroup { 1 } else { g };
                let all = ops::reshape(&all, &[-1, groups, shared + 2 * each, d])?;
                Ok((
                    heads(&ops::narrow(&all, 2, 0, shared)?, h)?,
                    heads(&ops::narrow(&all, 2, shared, each)?, g)?,
                    heads(&ops::narrow(&all, 2, shared + each, each)?, g)?,
                ))
            }
        }
    }

    fn mix(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        frame: &Frame,
        cache: Option<&LayerCache>,
    ) -> Result<Tensor> {
        let (rows, width) = (frame.rows, frame.width);
        if let Some(cache) = cache {
            cache.write(&by_row(key, rows, width)?, &by_row(value, rows, width)?)?;
            if let View::Cached(cached) = &frame.view {
                return self.mix_cached(query, frame, cache, cached);
            }
        }
        let prefix = frame.prefix(self.layer, query.kind())?;
        let prefix = prefix.as_ref();
        match &frame.view {
            View::Documents(documents) => self.documents(query, key, value, documents, prefix),
            View::Masked(mask) => {
                let past = prefix.map_or(0, |(keys, _)| keys.size()[0]);
                let all = ops::see_first(mask, past)?;
                let mask = match self.window().filter(|&window| past + width > window) {
                    // Virtual tokens leave the window like all earlier tokens.
                    Some(window) => {
                        let device = query.device();
                        let near = ops::causal_mask(&[past], width, past + width, Some(window), device)?;
                        ops::both(&all, &near)?
                    }
                    None => all,
                };
                let (q, k, v) =
                    (by_row(query, rows, width)?, by_row(key, rows, width)?, by_row(value, rows, width)?);
                let (k, v) = (after(prefix.map(|p| &p.0), &k)?, after(prefix.map(|p| &p.1), &v)?);
                by_token(&self.scores(&q, &k, &v, Some(&mask), false)?)
            }
            View::Cached(_) => Err(EngineError::torch("attention", "a cached forward pass needs a cache")),
        }
    }

    /// Attention of documents, given their own tokens: no work on pairs of tokens from different documents.
    fn documents(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        documents: &Documents,
        prefix: Option<&Prefix>,
    ) -> Result<Tensor> {
        let past = prefix.map_or(0, |(keys, _)| keys.size()[0]);
        let sees_all = self.window().is_none_or(|window| past + documents.longest() <= window);
        let usual = sees_all && self.spec.score_cap.is_none() && self.slopes.is_none();
        if usual && csrc::all_plain(&[query, key, value]) {
            let (key, value) = (above(prefix.map(|p| &p.0), key)?, above(prefix.map(|p| &p.1), value)?);
            return documents
                .seen_after(past, |seen| csrc::attention(query, &key, &value, seen, self.spec.scale));
        }
        let open = self.spec.score_cap.is_some() || self.slopes.is_some();
        if !open && csrc::has_flash_attention(query.device(), self.spec.head_size as i64, query.kind()) {
            let (key, value) = (above(prefix.map(|p| &p.0), key)?, above(prefix.map(|p| &p.1), value)?);
            return documents.flash_attention([query, &key, &value], past, self.window(), self.spec.scale);
        }
        let lengths = documents.lengths();
        let Some(spread) = documents.spread() else {
            return self.documents_apart(query, key, value, &lengths, prefix);
        };
        // Written out as separate documents. Queries of shared tokens are computed for each document and
        // dropped: without them, a document's own tokens would need a mask.
        let apart = |x: &Tensor| ops::gather(x, &spread.rows);
        let mixed = self.documents_apart(&apart(query)?, &apart(key)?, &apart(value)?, &lengths, prefix)?;
        ops::select_rows(&mixed, 0, &spread.own)
    }

    /// Documents end to end, without a mask if none is needed.
    fn documents_apart(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        lengths: &[i64],
        prefix: Option<&Prefix>,
    ) -> Result<Tensor> {
        let longest = lengths.iter().copied().max().unwrap_or_default();
        if lengths.iter().all(|&length| length == longest) {
            return self.equal_documents(query, key, value, [lengths.len() as i64, longest], prefix);
        }
        let (queries, keys, values) =
            (ops::split(query, lengths, 0)?, ops::split(key, lengths, 0)?, ops::split(value, lengths, 0)?);
        let parts = queries.iter().zip(&keys).zip(&values).zip(lengths);
        let parts = parts.map(|(((q, k), v), &length)| self.equal_documents(q, k, v, [1, length], prefix));
        ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// Documents of equal length, one per row.
    fn equal_documents(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        [rows, length]: [i64; 2],
        prefix: Option<&Prefix>,
    ) -> Result<Tensor> {
        let (q, k, v) =
            (by_row(query, rows, length)?, by_row(key, rows, length)?, by_row(value, rows, length)?);
        let (k, v) = (after(prefix.map(|p| &p.0), &k)?, after(prefix.map(|p| &p.1), &v)?);
        let past = prefix.map_or(0, |(keys, _)| keys.size()[0]);
        let window = self.window().filter(|&window| past + length > window);
        if past == 0 && window.is_none() {
            return by_token(&self.scores(&q, &k, &v, None, true)?);
        }
        let mask = ops::causal_mask(&[past], length, past + length, window, query.device())?;
        by_token(&self.scores(&q, &k, &v, Some(&mask), false)?)
    }

    /// New queries against all keys of the cache, including the new ones.
    fn mix_cached(
        &self,
        query: &Tensor,
        frame: &Frame,
        cache: &LayerCache,
        cached: &Cached,
    ) -> Result<Tensor> {
        let (rows, width) = (frame.rows, frame.width);
        let sees_all = self.window().is_none_or(|window| cached.keys <= window);
        let usual = sees_all && self.spec.score_cap.is_none() && self.slopes.is_none();
        if usual
            && width == 1
            && let Some(mixed) = cache.attend(query, self.spec.scale)
        {
            return mixed;
        }
        let (key, value) = cache.read(cached.keys)?; // [B, g, K, d]
        let mask = cached.mask(self.window())?;
        let mask = mask.as_ref();
        if width == 1 && self.slopes.is_none() {
            // The query heads of a group are laid out as columns, so that keys and values need not be
            // repeated.
            let (h, g) = (self.spec.heads as i64, key.size()[1]);
            let d = self.spec.head_size as i64;
            let query = ops::reshape(query, &[rows, g, h / g, d])?;
            let mixed = self.scores(&query, &key, &value, mask, false)?;
            return ops::reshape(&mixed, &[rows, h * d]);
        }
        by_token(&self.scores(&by_row(query, rows, width)?, &key, &value, mask, false)?)
    }

    /// Softmax attention of `[B, h, T, d]` over `[B, g, K, d]`, with the layer's options.
    fn scores(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        causal: bool,
    ) -> Result<Tensor> {
        if self.spec.score_cap.is_none() && self.slopes.is_none() {
            return ops::attention(query, key, value, mask, causal, self.spec.scale);
        }
        let width = query.size().get(2).copied().unwrap_or_default();
        let all = match mask {
            None if causal => Some(ops::causal_mask(&[0], width, width, None, query.device())?),
            _ => None,
        };
        let form =
            ops::ScoreForm { scale: self.spec.scale, cap: self.spec.score_cap, slopes: self.slopes.as_ref() };
        ops::attention_openly(query, key, value, mask.or(all.as_ref()), form)
    }

    fn window(&self) -> Option<i64> {
        self.spec.window.map(|window| window as i64)
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

/// `[B, g, T, d]` with the `[P, g, d]` of virtual tokens before every row: `[B, g, P + T, d]`. If the prefix
/// has more heads, those of `x` are repeated.
fn after(prefix: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
    let Some(prefix) = prefix else { return Ok(x.shallow_clone()) };
    let rows = x.size().first().copied().unwrap_or_default();
    let every = ops::repeat_rows(&ops::transpose(prefix, 0, 1)?, rows)?; // [B, g, P, d]
    let heads = every.size()[1];
    ops::concatenate(&[every, ops::repeat_heads(x, heads)?], 2)
}

/// `[K, g, d]` below the `[P, g, d]` of virtual tokens: `[P + K, g, d]`. If the prefix has more heads, those
/// of `x` are repeated.
fn above(prefix: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
    let Some(prefix) = prefix else { return Ok(x.shallow_clone()) };
    let heads = prefix.size().get(1).copied().unwrap_or_default();
    ops::concatenate(&[prefix.shallow_clone(), ops::repeat_heads(x, heads)?], 0)
}

/// Slopes of the linear bias by head: powers of `2^(-8/n)` for n heads. If n is not a power of two, those of
/// the next lower power are followed by every other one of twice that power (arXiv 2108.12409, section 3;
/// transformers `build_alibi_tensor`, which rounds them to bf16).
fn slopes(heads: usize) -> Vec<f32> {
    let lower = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let power = |of: usize, index: usize| 2.0_f64.powf(-8.0 * index as f64 / of as f64);
    let first = (1..=lower).map(|index| power(lower, index));
    let rest = (0..heads - lower).map(|index| power(2 * lower, 2 * index + 1));
    first.chain(rest).map(|slope| half::bf16::from_f64(slope).to_f32()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_equal_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.031_25, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let twelve = slopes(12);
        assert_eq!(twelve[..8], slopes(8));
        let expected = [0.5_f64, 1.5, 2.5, 3.5].map(|power| 2.0_f64.powf(-power));
        for (found, expected) in twelve[8..].iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= expected / 256.0, "{found} {expected}");
        }
    }
}
