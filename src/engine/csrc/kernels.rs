//! Our CPU kernels for dense tensors: products, attention, and the operations between them.

use std::ptr::null_mut;
use std::time::Duration;

use tch::{Kind, Tensor};

use super::{
    Pointer, checked, luthier_adapted_linear, luthier_adapted_linears, luthier_add_low_rank, luthier_attend,
    luthier_attention, luthier_gather, luthier_linear, luthier_rms_norm, luthier_rope, luthier_spent,
    luthier_swiglu, owned, pointer,
};
use crate::error::{EngineError, Result};

/// Whether the CPU kernels support a tensor: f32 or bf16, on the CPU, contiguous.
pub fn is_plain(x: &Tensor) -> bool {
    matches!(x.kind(), Kind::Float | Kind::BFloat16) && x.device() == tch::Device::Cpu && x.is_contiguous()
}

/// Whether they support all of `tensors` together: each [plain](is_plain), and all of one type.
pub fn all_plain(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| is_plain(x) && tensors.first().is_some_and(|first| first.kind() == x.kind()))
}

/// `x · weightᵀ + bias`: `[N, in]`, `[out, in]`, `[out]` → `[N, out]`; plain tensors of one type only.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: two or three live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("linear", unsafe {
        luthier_linear(pointer(x), pointer(weight), bias.map_or(null_mut(), pointer), &raw mut out)
    })?;
    Ok(owned(out))
}

/// `weight · x / sqrt(mean(x²) + epsilon)` over the last dimension, in one pass; plain tensors only. No gradient reaches
/// `weight`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: two live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("rms_norm", unsafe { luthier_rms_norm(pointer(x), pointer(weight), epsilon, &raw mut out) })?;
    Ok(owned(out))
}

/// `silu(gate) · up` in one pass; plain tensors only.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: two live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("swiglu", unsafe { luthier_swiglu(pointer(gate), pointer(up), &raw mut out) })?;
    Ok(owned(out))
}

/// Rotates the leading `2F` dimensions of every head of `x` `[N, heads, size]` by `cos` and `sin` `[N, …, F]`
/// in one pass; plain tensors only. No gradient reaches `cos` and `sin`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: three live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("rope", unsafe { luthier_rope(pointer(x), pointer(cos), pointer(sin), &raw mut out) })?;
    Ok(owned(out))
}

/// The tokens that each document sees, for [`attention`]. L: the sum of all documents' lengths, in which
/// shared tokens count once per document.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// For each document, the number of tokens before its own.
    pub before: &'a [i64],
    /// For each document, the number of its own tokens, at least 1.
    pub own: &'a [i64],
    /// `[L]`: the row of keys and values for every document's tokens; empty if these are all rows in order.
    pub rows: &'a [i64],
}

/// Causal softmax attention of documents whose own tokens lie end to end, and which may begin with tokens
/// without queries: `query` `[N, heads, size]`, `key` and `value` `[K, groups, size]`; plain tensors only.
/// Returns `[N, heads · size]`.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, seen: Seen, scale: f64) -> Result<Tensor> {
    let Seen { before, own, rows } = seen;
    if before.len() != own.len() {
        return Err(EngineError::torch("attention", "documents with and without tokens before their own"));
    }
    let mut out = null_mut();
    // SAFETY: three live tensors, twice `own.len()` numbers and `rows.len()` numbers in, one pointer written on success;
    // the shim checks shapes, types and rows.
    checked("attention", unsafe {
        luthier_attention(
            pointer(query),
            pointer(key),
            pointer(value),
            before.as_ptr(),
            own.as_ptr(),
            own.len(),
            rows.as_ptr(),
            rows.len(),
            scale,
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}

/// The rows of `x` `[K, …]` given by `index` `[n]` (int64), which may repeat rows. The gradient of a repeated
/// row is summed in f32 and rounded once.
pub fn gather(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: two live tensors in, one pointer written on success; the shim checks shapes, libtorch the index.
    checked("gather", unsafe { luthier_gather(pointer(x), pointer(index), &raw mut out) })?;
    Ok(owned(out))
}

/// Attention of one new query per row with a cache: `query` `[B, heads, size]`, `keys` and `values` `[B,
/// groups, room, size]`, of which row b uses `lengths[b]`; plain tensors only. Returns `[B, heads · size]`;
/// no gradient.
pub fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, lengths: &[i64], scale: f64) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: three live tensors and `lengths.len()` numbers in, one pointer written on success; the shim checks shapes
    // and types.
    checked("attend", unsafe {
        luthier_attend(
            pointer(query),
            pointer(keys),
            pointer(values),
            lengths.as_ptr(),
            lengths.len(),
            scale,
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}

/// Parts of a step that are timed, as in `csrc/cpu.h`.
const PARTS: [&str; 9] = [
    "base products, forward",
    "base products, backward",
    "attention, forward",
    "attention, backward",
    "head and loss",
    "adapter, forward",
    "adapter, backward",
    "norms, rotations, activations",
    "clipping and optimizer",
];

/// CPU time of each part since the last call.
pub fn time_spent() -> Result<Vec<(&'static str, Duration)>> {
    let mut nanoseconds = [0_i64; PARTS.len()];
    // SAFETY: the shim writes exactly the given count of numbers, or none.
    checked("time_spent", unsafe { luthier_spent(nanoseconds.as_mut_ptr(), nanoseconds.len()) })?;
    let spent = nanoseconds.map(|count| Duration::from_nanos(u64::try_from(count).unwrap_or_default()));
    Ok(PARTS.into_iter().zip(spent).collect())
}

/// LoRA's term in a linear layer: `scale · (x · aᵀ) · bᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, in]`
    pub a: &'a Tensor,
    /// `[out, rank]`
    pub b: &'a Tensor,
    pub scale: f64,
    /// Gate and up, `[N, in]` each, of which `x` is the gated activation. If they are given, a backward pass on CUDA
    /// computes `x` from them again instead of keeping it; both must be [`in_eights`](super::in_eights) on a device that has
    /// [`Program::Elementwise`](super::Program::Elementwise).
    pub gated: Option<[&'a Tensor; 2]>,
}

/// `x · weightᵀ + bias + scale · (x · aᵀ) · bᵀ`, `[N, out]`. Differentiable in all but the frozen `weight`
/// `[out, in]`. The factors may be f32 if the other tensors are not; then their gradients are f32 too.
pub fn adapted_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    LowRank { a, b, scale, gated }: LowRank,
) -> Result<Tensor> {
    let bias = bias.map_or(null_mut(), pointer);
    let [gate, up] = gated.map_or([null_mut(); 2], |parts| parts.map(pointer));
    let (x, weight, a, b, mut out) = (pointer(x), pointer(weight), pointer(a), pointer(b), null_mut());
    // SAFETY: four live tensors and three that may be null in, one pointer written on success.
    checked("adapted_linear", unsafe {
        luthier_adapted_linear(x, weight, bias, a, b, scale, gate, up, &raw mut out)
    })?;
    Ok(owned(out))
}

/// A layer of [`adapted_linears`].
#[derive(Debug, Clone, Copy)]
pub struct AdaptedLayer<'a> {
    /// `[out, in]`, frozen, in the input's type.
    pub weight: &'a Tensor,
    /// `[out]`, frozen.
    pub bias: Option<&'a Tensor>,
    pub low_rank: LowRank<'a>,
}

/// As [`adapted_linear`] for several layers with one input `[N, in]`, by libtorch's products on any device. The gradient of
/// the input is summed in place over the layers.
pub fn adapted_linears(x: &Tensor, layers: &[AdaptedLayer]) -> Result<Vec<Tensor>> {
    let column = |pick: fn(&AdaptedLayer) -> Pointer| layers.iter().map(pick).collect::<Vec<_>>();
    let weights = column(|layer| pointer(layer.weight));
    let biases = column(|layer| layer.bias.map_or(null_mut(), pointer));
    let (a, b) = (column(|layer| pointer(layer.low_rank.a)), column(|layer| pointer(layer.low_rank.b)));
    let scales: Vec<f64> = layers.iter().map(|layer| layer.low_rank.scale).collect();
    let mut out = vec![null_mut(); layers.len()];
    // SAFETY: each array has `layers.len()` numbers or pointers to live tensors, or null where there is no bias; as many
    // pointers are written on success.
    checked("adapted_linears", unsafe {
        luthier_adapted_linears(
            pointer(x),
            weights.as_ptr(),
            biases.as_ptr(),
            a.as_ptr(),
            b.as_ptr(),
            scales.as_ptr(),
            layers.len(),
            out.as_mut_ptr(),
        )
    })?;
    Ok(out.into_iter().map(owned).collect())
}

/// `y += scale · (x · aᵀ) · bᵀ` in place, differentiable in all four. `y` is `[N, out]` and the result of an
/// operation that does not need it for its own gradient; `x` `[N, in]`, `a` `[rank, in]`, `b` `[out, rank]`.
/// The factors may be f32 if the other tensors are not; then their gradients are f32 too.
pub fn add_low_rank(y: &Tensor, x: &Tensor, LowRank { a, b, scale, gated }: LowRank) -> Result<()> {
    let [gate, up] = gated.map_or([null_mut(); 2], |parts| parts.map(pointer));
    // SAFETY: four live tensors and two that may be null; `y` is written through autograd's own in-place operation.
    checked("add_low_rank", unsafe {
        luthier_add_low_rank(pointer(y), pointer(x), pointer(a), pointer(b), scale, gate, up)
    })
}
