//! Every libtorch operation that the models use, with errors that name the operation. Outside tests, only
//! this room calls tch's `f_` functions.
//!
//! Shapes: N tokens of all rows together, H hidden width, V vocabulary. Errors name the operation and its
//! operands; callers add the module with [`EngineError::within`].

mod attention;

use tch::{Device, Kind, TchError, Tensor};

pub use attention::{
    ScoreForm, added_mask, attention, attention_openly, causal_mask, count_first, padded_mask, repeat_heads,
    rope, rotations, see_first,
};

use crate::csrc;
use crate::error::{EngineError, Result, describe, from_tch};

/// Adds the operation and the shapes and types of its operands to a failure.
fn labelled<T>(operation: &str, operands: &[&Tensor], result: Result<T, TchError>) -> Result<T> {
    result.map_err(|error| from_tch(describe(operation, operands), &error))
}

pub fn zeros(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    labelled("zeros", &[], Tensor::f_zeros(shape, (kind, device)))
}

pub fn ones(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    labelled("ones", &[], Tensor::f_ones(shape, (kind, device)))
}

/// Uninitialised memory.
pub fn empty(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    labelled("empty", &[], Tensor::f_empty(shape, (kind, device)))
}

/// A one-dimensional int64 tensor on `device`.
pub fn integers(values: &[i64], device: Device) -> Result<Tensor> {
    upload(&labelled("integers", &[], Tensor::f_from_slice(values))?, device)
}

/// A one-dimensional f32 tensor on `device`.
pub fn floats(values: &[f32], device: Device) -> Result<Tensor> {
    upload(&labelled("floats", &[], Tensor::f_from_slice(values))?, device)
}

/// A one-dimensional f64 tensor on `device`.
pub fn doubles(values: &[f64], device: Device) -> Result<Tensor> {
    upload(&labelled("doubles", &[], Tensor::f_from_slice(values))?, device)
}

/// A one-dimensional uint8 tensor on `device`.
pub fn bytes(values: &[u8], device: Device) -> Result<Tensor> {
    let tensor = labelled("bytes", &[], Tensor::f_from_slice(values))?;
    to_device(&tensor, device)
}

/// Size of the elements in bytes.
pub fn bytes_of(x: &Tensor) -> u64 {
    (x.numel() * x.kind().elt_size_in_bytes()) as u64
}

/// Copies the tensor to `device`; the tensor itself if it is already there.
pub fn to_device(x: &Tensor, device: Device) -> Result<Tensor> {
    if x.device() == device {
        return Ok(x.shallow_clone());
    }
    labelled("to_device", &[x], x.f_to_device(device))
}

/// Copies a tensor from host memory to `device`. Unlike [`to_device`], it does not wait for a GPU's queued
/// work.
fn upload(x: &Tensor, device: Device) -> Result<Tensor> {
    match device {
        Device::Cuda(index) => csrc::upload(x, index),
        _ => Ok(x.shallow_clone()),
    }
}

/// Whether two tensors are the same elements of the same memory.
pub fn is_same_memory(a: &Tensor, b: &Tensor) -> bool {
    a.data_ptr() == b.data_ptr() && a.size() == b.size() && a.stride() == b.stride() && a.kind() == b.kind()
}

/// The bytes of a one-dimensional tensor as elements of type `kind`, over the same memory.
pub fn bytes_as(x: &Tensor, kind: Kind) -> Result<Tensor> {
    labelled("bytes_as", &[x], x.f_view_dtype(kind))
}

/// Converts the tensor to type `kind`; the tensor itself if it has this type.
pub fn to_kind(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.kind() == kind {
        return Ok(x.shallow_clone());
    }
    labelled("to_kind", &[x], x.f_to_kind(kind))
}

/// A copy without autograd history.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    let mut out = empty(&x.size(), x.kind(), x.device())?;
    let _guard = tch::no_grad_guard();
    labelled("copy", &[x], out.f_copy_(x))?;
    Ok(out)
}

/// Copies `source` into `target`, which has the same shape, without autograd history.
pub fn copy_into(target: &mut Tensor, source: &Tensor) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let result = target.f_copy_(source);
    labelled("copy_into", &[target, source], result)
}

/// Copies tokens `[B, heads, T, size]` into `target` `[B, heads, K, size]` at `places` `[B, T]` of their rows `[B, 1]`
/// (int64), without autograd history.
pub fn put_tokens(target: &Tensor, rows: &Tensor, places: &Tensor, tokens: &Tensor) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let put = (|| {
        // Indices around a dimension that has none come first in the result.
        let tokens = tokens.f_transpose(1, 2)?;
        target.shallow_clone().f_index_put_(&[Some(rows), None, Some(places)], &tokens, false)
    })();
    labelled("put_tokens", &[target, tokens], put).map(drop)
}

/// Adds `more` to `sum`, whose type is kept. No autograd history.
pub fn add_into(sum: &mut Tensor, more: &Tensor) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let result = sum.f_add_(more).map(drop);
    labelled("add_into", &[sum, more], result)
}

/// A tensor whose elements are all not a number, in the memory of one.
pub fn nothing(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    let one = Tensor::f_full([1], f64::NAN, (kind, device));
    labelled("nothing", &[], one.and_then(|one| one.f_expand(shape, false)))
}

/// The tensor without autograd history.
pub fn detach(x: &Tensor) -> Result<Tensor> {
    labelled("detach", &[x], x.f_detach())
}

/// A leaf over the same memory that accumulates gradients.
pub fn leaf(x: &Tensor) -> Result<Tensor> {
    let leaf = detach(x)?;
    labelled("leaf", &[x], leaf.f_set_requires_grad(true))
}

/// The accumulated gradient of a leaf; `None` before a backward pass.
pub fn gradient(leaf: &Tensor) -> Result<Option<Tensor>> {
    let gradient = labelled("gradient", &[leaf], leaf.f_grad())?;
    Ok(gradient.defined().then_some(gradient))
}

/// Another shape over the same elements; copies only if the strides require it.
pub fn reshape(x: &Tensor, shape: &[i64]) -> Result<Tensor> {
    labelled("reshape", &[x], x.f_reshape(shape))
}

/// Swaps two dimensions.
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

/// Concatenates parts along `dimension`.
pub fn concatenate(parts: &[Tensor], dimension: i64) -> Result<Tensor> {
    if let [only] = parts {
        return Ok(only.shallow_clone());
    }
    labelled("concatenate", &parts.iter().collect::<Vec<_>>(), Tensor::f_cat(parts, dimension))
}

/// The rows of `x` along `dimension` given by `index` (int64, one-dimensional).
pub fn select_rows(x: &Tensor, dimension: i64, index: &Tensor) -> Result<Tensor> {
    labelled("select_rows", &[x, index], x.f_index_select(dimension, index))
}

/// As [`select_rows`] along the first dimension, for an index that repeats rows: the gradients of a row are
/// summed in f32.
pub fn gather(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    if x.numel() == 0 { select_rows(x, 0, index) } else { csrc::gather(x, index) }
}

/// `x` with the rows given by `index` (int64, one-dimensional) replaced by those of `rows`.
pub fn with_rows(x: &Tensor, index: &Tensor, rows: &Tensor) -> Result<Tensor> {
    labelled("with_rows", &[x, index, rows], x.f_index_copy(0, index, rows))
}

/// Rows of `table` `[V, H]` for `ids` (int64, any shape): `[…, H]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    labelled("embedding", &[table, ids], Tensor::f_embedding(table, ids, -1, false, false))
}

/// `x · weightᵀ + bias`: `[N, in]`, `[out, in]`, `[out]` → `[N, out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim() == 2 && csrc::all_plain(&[x, weight]) && bias.is_none_or(|bias| csrc::all_plain(&[x, bias])) {
        return csrc::linear(x, weight, bias);
    }
    labelled("linear", &[x, weight], x.f_linear(weight, bias))
}

pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("matmul", &[a, b], a.f_matmul(b))
}

/// Elementwise.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("add", &[a, b], a.f_add(b))
}

/// Elementwise.
pub fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("multiply", &[a, b], a.f_mul(b))
}

/// Elementwise.
pub fn subtract(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("subtract", &[a, b], a.f_sub(b))
}

/// Multiplies every element by `factor`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    labelled("scale", &[x], x.f_mul_scalar(factor))
}

/// The largest absolute difference in f32; 0 for empty tensors. Waits for the device.
pub fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.size() != b.size() {
        return Err(EngineError::mismatch("distance", &[a, b], "they differ in shape"));
    }
    if a.numel() == 0 {
        return Ok(0.0);
    }
    let difference = (|| {
        let difference = a.f_to_kind(Kind::Float)?.f_sub(&b.f_to_kind(Kind::Float)?)?;
        difference.f_abs()?.f_max()?.f_double_value(&[])
    })();
    labelled("distance", &[a, b], difference)
}

/// The largest absolute difference in f32, over the largest magnitude of `expected`, or over 1 if that is less. Waits for
/// the device.
pub fn relative_distance(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let expected = to_kind(expected, Kind::Float)?;
    Ok(distance(found, &expected)? / largest_magnitude(&expected)?.max(1.0))
}

/// The largest absolute value in f32; 0 for an empty tensor. Waits for the device.
pub fn largest_magnitude(x: &Tensor) -> Result<f64> {
    if x.numel() == 0 {
        return Ok(0.0);
    }
    let largest = x.f_to_kind(Kind::Float).and_then(|x| x.f_abs()).and_then(|x| x.f_max());
    labelled("largest_magnitude", &[x], largest.and_then(|x| x.f_double_value(&[])))
}

/// Elementwise.
pub fn divide(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("divide", &[a, b], a.f_div(b))
}

/// The square root of each element; negative elements give 0.
pub fn square_root(x: &Tensor) -> Result<Tensor> {
    labelled("square_root", &[x], x.f_clamp_min(0).and_then(|x| x.f_sqrt()))
}

/// The sum of each row: `[N, M]` → `[N]`.
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    labelled("sum_rows", &[x], x.f_sum_dim_intlist(1_i64, false, x.kind()))
}

/// Adds `number` to every element.
pub fn add_number(x: &Tensor, number: f64) -> Result<Tensor> {
    labelled("add_number", &[x], x.f_add_scalar(number))
}

/// Adds `number` to every element of an int64 tensor.
pub fn add_integer(x: &Tensor, number: i64) -> Result<Tensor> {
    labelled("add_integer", &[x], x.f_add_scalar(number))
}

/// A number rounded to type `kind`.
pub fn rounded(number: f64, kind: Kind) -> f64 {
    match kind {
        Kind::Half => half::f16::from_f64(number).to_f64(),
        Kind::BFloat16 => half::bf16::from_f64(number).to_f64(),
        Kind::Float => f64::from(number as f32),
        _ => number,
    }
}

/// The largest element of an int64 tensor; -1 for an empty one. Waits for the device.
pub fn largest(x: &Tensor) -> Result<i64> {
    if x.numel() == 0 {
        return Ok(-1);
    }
    labelled("largest", &[x], x.f_max().and_then(|most| most.f_int64_value(&[])))
}

/// `[…]` → `[rows, …]`, the same for every row, without copying.
pub fn repeat_rows(x: &Tensor, rows: i64) -> Result<Tensor> {
    let shape: Vec<i64> = std::iter::once(rows).chain(x.size()).collect();
    labelled("repeat_rows", &[x], x.f_unsqueeze(0).and_then(|x| x.f_expand(shape, false)))
}

/// Elementwise logical and.
pub fn both(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("both", &[a, b], a.f_logical_and(b))
}

/// Tensors of one element each as one vector.
pub fn join(numbers: &[Tensor]) -> Result<Tensor> {
    let numbers = numbers.iter().map(|number| reshape(number, &[1])).collect::<Result<Vec<_>>>()?;
    concatenate(&numbers, 0)
}

/// Sum of all elements in f32.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    labelled("sum", &[x], x.f_sum(Kind::Float))
}

/// Sums in f64 of the elements of `x` `[n]` by group: `groups` `[n]` int64 gives the index of each element's
/// sum, below `count`.
pub fn grouped_sums(x: &Tensor, groups: &Tensor, count: i64) -> Result<Tensor> {
    let sums = (|| {
        let start = Tensor::f_zeros([count], (Kind::Double, x.device()))?;
        start.f_index_add(0, groups, &x.f_to_kind(Kind::Double)?)
    })();
    labelled("grouped_sums", &[x, groups], sums)
}

/// `1 / (1 + exp(-x))`, elementwise.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    labelled("sigmoid", &[x], x.f_sigmoid())
}

/// `log(1 / (1 + exp(-x)))`, elementwise.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    labelled("log_sigmoid", &[x], x.f_log_sigmoid())
}

/// Number of elements of `a` that are greater than the element of `b` at the same index, f32.
pub fn count_above(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("count_above", &[a, b], a.f_gt_tensor(b).and_then(|above| above.f_sum(Kind::Float)))
}

/// Index of the largest element of each row of `[N, V]`, int64.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    labelled("argmax", &[x], x.f_argmax(-1, false))
}

/// What sampling from logits `[B, V]` needs, so that the host need not read all of them: `[B, 2 + 2 · count]` f64. Each
/// row has the index of its largest logit, the sum of `exp((logit - largest) / temperature)`, the indices of its
/// `count` largest logits, and these in descending order. For all but the first, NaN counts as -∞. `temperatures`
/// `[B]` f64, above 0.
pub fn largest_logits(logits: &Tensor, temperatures: &Tensor, count: i64) -> Result<Tensor> {
    let found = (|| {
        let first = logits.f_argmax(-1, true)?;
        let infinity = f64::INFINITY;
        let scores = logits.f_to_kind(Kind::Float)?.f_nan_to_num(-infinity, infinity, -infinity)?;
        let (largest, ids) = scores.f_topk(count, -1, true, true)?;
        let best = largest.f_narrow(-1, 0, 1)?;
        // Infinity minus infinity would be NaN.
        let below = scores.f_sub(&best)?.f_masked_fill(&scores.f_ge_tensor(&best)?, 0.0)?;
        let shares = below.f_to_kind(Kind::Double)?.f_div(&temperatures.f_unsqueeze(-1)?)?.f_exp()?;
        let total = shares.f_sum_dim_intlist(-1_i64, true, Kind::Double)?;
        let double = |x: Tensor| x.f_to_kind(Kind::Double);
        Tensor::f_cat(&[double(first)?, total, double(ids)?, double(largest)?], -1)
    })();
    labelled("largest_logits", &[logits, temperatures], found)
}

/// Whether every element is finite. Waits for the device.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    let finite = labelled("all_finite", &[x], x.f_isfinite().and_then(|each| each.f_all()))?;
    labelled("all_finite", &[x], finite.f_int64_value(&[])).map(|value| value != 0)
}

/// 0-dimensional f32: 1 if some element is not finite, otherwise 0. Does not wait for the device.
pub fn any_not_finite(x: &Tensor) -> Result<Tensor> {
    let found = x.f_isfinite().and_then(|each| each.f_all()).and_then(|all| all.f_logical_not());
    labelled("any_not_finite", &[x], found.and_then(|any| any.f_to_kind(Kind::Float)))
}

/// Elementwise maximum.
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    labelled("maximum", &[a, b], a.f_maximum(b))
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

/// The elements as f64, in row-major order. Waits for the device.
pub fn to_doubles(x: &Tensor) -> Result<Vec<f64>> {
    let flat = to_device(&to_kind(&reshape(&detach(x)?, &[-1])?, Kind::Double)?, Device::Cpu)?;
    labelled("to_doubles", &[x], Vec::<f64>::try_from(&flat))
}

/// The elements as int64, in row-major order. Waits for the device.
pub fn to_integers(x: &Tensor) -> Result<Vec<i64>> {
    let flat = to_device(&to_kind(&reshape(x, &[-1])?, Kind::Int64)?, Device::Cpu)?;
    labelled("to_integers", &[x], Vec::<i64>::try_from(&flat))
}

/// `weight · x / sqrt(mean(x²) + epsilon)` over the last dimension. Statistics are in f32. For types below
/// f32, the result is rounded to the type of `x` before the product with `weight`, as in LLaMA (transformers
/// `LlamaRMSNorm.forward`).
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    if csrc::all_plain(&[x, weight]) && !weight.requires_grad() {
        return csrc::rms_norm(x, weight, epsilon);
    }
    if fuses(csrc::Program::Norm, &[x, weight]) && !weight.requires_grad() {
        return csrc::fused_add_norm(x, None, weight, epsilon).map(|(_, norm)| norm);
    }
    if x.kind() == Kind::Float {
        return labelled("rms_norm", &[x, weight], x.f_rms_norm(weight.size(), Some(weight), epsilon));
    }
    // One kernel on CUDA, which computes in f32.
    let normalised = x.f_rms_norm(weight.size(), None::<&Tensor>, epsilon);
    let normalised = normalised.and_then(|normalised| weight.f_mul(&normalised));
    labelled("rms_norm", &[x, weight], normalised)
}

/// `x + other` and its [`rms_norm`].
pub fn add_rms_norm(x: &Tensor, other: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    if fuses(csrc::Program::Norm, &[x, other, weight])
        && !weight.requires_grad()
        && let (Some(sum), norm) = csrc::fused_add_norm(x, Some(other), weight, epsilon)?
    {
        return Ok((sum, norm));
    }
    let sum = add(x, other)?;
    let norm = rms_norm(&sum, weight, epsilon)?;
    Ok((sum, norm))
}

/// Whether a kernel of a program computes an operation on these tensors.
pub fn fuses(program: csrc::Program, tensors: &[&Tensor]) -> bool {
    let device = tensors.first().map_or(Device::Cpu, |x| x.device());
    csrc::has_program(program, device) && tensors.iter().all(|x| csrc::in_eights(x))
}

/// As [`rms_norm`], but rounded to the type of `x` only at the end, as in Gemma (transformers
/// `GemmaRMSNorm.forward`); `weight` is f32.
pub fn rms_norm_rounded_last(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    to_kind(&rms_norm(&to_kind(x, Kind::Float)?, weight, epsilon)?, x.kind())
}

/// `weight · (x - mean(x)) / sqrt(variance(x) + epsilon) + bias` over the last dimension.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<Tensor> {
    labelled("layer_norm", &[x, weight], x.f_layer_norm(weight.size(), Some(weight), bias, epsilon, false))
}

/// `x · sigmoid(x)`, elementwise.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    labelled("silu", &[x], x.f_silu())
}

/// `x · Φ(x)`, elementwise; `approximate` uses a tanh.
pub fn gelu(x: &Tensor, approximate: bool) -> Result<Tensor> {
    labelled("gelu", &[x], x.f_gelu(if approximate { "tanh" } else { "none" }))
}

/// `max(x, 0)`, elementwise.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    labelled("relu", &[x], x.f_relu())
}

/// `cap · tanh(x / cap)`, elementwise.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    let capped = x.f_div_scalar(cap).and_then(|x| x.f_tanh()).and_then(|x| x.f_mul_scalar(cap));
    labelled("soft_cap", &[x], capped)
}

/// `silu(gate) · up`, elementwise.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if csrc::all_plain(&[gate, up]) {
        return csrc::swiglu(gate, up);
    }
    if is_swiglu_fused(gate, up) {
        return csrc::fused_swiglu(gate, up);
    }
    labelled("swiglu", &[gate, up], gate.f_silu().and_then(|active| active.f_mul(up)))
}

/// Whether one kernel of CUDA computes [`swiglu`] of these.
pub fn is_swiglu_fused(gate: &Tensor, up: &Tensor) -> bool {
    fuses(csrc::Program::Elementwise, &[gate, up])
}

/// The same elements, contiguous in row-major order.
pub fn contiguous(x: &Tensor) -> Result<Tensor> {
    labelled("contiguous", &[x], x.f_contiguous())
}

/// A new CPU tensor of these bytes, row-major. Their number must match the shape and type.
pub fn from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    labelled("from_bytes", &[], Tensor::f_from_data_size(bytes, shape, kind))
}

/// Copies the bytes of a contiguous CPU tensor to `out`, which has exactly their number.
pub fn copy_bytes(x: &Tensor, out: &mut [u8]) -> Result<()> {
    if x.numel() == 0 {
        return Ok(());
    }
    labelled("copy_bytes", &[x], x.f_copy_data_u8(out, x.numel()))
}
