//! Operations of attention: rotary embedding, scores, masks.

use tch::{Device, Kind, Tensor};

use super::{fuses, integers, labelled};
use crate::csrc;
use crate::error::Result;

/// `[B, g, T, d]` → `[B, heads, T, d]`: each of g heads is repeated to give `heads`. Returns the tensor
/// itself if g equals `heads`.
pub fn repeat_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let present = x.size().get(1).copied().unwrap_or_default().max(1);
    if present == heads {
        return Ok(x.shallow_clone());
    }
    labelled("repeat_heads", &[x], x.f_repeat_interleave_self_int(heads / present, 1, None))
}

/// Rotates the leading `2 · cos.size(-1)` dimensions of each head: `x` `[N, heads, size]`, `cos` and `sin`
/// `[N, 1, rotated / 2]` of `x`'s type. Dimension `i` is paired with `i + rotated / 2` (transformers
/// `apply_rotary_pos_emb`).
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if csrc::all_plain(&[x, cos, sin]) {
        return csrc::rope(x, cos, sin);
    }
    if fuses(csrc::Program::Elementwise, &[x, cos, sin]) {
        return csrc::fused_rope(x, cos, sin);
    }
    let half = cos.size().last().copied().unwrap_or_default();
    let size = x.size().last().copied().unwrap_or_default();
    let rotated = (|| {
        let first = x.f_narrow(-1, 0, half)?;
        let second = x.f_narrow(-1, half, half)?;
        let low = first.f_mul(cos)?.f_sub(&second.f_mul(sin)?)?;
        let high = second.f_mul(cos)?.f_add(&first.f_mul(sin)?)?;
        if 2 * half == size {
            return Tensor::f_cat(&[low, high], -1);
        }
        let rest = x.f_narrow(-1, 2 * half, size - 2 * half)?;
        Tensor::f_cat(&[low, high, rest], -1)
    })();
    labelled("rope", &[x, cos, sin], rotated)
}

/// Softmax attention with grouped key-value heads: `query` `[B, heads, T, size]`, `key` and `value` `[B,
/// key-value heads, K, size]`, `mask` broadcast to `[B, heads, T, K]`: bool, true for keys that a query sees, or of the
/// query's type, added to the scores. Without a mask, `causal` says whether query `i` sees only keys up to `i`.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    scale: f64,
) -> Result<Tensor> {
    let heads = query.size().get(1).copied().unwrap_or_default();
    let grouped = key.size().get(1) != Some(&heads);
    let attend = |key: &Tensor, value: &Tensor, grouped| {
        labelled(
            "attention",
            &[query, key, value],
            Tensor::f_scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale, grouped),
        )
    };
    // CUDA's only kernel for masks, and for f32, takes no groups of heads: given some, libtorch would hold all scores in
    // memory.
    if grouped && query.device().is_cuda() && (mask.is_some() || query.kind() == Kind::Float) {
        return attend(&repeat_heads(key, heads)?, &repeat_heads(value, heads)?, false);
    }
    attend(key, value, grouped)
}

/// How [`attention_openly`] computes scores from products.
#[derive(Debug, Clone, Copy)]
pub struct ScoreForm<'a> {
    /// Factor on query · key, and on the linear bias.
    pub scale: f64,
    /// See [`soft_cap`].
    pub cap: Option<f64>,
    /// `[heads]` f32: the bias of key `j` is `slope · j`, rounded to bf16.
    pub slopes: Option<&'a Tensor>,
}

/// As [`attention`], with all scores in memory, for options that the fused kernel does not support.
pub fn attention_openly(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    form: ScoreForm,
) -> Result<Tensor> {
    let mixed = (|| {
        let (rows, heads, width, size) = query.size4()?;
        let (_, groups, keys, _) = key.size4()?;
        let shared = heads / groups.max(1);
        let query = query.f_reshape([rows, groups, shared, width, size])?;
        let mut scores = query.f_matmul(&key.f_unsqueeze(2)?.f_transpose(3, 4)?)?; // [B, g, s, T, K]
        if let Some(slopes) = form.slopes {
            let places = Tensor::f_arange(keys, (Kind::Float, query.device()))?;
            let bias = slopes.f_reshape([1, groups, shared, 1, 1])?.f_mul(&places)?;
            scores = scores.f_add(&bias.f_to_kind(Kind::BFloat16)?.f_to_kind(scores.kind())?)?;
        }
        scores = scores.f_mul_scalar(form.scale)?;
        if let Some(cap) = form.cap {
            scores = scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?;
        }
        if let Some(mask) = mask {
            let mask = mask.f_unsqueeze(1)?;
            scores = match mask.kind() {
                Kind::Bool => scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?,
                _ => scores.f_add(&mask)?,
            };
        }
        let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(value.kind())?;
        weights.f_matmul(&value.f_unsqueeze(2)?)?.f_reshape([rows, heads, width, size])
    })();
    labelled("attention_openly", &[query, key, value], mixed)
}

/// Cosine and sine, each `[N, 1, F]` of type `kind` and multiplied by `factor`, of `positions` `[N]` times
/// `frequencies` `[F]` or `[N, F]` (f32), computed in f32.
pub fn rotations(
    positions: &Tensor,
    frequencies: &Tensor,
    factor: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor)> {
    let tables = (|| {
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(frequencies)?.f_unsqueeze(1)?;
        let scaled = |x: Tensor| x.f_mul_scalar(factor)?.f_to_kind(kind);
        Ok((scaled(angles.f_cos()?)?, scaled(angles.f_sin()?)?))
    })();
    labelled("rotations", &[positions, frequencies], tables)
}

/// `[rows, 1, T, K]`: whether query `i` of a row, whose first query is at `past[row]`, sees key `j`: `j ≤
/// past + i` and, with a window, `j > past + i - window`.
pub fn causal_mask(
    past: &[i64],
    queries: i64,
    keys: i64,
    window: Option<i64>,
    device: Device,
) -> Result<Tensor> {
    let past = match past {
        // Filled on the device, because this mask may be requested in every layer.
        &[past] => labelled("causal_mask", &[], Tensor::f_full([1], past, (Kind::Int64, device)))?,
        _ => integers(past, device)?,
    };
    let mask = (|| {
        let last = past
            .f_reshape([-1, 1, 1, 1])?
            .f_add(&Tensor::f_arange(queries, (Kind::Int64, device))?.f_reshape([1, 1, -1, 1])?)?;
        let key = Tensor::f_arange(keys, (Kind::Int64, device))?.f_reshape([1, 1, 1, -1])?;
        let seen = key.f_le_tensor(&last)?;
        match window {
            Some(window) => seen.f_logical_and(&key.f_gt_tensor(&last.f_sub_scalar(window)?)?),
            None => Ok(seen),
        }
    })();
    labelled("causal_mask", &[&past], mask)
}

/// A bool mask in the form that is added to scores of type `kind`: 0 for keys that are seen, -∞ for others.
pub fn added_mask(mask: &Tensor, kind: Kind) -> Result<Tensor> {
    let added = (|| {
        let mut size = mask.size();
        let keys = size.last().copied().unwrap_or_default();
        if let Some(last) = size.last_mut() {
            // Rows of CUDA's kernel begin at multiples of 8 elements; others it copies in each layer.
            *last = (keys + 7) / 8 * 8;
        }
        let room = Tensor::f_full(size, f64::NEG_INFINITY, (kind, mask.device()))?;
        room.f_narrow(-1, 0, keys)?.f_masked_fill_(mask, 0.0)
    })();
    labelled("added_mask", &[mask], added)
}

/// `[B, 1, T, T]`: causal, and without ignored columns (`columns` `[B, T]` bool, false for these). Every
/// column sees itself, so that no row of the softmax is empty.
pub fn padded_mask(columns: &Tensor) -> Result<Tensor> {
    let mask = (|| {
        let (rows, width) = columns.size2()?;
        let causal = Tensor::f_ones([width, width], (Kind::Bool, columns.device()))?.f_tril(0)?;
        let itself = Tensor::f_eye(width, (Kind::Bool, columns.device()))?;
        columns.f_reshape([rows, 1, 1, width])?.f_logical_and(&causal)?.f_logical_or(&itself)
    })();
    labelled("padded_mask", &[columns], mask)
}

/// `[B, 1, T, K]` → `[B, 1, T, count + K]`: every query also sees `count` keys before the others.
pub fn see_first(mask: &Tensor, count: i64) -> Result<Tensor> {
    let size = mask.size();
    let first = (|| {
        let first = Tensor::f_ones([size[0], 1, size[2], count], (Kind::Bool, mask.device()))?;
        Tensor::f_cat(&[first, mask.shallow_clone()], -1)
    })();
    labelled("see_first", &[mask], first)
}

/// `[B, T]` → `[B, count + T]`: adds `count` columns that are not ignored at the start.
pub fn count_first(columns: &Tensor, count: i64) -> Result<Tensor> {
    let rows = columns.size().first().copied().unwrap_or_default();
    let first = Tensor::f_ones([rows, count], (Kind::Bool, columns.device()))
        .and_then(|first| Tensor::f_cat(&[first, columns.shallow_clone()], -1));
    labelled("count_first", &[columns], first)
}
