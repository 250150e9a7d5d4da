//! Operations that one kernel of `csrc/cuda` computes. Call them only where [`has_program`](super::has_program) says that
//! the kernel works.

use std::ptr::null_mut;

use luthier_core::model::Storage;
use tch::{Kind, Tensor};

use super::memory::scalar_type;
use super::quantised::{Nf4Matrix, format_number};
use super::{
    checked, luthier_fused_add_norm, luthier_fused_blocks_decode, luthier_fused_blocks_product,
    luthier_fused_nf4_decode, luthier_fused_nf4_encode, luthier_fused_nf4_product, luthier_fused_rope,
    luthier_fused_rope_into_cache, luthier_fused_swiglu, owned, pointer,
};
use crate::error::{EngineError, Result};

/// Whether the kernels for activations take a tensor: bf16, contiguous, rows of a multiple of 8 elements, which they read at
/// once.
pub fn in_eights(x: &Tensor) -> bool {
    let whole = x.size().last().is_some_and(|width| width % 8 == 0) && x.data_ptr().addr().is_multiple_of(16);
    whole && x.kind() == Kind::BFloat16 && x.is_contiguous() && x.numel() > 0
}

/// `silu(gate) · up`, rounded once. Both are [`in_eights`].
pub fn fused_swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: two live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("swiglu", unsafe { luthier_fused_swiglu(pointer(gate), pointer(up), &raw mut out) })?;
    Ok(owned(out))
}

/// Rotates the leading `2F` dimensions of every head of `x` `[N, heads, size]` by `cos` and `sin` `[N, …, F]`, rounded
/// once. All are [`in_eights`]. No gradient reaches `cos` and `sin`.
pub fn fused_rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: three live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("rope", unsafe { luthier_fused_rope(pointer(x), pointer(cos), pointer(sin), &raw mut out) })?;
    Ok(owned(out))
}

/// New tokens for a cache, N of all its rows.
#[derive(Debug, Clone, Copy)]
pub struct NewTokens<'a> {
    /// `[N, heads, size]`
    pub query: &'a Tensor,
    /// `[N, groups, size]`
    pub key: &'a Tensor,
    /// `[N, groups, size]`
    pub value: &'a Tensor,
}

/// Where new tokens go in a row of a cache.
#[derive(Debug, Clone, Copy)]
pub enum Places<'a> {
    /// In every row, from this place on.
    From(i64),
    /// `[B, T]` int64.
    At(&'a Tensor),
}

/// Queries and keys rotated as by [`fused_rope`]. Returns the queries; keys and values are written to those of a cache,
/// `[B, groups, capacity, size]`. All are [`in_eights`]; no gradient.
pub fn fused_rope_into_cache(
    tokens: NewTokens,
    [cos, sin]: [&Tensor; 2],
    [keys, values]: [&Tensor; 2],
    places: Places,
) -> Result<Tensor> {
    let (places, start) = match places {
        Places::From(start) => (null_mut(), start),
        Places::At(places) => (pointer(places), 0),
    };
    let mut out = null_mut();
    // SAFETY: seven live tensors in, and one or none; the shim checks shapes and types and writes to the cache's two and one
    // pointer. Places that are tensors are inside the cache: it made room for them.
    checked("rope", unsafe {
        luthier_fused_rope_into_cache(
            pointer(tokens.query),
            pointer(tokens.key),
            pointer(tokens.value),
            pointer(cos),
            pointer(sin),
            pointer(keys),
            pointer(values),
            places,
            start,
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}

/// The RMS norm of `x`, or of `x + other`, which comes first in the result. All are [`in_eights`]. No gradient reaches
/// `weight`.
pub fn fused_add_norm(
    x: &Tensor,
    other: Option<&Tensor>,
    weight: &Tensor,
    epsilon: f64,
) -> Result<(Option<Tensor>, Tensor)> {
    let (mut sum, mut out) = (null_mut(), null_mut());
    // SAFETY: two or three live tensors in, one or two pointers written on success; the shim checks shapes and types.
    checked("rms_norm", unsafe {
        luthier_fused_add_norm(
            pointer(x),
            other.map_or(null_mut(), pointer),
            pointer(weight),
            epsilon,
            &raw mut sum,
            &raw mut out,
        )
    })?;
    Ok((other.map(|_| owned(sum)), owned(out)))
}

/// As [`nf4_look_up`](super::nf4_look_up), for f32 and bf16.
pub fn fused_nf4_decode(matrix: &Nf4Matrix, kind: Kind) -> Result<Tensor> {
    let Some(kind) = scalar_type(kind) else {
        return Err(EngineError::torch("nf4_decode", "this element type is not supported"));
    };
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: six live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_decode", unsafe { luthier_fused_nf4_decode(&raw const matrix, kind, &raw mut out) })?;
    Ok(owned(out))
}

/// `x · matrixᵀ`, `[tokens, columns]` → `[tokens, rows]`, for up to 8 tokens. `x` is [`in_eights`]; no gradient.
pub fn fused_nf4_product(x: &Tensor, matrix: &Nf4Matrix) -> Result<Tensor> {
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: seven live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_product", unsafe {
        luthier_fused_nf4_product(pointer(x), &raw const matrix, &raw mut out)
    })?;
    Ok(owned(out))
}

/// How [`fused_nf4_encode`] finds codes.
#[derive(Debug, Clone, Copy)]
pub struct Nf4Levels<'a> {
    /// `[15]` f32 on the device of the values: midpoints between adjacent levels.
    pub bounds: &'a Tensor,
    /// Least divisor.
    pub smallest: f32,
    /// The code of 0.
    pub zero: u8,
}

/// The NF4 codes of the elements of `values`, f32 and contiguous, two to a byte, and the largest magnitude of each 64 of
/// them, f32, which is not finite if one of these is not.
pub fn fused_nf4_encode(values: &Tensor, levels: Nf4Levels) -> Result<(Tensor, Tensor)> {
    let (mut codes, mut largest) = (null_mut(), null_mut());
    // SAFETY: two live tensors in, two pointers written on success; the shim checks types and sizes.
    checked("nf4_encode", unsafe {
        luthier_fused_nf4_encode(
            pointer(values),
            pointer(levels.bounds),
            levels.smallest,
            levels.zero.into(),
            &raw mut codes,
            &raw mut largest,
        )
    })?;
    Ok((owned(codes), owned(largest)))
}

/// As [`blocks_decode`](super::blocks_decode), for f32 and bf16.
pub fn fused_blocks_decode(
    bytes: &Tensor,
    storage: Storage,
    [rows, columns]: [usize; 2],
    kind: Kind,
) -> Result<Tensor> {
    let Some((format, kind)) = format_number(storage).zip(scalar_type(kind)) else {
        return Err(EngineError::torch(
            "blocks_decode",
            "this block format or element type is not supported",
        ));
    };
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; the shim checks that the bytes are exactly the matrix.
    checked("blocks_decode", unsafe {
        luthier_fused_blocks_decode(pointer(bytes), format, rows as i64, columns as i64, kind, &raw mut out)
    })?;
    Ok(owned(out))
}

/// `x · matrixᵀ`, `[tokens, columns]` → `[tokens, rows]`, for up to 8 tokens and a matrix of blocks in `bytes`. `x` is
/// [`in_eights`]; no gradient.
pub fn fused_blocks_product(
    x: &Tensor,
    bytes: &Tensor,
    storage: Storage,
    [rows, columns]: [usize; 2],
) -> Result<Tensor> {
    let Some(format) = format_number(storage) else {
        return Err(EngineError::torch("blocks_product", "this block format is not supported"));
    };
    let mut out = null_mut();
    // SAFETY: two live tensors in, one pointer written on success; the shim checks that the bytes are exactly the matrix.
    checked("blocks_product", unsafe {
        luthier_fused_blocks_product(
            pointer(x),
            pointer(bytes),
            format,
            rows as i64,
            columns as i64,
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}
