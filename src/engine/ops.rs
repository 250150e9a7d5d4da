//! Every libtorch operation the models use, fallible and labelled. The only caller of tch's `f_` functions outside tests.
//!
//! Shapes: N tokens of all rows together, H hidden width, V vocabulary. Errors name the operation and its operands;
//! callers add the module with [`EngineError::within`].

use tch::{Device, Kind, TchError, Tensor};

use crate::csrc;
use crate::error::{EngineError, Result, from_tch};

/// Labels a failure with the operation and the shapes and types of its operands.
fn labelled<T>(operation: &str, operands: &[&Tensor], result: Result<T, TchError>) -> Result<T> {
    result.map_err(|error| from_tch(describe(operation, operands), &error))
}

fn describe(operation: &str, operands: &[&Tensor]) -> String {
    let shapes: Vec<String> =
        operands.iter().map(|tensor| format!("{:?} {:?}", tensor.kind(), tensor.size())).collect();
    if shapes.is_empty() { operation.into() } else { format!("{operation} ({})", shapes.join(", ")) }
}

/// An error for operands that do not fit.
pub(crate) fn mismatch(operation: &str, operands: &[&Tensor], message: &str) -> EngineError {
    EngineError::torch(describe(operation, operands), message)
}

/// Zeros.
pub fn zeros(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    labelled("zeros", &[], Tensor::f_zeros(shape, (kind, device)))
}

/// Memory whose content is whatever it was.
pub fn empty(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    labelled("empty", &[], Tensor::f_empty(shape, (kind, device)))
}

/// A one-dimensional int64 tensor on `device`.
pub fn integers(values: &[i64], device: Device) -> Result<Tensor> {
    let tensor = labelled("integers", &[], Tensor::f_from_slice(values))?;
    to_device(&tensor, device)
}

/// A one-dimensional f32 tensor on `device`.
pub fn floats(values: &[f32], device: Device) -> Result<Tensor> {
    let tensor = labelled("floats", &[], Tensor::f_from_slice(values))?;
    to_device(&tensor, device)
}

/// The tensor on `device`; itself where it is there already.
pub fn to_device(x: &Tensor, device: Device) -> Result<Tensor> {
    if x.device() == device {
        return Ok(x.shallow_clone());
    }
    labelled("to_device", &[x], x.f_to_device(device))
}

/// The tensor with elements of type `kind`; itself where they are already.
pub fn to_kind(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.kind() == kind {
        return Ok(x.shallow_clone());
    }
    labelled("to_kind", &[x], x.f_to_kind(kind))
}

/// A copy without history.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    let mut out = empty(&x.size(), x.kind(), x.device())?;
    let _guard = tch::no_grad_guard();
    labelled("copy", &[x], out.f_copy_(x))?;
    Ok(out)
}

/// Copies `source` into `target`, of the same shape, without history.
pub fn copy_into(target: &mut Tensor, source: &Tensor) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let result = target.f_copy_(source);
    labelled("copy_into", &[target, source], result)
}

/// Without history.
pub fn detach(x: &Tensor) -> Result<Tensor> {
    labelled("detach", &[x], x.f_detach())
}

/// A leaf that gathers gradients, over the same memory.
pub fn leaf(x: &Tensor) -> Result<Tensor> {
    let leaf = detach(x)?;
    labelled("leaf", &[x], leaf.f_set_requires_grad(true))
}

/// The gradient gathered in a leaf; `None` before a backward.
pub fn gradient(leaf: &Tensor) -> Result<Option<Tensor>> {
    let gradient = labelled("gradient", &[leaf], leaf.f_grad())?;
    Ok(gradient.defined().then_some(gradient))
}

/// Another shape over the same elements; copies only where strides do not allow it.
pub fn reshape(x: &Tensor, shape: &[i64]) -> Result<Tensor> {
    labelled("reshape", &[x], x.f_reshape(shape))
}

/// Two dimensions swapped.
pub fn transpose(x: &Tensor, first: i64, second: i64) -> Result<Tensor> {
    labelled("transpose", &[x], x.f_transpose(first, second))
}

/// `length` elements along `dimension`, from `start`.
pub fn narrow(x: &Tensor, dimension: i64, start: i64, length: i64) -> Result<Tensor> {
    labelled("narrow", &[x], x.f_narrow(dimension, start, length))
}

/// Consecutive parts along `dimension`.
pub fn split(x: &Tensor, lengths: &[i64], dimension: i64) -> Result<Vec<Tensor>> {
    labelled("split", &[x], x.f_split_with_sizes(lengths, dimension))
}

/// Parts laid end to end along `dimension`.
pub fn concatenate(parts: &[Tensor], dimension: i64) -> Result<Tensor> {
    if let [only] = parts {
        return Ok(only.shallow_clone());
    }
    labelled("concatenate", &parts.iter().collect::<Vec<_>>(), Tensor::f_cat(parts, dimension))
}

/// The rows of `x` along `dimension` that `index` (int64, one-dimensional) names.
pub fn select_rows(x: &Tensor, dimension: i64, index: &Tensor) -> Result<Tensor> {
    labelled("select_rows", &[x, index], x.f_index_select(dimension, index))
}

/// Rows of `table` `[V, H]` for `ids` (int64, any shape): `[…, H]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    labelled("embedding", &[table, ids], Tensor::f_embedding(table, ids, -1, false, false))
}

/// `x · weightᵀ + bias`: `[N, in]`, `[out, in]`, `[out]` → `[N, out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    labelled("linear", &[x, weight], x.f_linear(weight, bias))
}

/// Matrix product.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("matmul", &[a, b], a.f_matmul(b))
}

/// Element by element.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("add", &[a, b], a.f_add(b))
}

/// Element by element.
pub fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("multiply", &[a, b], a.f_mul(b))
}

/// Every element times `factor`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    labelled("scale", &[x], x.f_mul_scalar(factor))
}

/// Sum of all elements in f32.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    labelled("sum", &[x], x.f_sum(Kind::Float))
}

/// Index of the largest element of each row of `[N, V]`, int64.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    labelled("argmax", &[x], x.f_argmax(-1, false))
}

/// Whether every element is finite. Waits for the device.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    let finite = labelled("all_finite", &[x], x.f_isfinite().and_then(|each| each.f_all()))?;
    labelled("all_finite", &[x], finite.f_int64_value(&[])).map(|value| value != 0)
}

/// The value of a tensor with one element. Waits for the device.
pub fn value(x: &Tensor) -> Result<f64> {
    labelled("value", &[x], x.f_double_value(&[]))
}

/// The elements as f32, in row-major order. Waits for the device.
pub fn to_floats(x: &Tensor) -> Result<Vec<f32>> {
    let flat = to_device(&to_kind(&reshape(&detach(x)?, &[-1])?, Kind::Float)?, Device::Cpu)?;
    labelled("to_floats", &[x], Vec::<f32>::try_from(&flat))
}

/// The elements as int64, in row-major order. Waits for the device.
pub fn to_integers(x: &Tensor) -> Result<Vec<i64>> {
    let flat = to_device(&to_kind(&reshape(x, &[-1])?, Kind::Int64)?, Device::Cpu)?;
    labelled("to_integers", &[x], Vec::<i64>::try_from(&flat))
}

/// `weight · x / sqrt(mean(x²) + epsilon)` over the last dimension. Statistics in f32, and below f32 rounded to the type
/// of `x` before the product with `weight`, as LLaMA does (transformers `LlamaRMSNorm.forward`).
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    if csrc::is_plain(x) && csrc::is_plain(weight) && !weight.requires_grad() {
        return csrc::rms_norm(x, weight, epsilon);
    }
    if x.kind() == Kind::Float {
        return labelled("rms_norm", &[x, weight], x.f_rms_norm(weight.size(), Some(weight), epsilon));
    }
    let normalised = (|| {
        let single = x.f_to_kind(Kind::Float)?;
        let mean = single.f_square()?.f_mean_dim(-1_i64, true, Kind::Float)?;
        let normalised = single.f_mul(&mean.f_add_scalar(epsilon)?.f_rsqrt()?)?.f_to_kind(x.kind())?;
        weight.f_mul(&normalised)
    })();
    labelled("rms_norm", &[x, weight], normalised)
}

/// `silu(gate) · up`, element by element.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if csrc::is_plain(gate) && csrc::is_plain(up) {
        return csrc::swiglu(gate, up);
    }
    labelled("swiglu", &[gate, up], gate.f_silu().and_then(|active| active.f_mul(up)))
}

/// Rotates the leading `2 · cos.size(-1)` dimensions of each head: `x` `[N, heads, size]`, `cos` and `sin`
/// `[N, 1, rotated / 2]` of `x`'s type. Dimension `i` is paired with `i + rotated / 2` (transformers
/// `apply_rotary_pos_emb`).
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if csrc::is_plain(x) && csrc::is_plain(cos) && csrc::is_plain(sin) {
        return csrc::rope(x, cos, sin);
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

/// Softmax attention with grouped key-value heads: `query` `[B, heads, T, size]`, `key` and `value`
/// `[B, key-value heads, K, size]`, `mask` bool, true where a query may look, broadcast to `[B, heads, T, K]`; without
/// one `causal` says whether query `i` sees keys up to `i` only.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    scale: f64,
) -> Result<Tensor> {
    let grouped = query.size().get(1) != key.size().get(1);
    labelled(
        "attention",
        &[query, key, value],
        Tensor::f_scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale, grouped),
    )
}

/// Cosine and sine, each `[N, 1, F]` of type `kind`, of `positions` `[N]` times `frequencies` `[F]` (f32), computed in f32.
pub fn rotations(positions: &Tensor, frequencies: &Tensor, kind: Kind) -> Result<(Tensor, Tensor)> {
    let tables = (|| {
        let angles = positions.f_to_kind(Kind::Float)?.f_outer(frequencies)?.f_unsqueeze(1)?;
        Ok((angles.f_cos()?.f_to_kind(kind)?, angles.f_sin()?.f_to_kind(kind)?))
    })();
    labelled("rotations", &[positions, frequencies], tables)
}

/// `[rows, 1, T, K]`: whether query `i` of a row, whose first query stands at `past[row]`, may see key `j`: `j ≤ past + i`.
pub fn causal_mask(past: &[i64], queries: i64, keys: i64, device: Device) -> Result<Tensor> {
    let past = integers(past, device)?;
    let mask = (|| {
        let last = past
            .f_reshape([-1, 1, 1, 1])?
            .f_add(&Tensor::f_arange(queries, (Kind::Int64, device))?.f_reshape([1, 1, -1, 1])?)?;
        Tensor::f_arange(keys, (Kind::Int64, device))?.f_reshape([1, 1, 1, -1])?.f_le_tensor(&last)
    })();
    labelled("causal_mask", &[&past], mask)
}

/// `[B, 1, T, T]`: causal, and only towards columns that count (`columns` `[B, T]` bool). Every column may see itself, so
/// that no row of the softmax is empty.
pub fn padded_mask(columns: &Tensor) -> Result<Tensor> {
    let mask = (|| {
        let (rows, width) = columns.size2()?;
        let causal = Tensor::f_ones([width, width], (Kind::Bool, columns.device()))?.f_tril(0)?;
        let itself = Tensor::f_eye(width, (Kind::Bool, columns.device()))?;
        columns.f_reshape([rows, 1, 1, width])?.f_logical_and(&causal)?.f_logical_or(&itself)
    })();
    labelled("padded_mask", &[columns], mask)
}

/// The same elements in row-major order, each next to the other.
pub fn contiguous(x: &Tensor) -> Result<Tensor> {
    labelled("contiguous", &[x], x.f_contiguous())
}

/// The bytes of a contiguous tensor on the CPU; `out` has exactly their number.
pub fn copy_bytes(x: &Tensor, out: &mut [u8]) -> Result<()> {
    if x.numel() == 0 {
        return Ok(());
    }
    labelled("copy_bytes", &[x], x.f_copy_data_u8(out, x.numel()))
}
