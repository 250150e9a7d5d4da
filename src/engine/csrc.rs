//! The C seam over libtorch (`csrc`): one safe function per symbol. The only unsafe code of the engine.
#![expect(unsafe_code, reason = "this is the seam to C++; each use says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use luthier_core::model::Storage;
use memmap2::{Mmap, UncheckedAdvice};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{EngineError, Result};

type Pointer = *mut C_tensor;

unsafe extern "C" {
    fn luthier_last_error() -> *const c_char;
    fn luthier_prepare_process() -> c_int;
    fn luthier_set_threads(threads: c_int) -> c_int;
    fn luthier_set_deterministic(on: c_int) -> c_int;
    fn luthier_borrow(
        data: *mut c_void,
        sizes: *const i64,
        dimensions: usize,
        kind: c_int,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_backward(roots: *const Pointer, gradients: *const Pointer, count: usize) -> c_int;
    fn luthier_adamw(
        parameters: *const Pointer,
        gradients: *const Pointer,
        first: *const Pointer,
        second: *const Pointer,
        steps: *const Pointer,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        left_out: Pointer,
    ) -> c_int;
    fn luthier_grad_norm(gradients: *const Pointer, count: usize, out: *mut Pointer) -> c_int;
    fn luthier_clip(gradients: *const Pointer, count: usize, norm: Pointer, limit: f64) -> c_int;
    fn luthier_linear_cross_entropy(
        hidden: Pointer,
        weight: Pointer,
        bias: Pointer,
        ids: Pointer,
        cap: f64,
        chunk: i64,
        count_correct: c_int,
        by_row: c_int,
        sum: *mut Pointer,
        losses: *mut Pointer,
        correct: *mut Pointer,
    ) -> c_int;
    fn luthier_linear(x: Pointer, weight: Pointer, bias: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_rms_norm(x: Pointer, weight: Pointer, epsilon: f64, out: *mut Pointer) -> c_int;
    fn luthier_swiglu(gate: Pointer, up: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_rope(x: Pointer, cos: Pointer, sin: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_attention(
        query: Pointer,
        key: Pointer,
        value: Pointer,
        before: *const i64,
        own: *const i64,
        count: usize,
        rows: *const i64,
        row_count: usize,
        scale: f64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_attend(
        query: Pointer,
        keys: Pointer,
        values: Pointer,
        lengths: *const i64,
        count: usize,
        scale: f64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_stored_product(
        x: Pointer,
        bytes: *const u8,
        length: usize,
        format: c_int,
        rows: i64,
        columns: i64,
        heads: i64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_spent(out: *mut i64, count: usize) -> c_int;
    fn luthier_adapted_linear(
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        a: Pointer,
        b: Pointer,
        scale: f64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_add_low_rank(y: Pointer, x: Pointer, a: Pointer, b: Pointer, scale: f64) -> c_int;
    fn luthier_dropout_mask(x: Pointer, p: f64, seed: u64, out: *mut Pointer) -> c_int;
    fn luthier_parallel(count: i64, work: extern "C" fn(*mut c_void, i64), owner: *mut c_void) -> c_int;
    fn luthier_remade_linear(
        x: Pointer,
        make: extern "C" fn(*mut c_void, *mut c_char, usize) -> Pointer,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_nf4_decode(matrix: *const Nf4Pointers, kind: c_int, out: *mut Pointer) -> c_int;
    fn luthier_nf4_look_up(matrix: *const Nf4Pointers, kind: c_int, out: *mut Pointer) -> c_int;
    fn luthier_nf4_product(x: Pointer, matrix: *const Nf4Pointers, out: *mut Pointer) -> c_int;
    fn luthier_blocks_decode(
        bytes: Pointer,
        format: c_int,
        rows: i64,
        columns: i64,
        kind: c_int,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_device_memory(device: c_int, out: *mut i64) -> c_int;
    fn luthier_device_memory_release(device: c_int) -> c_int;
}

/// Turns a status of the shim into a result.
fn checked(operation: &str, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a pointer to a thread-local string that lives until this thread's next failure.
    let text = unsafe { CStr::from_ptr(luthier_last_error()) }.to_string_lossy().into_owned();
    Err(EngineError::torch(operation, &text))
}

/// The pointer the shim takes. It reads the tensor; where it writes, the function that calls it says so.
fn pointer(tensor: &Tensor) -> Pointer {
    tensor.as_ptr().cast_mut()
}

fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Pointer> {
    tensors.into_iter().map(pointer).collect()
}

/// Takes over a tensor that the shim made.
fn owned(tensor: Pointer) -> Tensor {
    // SAFETY: the shim made it with `new` for this call alone, and reported success; `Tensor` deletes it once.
    unsafe { Tensor::from_ptr(tensor) }
}

/// Settings that must be made before anything else in the process: what is freed stays with the process, and CUDA
/// memory grows in place. Call once at the start of `main`.
pub fn prepare_process() -> Result<()> {
    // SAFETY: plain call; the caller has not started threads yet, so the environment may change.
    checked("prepare_process", unsafe { luthier_prepare_process() })
}

/// Number of CPU threads that one operation may use.
pub fn set_threads(threads: usize) -> Result<()> {
    let threads = c_int::try_from(threads.max(1)).unwrap_or(c_int::MAX);
    // SAFETY: plain call without pointers.
    checked("set_threads", unsafe { luthier_set_threads(threads) })
}

/// Whether operations must give the same bits each time, at some cost on CUDA.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: plain call without pointers.
    checked("set_deterministic", unsafe { luthier_set_deterministic(c_int::from(on)) })
}

/// Loads libtorch's CUDA half, which registers itself; `None` where it cannot be loaded. Keep what is returned.
pub fn open_cuda() -> Option<libloading::Library> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch's own library from libtorch's own folder; its initialisers only register operators.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => Some(library.into()),
        Err(error) => {
            tracing::warn!(%error, "there is an NVIDIA driver, but libtorch's CUDA half cannot be loaded");
            None
        }
    }
}

/// Maps a whole file for reading.
pub fn map(file: &File) -> std::io::Result<Arc<Mmap>> {
    // SAFETY: weights are opened read-only. Somebody else who writes to the file meanwhile changes what is read, or ends
    // the process; both are theirs to avoid, as for every program that maps its model.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Arc::new(map))
}

/// Gives the memory of a part of a mapped file back to the system, which reads it anew where it is needed again: what will
/// not be read soon need not stand beside what was made of it.
pub fn release_pages(map: &Mmap, offset: usize, length: usize) {
    if offset.checked_add(length).and_then(|end| map.get(offset..end)).is_none() {
        return;
    }
    // SAFETY: the part lies within the map, which is of a file and read-only, so that nothing in it is lost.
    let released = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, length) };
    if let Err(error) = released {
        tracing::debug!(%error, "memory of a mapped file could not be given back");
    }
}

extern "C" fn release_map(owner: *mut c_void) {
    // SAFETY: `owner` is the box that `borrow_map` made; libtorch calls this once, after the last use of the memory.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<Mmap>>()) });
}

/// Number of an element type in `c10/core/ScalarType.h`; `None` for those that no weight has.
fn scalar_type(kind: Kind) -> Option<c_int> {
    match kind {
        Kind::Uint8 => Some(0),
        Kind::Half => Some(5),
        Kind::Float => Some(6),
        Kind::BFloat16 => Some(15),
        _ => None,
    }
}

/// A CPU tensor over `bytes` of a mapped file, without copying; the map lives as long as the tensor. The tensor must
/// never be written to. `None` where the bytes do not hold exactly the shape, or lie unaligned.
pub fn borrow_map(map: &Arc<Mmap>, offset: usize, shape: &[i64], kind: Kind) -> Result<Option<Tensor>> {
    let size = kind.elt_size_in_bytes();
    let Some(scalar_type) = scalar_type(kind) else { return Ok(None) };
    let elements =
        shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(usize::try_from(length).ok()?));
    let Some(length) = elements.and_then(|elements| elements.checked_mul(size)) else { return Ok(None) };
    let Some(bytes) = offset.checked_add(length).and_then(|end| map.get(offset..end)) else {
        return Ok(None);
    };
    if bytes.is_empty() || !bytes.as_ptr().addr().is_multiple_of(size) {
        return Ok(None);
    }
    let owner = Box::into_raw(Box::new(Arc::clone(map)));
    let mut out = null_mut();
    // SAFETY: `bytes` lies in the map, holds the whole shape, is aligned and is kept alive by `owner`; nobody writes
    // to frozen weights.
    let status = unsafe {
        luthier_borrow(
            bytes.as_ptr().cast_mut().cast(),
            shape.as_ptr(),
            shape.len(),
            scalar_type,
            release_map,
            owner.cast(),
            &raw mut out,
        )
    };
    if status != 0 {
        // SAFETY: the tensor was not made, so the box still has this one owner.
        drop(unsafe { Box::from_raw(owner) });
    }
    checked("borrow_map", status)?;
    Ok(Some(owned(out)))
}

/// An element type whose tensors [`fill`] makes.
pub trait Element: Copy {
    /// Its name in libtorch.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}

/// A new CPU tensor whose elements `write` sets; they are zero before.
pub fn fill<T: Element>(shape: &[i64], write: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Tensor> {
    let tensor = crate::ops::zeros(shape, T::KIND, tch::Device::Cpu)?;
    let length = tensor.numel();
    if length > 0 {
        // SAFETY: a new tensor is contiguous, holds `length` elements of `T`'s layout, is zeroed, and has no other
        // handle while the slice lives.
        write(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), length) })?;
    }
    Ok(tensor)
}

/// What `look` makes of the elements of a contiguous f32 tensor on the CPU, in row-major order.
pub fn with_floats<T>(x: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    if x.kind() != Kind::Float || x.device() != tch::Device::Cpu || !x.is_contiguous() {
        return Err(crate::ops::mismatch("with_floats", &[x], "f32 in row-major order on the CPU is needed"));
    }
    if x.numel() == 0 {
        return Ok(look(&[]));
    }
    // SAFETY: such a tensor has `numel` f32, one behind the other, which live as long as `x`; whoever writes to tensors
    // in place does so on the engine's one thread, which is here.
    Ok(look(unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<f32>(), x.numel()) }))
}

/// Gradients of `roots` into the leaves they were made from, starting from `gradients` (of the roots' shapes; `None` is
/// one, for scalars). Frees the graph.
pub fn backward(roots: &[&Tensor], gradients: &[Option<&Tensor>]) -> Result<()> {
    if roots.len() != gradients.len() {
        return Err(EngineError::torch("backward", "as many gradients as roots are needed"));
    }
    let starts: Vec<Pointer> =
        gradients.iter().map(|gradient| gradient.map_or(null_mut(), pointer)).collect();
    let roots = pointers(roots.iter().copied());
    // SAFETY: both arrays have `roots.len()` pointers to live tensors, or null where allowed.
    checked("backward", unsafe { luthier_backward(roots.as_ptr(), starts.as_ptr(), roots.len()) })
}

/// Settings of [`adamw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Decoupled: `parameter -= learning_rate · weight_decay · parameter`.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// What [`adamw`] changes for one parameter, and its gradient.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Updated in place.
    pub parameter: &'a Tensor,
    /// Of the parameter's shape and type.
    pub gradient: &'a Tensor,
    /// First moment, updated in place.
    pub first: &'a Tensor,
    /// Second moment, updated in place.
    pub second: &'a Tensor,
    /// Steps made, a 0-dimensional f32 tensor on the parameter's device; one is added.
    pub step: &'a Tensor,
}

/// One AdamW update (arXiv 1711.05101, algorithm 2) of all parameters at once, in place; none where `left_out`, a
/// 0-dimensional f32 tensor, holds 1. Parameters of one device and type.
pub fn adamw(parameters: &[Moments], settings: &AdamW, left_out: &Tensor) -> Result<()> {
    if parameters.is_empty() {
        return Ok(());
    }
    let column = |pick: fn(&Moments) -> Pointer| parameters.iter().map(pick).collect::<Vec<_>>();
    let (values, gradients) = (column(|row| pointer(row.parameter)), column(|row| pointer(row.gradient)));
    let (first, second) = (column(|row| pointer(row.first)), column(|row| pointer(row.second)));
    let steps = column(|row| pointer(row.step));
    // SAFETY: each array has `parameters.len()` pointers to tensors that live through the call, as `left_out` does.
    checked("adamw", unsafe {
        luthier_adamw(
            values.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            parameters.len(),
            settings.learning_rate,
            settings.betas[0],
            settings.betas[1],
            settings.weight_decay,
            settings.epsilon,
            pointer(left_out),
        )
    })
}

/// Euclidean norm of all gradients together: a 0-dimensional f32 tensor on their device, so that nothing waits for it.
pub fn grad_norm(gradients: &[Tensor]) -> Result<Tensor> {
    if gradients.is_empty() {
        return crate::ops::zeros(&[], Kind::Float, tch::Device::Cpu);
    }
    let list = pointers(gradients);
    let mut out = null_mut();
    // SAFETY: `list` has `list.len()` pointers to live tensors; `out` is written on success.
    checked("grad_norm", unsafe { luthier_grad_norm(list.as_ptr(), list.len(), &raw mut out) })?;
    Ok(owned(out))
}

/// Scales gradients in place by `min(1, limit / (norm + 1e-6))`, where `norm` comes from [`grad_norm`].
pub fn clip(gradients: &[Tensor], norm: &Tensor, limit: f64) -> Result<()> {
    if gradients.is_empty() {
        return Ok(());
    }
    let list = pointers(gradients);
    // SAFETY: `list` has `list.len()` pointers to live tensors; gradients are plain buffers that may be scaled.
    checked("clip", unsafe { luthier_clip(list.as_ptr(), list.len(), pointer(norm), limit) })
}

/// Which result of [`linear_cross_entropy`] carries the gradient of the hidden states (and of a trained head).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// [`CrossEntropy::sum`]: every row counts alike.
    Sum,
    /// [`CrossEntropy::rows`]: each row counts as the backward pass says. A trained head's logits are computed again then.
    Rows,
}

/// What [`linear_cross_entropy`] returns.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Sum over rows, f32, 0-dimensional.
    pub sum: Tensor,
    /// Loss of each row, `[N]` f32.
    pub rows: Tensor,
    /// Number of rows whose most likely token is the right one, 0-dimensional int64; 0 where it was not asked for.
    pub correct: Tensor,
}

/// What turns hidden states into logits `z`: `hidden · weightᵀ + bias`, then `cap · tanh(z / cap)` where there is a cap.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[V, H]`
    pub weight: &'a Tensor,
    /// `[V]`
    pub bias: Option<&'a Tensor>,
    /// Above 0.
    pub cap: Option<f64>,
}

/// Cross entropy of the softmax of the head's logits against `ids`, summed. `hidden` is `[N, H]`, `ids` `[N]` int64 within
/// 0..V. Holds the logits of `chunk` rows at a time; gradients are made at once.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Head,
    ids: &Tensor,
    chunk: i64,
    count_correct: bool,
    through: Through,
) -> Result<CrossEntropy> {
    let (mut sum, mut rows, mut correct) = (null_mut(), null_mut(), null_mut());
    // SAFETY: live tensors in, or null where there is no bias; three pointers written on success.
    checked("linear_cross_entropy", unsafe {
        luthier_linear_cross_entropy(
            pointer(hidden),
            pointer(head.weight),
            head.bias.map_or(null_mut(), pointer),
            pointer(ids),
            head.cap.unwrap_or(0.0),
            chunk,
            c_int::from(count_correct),
            c_int::from(through == Through::Rows),
            &raw mut sum,
            &raw mut rows,
            &raw mut correct,
        )
    })?;
    Ok(CrossEntropy { sum: owned(sum), rows: owned(rows), correct: owned(correct) })
}

/// Whether the kernels for the CPU can work on a tensor: f32 or bf16, on the CPU, contiguous.
pub fn is_plain(x: &Tensor) -> bool {
    matches!(x.kind(), Kind::Float | Kind::BFloat16) && x.device() == tch::Device::Cpu && x.is_contiguous()
}

/// Whether they can work on all of `tensors` together: each [plain](is_plain), and all of one type.
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

/// Rotates the leading `2F` dimensions of every head of `x` `[N, heads, size]` by `cos` and `sin` `[N, …, F]` in one pass;
/// plain tensors only. No gradient reaches `cos` and `sin`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: three live tensors in, one pointer written on success; the shim checks shapes and types.
    checked("rope", unsafe { luthier_rope(pointer(x), pointer(cos), pointer(sin), &raw mut out) })?;
    Ok(owned(out))
}

/// Documents as [`attention`] takes them. L: tokens of all documents together, each as often as it is seen as one of theirs.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// Tokens of each document that come before its own.
    pub before: &'a [i64],
    /// Own tokens of each document, at least one.
    pub own: &'a [i64],
    /// `[L]`: the row of keys and values for every token of every document; empty where those are just all rows in order.
    pub rows: &'a [i64],
}

/// Causal softmax attention of documents whose own tokens lie end to end, and which may begin with tokens that have no
/// queries of their own: `query` `[N, heads, size]`, `key` and `value` `[K, groups, size]`; plain tensors only. Returns
/// `[N, heads · size]`.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    documents: Documents,
    scale: f64,
) -> Result<Tensor> {
    let Documents { before, own, rows } = documents;
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

/// One new query a row against a cache: `query` `[B, heads, size]`, `keys` and `values` `[B, groups, room, size]`, of which
/// row b has `lengths[b]`; plain tensors only. Returns `[B, heads · size]`; no gradient.
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

/// A matrix `[rows, columns]` as it lies in a file.
#[derive(Debug, Clone, Copy)]
pub struct StoredMatrix<'a> {
    /// All of it, row after row.
    pub bytes: &'a [u8],
    /// How its elements are encoded.
    pub storage: Storage,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Heads of a query or key projection whose rotary pairs lie side by side in the file
    /// ([`luthier_core::model::Arrangement::RotaryPairs`]), where they are to be taken apart.
    pub paired_heads: Option<usize>,
}

/// Number of an encoding in `csrc/kernels.h`; `None` for those it does not have.
fn format_number(storage: Storage) -> Option<c_int> {
    match storage {
        Storage::BF16 => Some(0),
        Storage::Q8_0 => Some(1),
        Storage::Q4_0 => Some(2),
        Storage::Q4_1 => Some(3),
        Storage::Q5_0 => Some(4),
        Storage::Q5_1 => Some(5),
        Storage::Q4K => Some(6),
        Storage::Q5K => Some(7),
        Storage::Q6K => Some(8),
        Storage::F32 | Storage::F16 => None,
    }
}

/// Whether [`stored_product`] knows the encoding.
pub fn can_multiply(storage: Storage) -> bool {
    format_number(storage).is_some()
}

/// `x · matrixᵀ`, `[tokens, columns]` → `[tokens, rows]`, decoding the matrix on the way: for few tokens, where reading
/// the matrix takes the time. `x` must be plain; no gradient.
pub fn stored_product(x: &Tensor, matrix: &StoredMatrix) -> Result<Tensor> {
    let Some(format) = format_number(matrix.storage) else {
        return Err(EngineError::torch("stored_product", "no kernel for this encoding"));
    };
    let mut out = null_mut();
    // SAFETY: one live tensor and a live slice in, one pointer written on success; the shim checks that the slice holds
    // exactly the matrix.
    checked("stored_product", unsafe {
        luthier_stored_product(
            pointer(x),
            matrix.bytes.as_ptr(),
            matrix.bytes.len(),
            format,
            matrix.rows as i64,
            matrix.columns as i64,
            matrix.paired_heads.map_or(0, |heads| heads as i64),
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}

/// Parts of a step whose time is counted, as in `csrc/cpu.h`.
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

/// What each part took on the CPU since the last call.
pub fn time_spent() -> Result<Vec<(&'static str, Duration)>> {
    let mut nanoseconds = [0_i64; PARTS.len()];
    // SAFETY: the shim writes as many numbers as it is told there are, or none.
    checked("time_spent", unsafe { luthier_spent(nanoseconds.as_mut_ptr(), nanoseconds.len()) })?;
    let spent = nanoseconds.map(|count| Duration::from_nanos(u64::try_from(count).unwrap_or_default()));
    Ok(PARTS.into_iter().zip(spent).collect())
}

/// A matrix out of `bytes`, a one-dimensional uint8 tensor of llama.cpp's blocks, decoded by tensor operations on the
/// device it lies on: `[rows, columns]` of type `kind`.
pub fn blocks_decode(
    bytes: &Tensor,
    storage: Storage,
    [rows, columns]: [usize; 2],
    kind: Kind,
) -> Result<Tensor> {
    let known = format_number(storage).filter(|_| storage.is_quantised()).zip(scalar_type(kind));
    let Some((format, kind)) = known else {
        return Err(EngineError::torch("blocks_decode", "no such blocks or elements"));
    };
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; the shim checks that the bytes are exactly the matrix.
    checked("blocks_decode", unsafe {
        luthier_blocks_decode(pointer(bytes), format, rows as i64, columns as i64, kind, &raw mut out)
    })?;
    Ok(owned(out))
}

/// A matrix in NF4 with the tables that decode it, as [`crate::weights::nf4`] describes them; all on one device.
#[derive(Debug, Clone, Copy)]
pub struct Nf4Matrix<'a> {
    /// uint8, two elements each.
    pub codes: &'a Tensor,
    /// uint8, one for every 64 elements.
    pub scales: &'a Tensor,
    /// f32, one for every 256 scales.
    pub nested: &'a Tensor,
    /// One f32.
    pub offset: &'a Tensor,
    /// `[256, 2]` f32: the two elements that each byte of `codes` stands for, unscaled.
    pub pairs: &'a Tensor,
    /// `[256]` f32: what each scale stands for.
    pub dynamic: &'a Tensor,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
}

/// `luthier_nf4` of `csrc/quantised.cpp`.
#[repr(C)]
struct Nf4Pointers {
    codes: Pointer,
    scales: Pointer,
    nested: Pointer,
    offset: Pointer,
    pairs: Pointer,
    dynamic: Pointer,
    rows: i64,
    columns: i64,
}

impl Nf4Matrix<'_> {
    /// Pointers that are good as long as the tensors are.
    fn pointers(&self) -> Nf4Pointers {
        Nf4Pointers {
            codes: pointer(self.codes),
            scales: pointer(self.scales),
            nested: pointer(self.nested),
            offset: pointer(self.offset),
            pairs: pointer(self.pairs),
            dynamic: pointer(self.dynamic),
            rows: self.rows as i64,
            columns: self.columns as i64,
        }
    }
}

/// The matrix decoded, `[rows, columns]` of type `kind`, f32 or bf16; on the CPU only.
pub fn nf4_decode(matrix: &Nf4Matrix, kind: Kind) -> Result<Tensor> {
    let Some(kind) = scalar_type(kind) else {
        return Err(EngineError::torch("nf4_decode", "no such elements"));
    };
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: six live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_decode", unsafe { luthier_nf4_decode(&raw const matrix, kind, &raw mut out) })?;
    Ok(owned(out))
}

/// As [`nf4_decode`], by tensor operations, on any device.
pub fn nf4_look_up(matrix: &Nf4Matrix, kind: Kind) -> Result<Tensor> {
    let Some(kind) = scalar_type(kind) else {
        return Err(EngineError::torch("nf4_look_up", "no such elements"));
    };
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: six live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_look_up", unsafe { luthier_nf4_look_up(&raw const matrix, kind, &raw mut out) })?;
    Ok(owned(out))
}

/// `x · matrixᵀ`, `[tokens, columns]` → `[tokens, rows]`, decoding the matrix on the way: for few tokens. `x` must be
/// plain and `columns` a multiple of 64; no gradient.
pub fn nf4_product(x: &Tensor, matrix: &Nf4Matrix) -> Result<Tensor> {
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: seven live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_product", unsafe { luthier_nf4_product(pointer(x), &raw const matrix, &raw mut out) })?;
    Ok(owned(out))
}

/// What [`parallel`] runs, and whether it ended in a panic.
struct Shared<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    panicked: AtomicBool,
}

extern "C" fn run_shared(owner: *mut c_void, index: i64) {
    // SAFETY: `owner` is the `Shared` of a `parallel` that is still running.
    let shared = unsafe { &*owner.cast::<Shared>() };
    if catch_unwind(AssertUnwindSafe(|| (shared.work)(index as usize))).is_err() {
        shared.panicked.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` for every number below `count`, on the threads that libtorch's operations run on: others would compete with
/// these, which keep their cores busy for a while when they have nothing to do.
pub fn parallel(count: usize, work: &(dyn Fn(usize) + Sync)) -> Result<()> {
    let mut shared = Shared { work, panicked: AtomicBool::new(false) };
    // SAFETY: `shared` lives until the call has returned, and the shim keeps nothing of it; several threads read it.
    checked("parallel", unsafe { luthier_parallel(count as i64, run_shared, (&raw mut shared).cast()) })?;
    if shared.panicked.into_inner() {
        return Err(EngineError::torch("parallel", "a part of the work ended in a panic"));
    }
    Ok(())
}

/// Makes a frozen weight; called by whichever thread runs a backward.
type Make = Box<dyn Fn() -> Result<Tensor> + Send>;

extern "C" fn make_weight(owner: *mut c_void, message: *mut c_char, room: usize) -> Pointer {
    // SAFETY: `owner` is the box that `remade_linear` made, which the shim releases only after its last call, and it calls
    // from one thread at a time.
    let make = unsafe { &*owner.cast::<Make>() };
    let told = match catch_unwind(AssertUnwindSafe(make)) {
        // The shim takes the tensor over.
        Ok(Ok(tensor)) => return ManuallyDrop::new(tensor).as_mut_ptr(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the weight's decoding ended in a panic".to_owned(),
    };
    let length = told.len().min(room.saturating_sub(1));
    // SAFETY: `message` has `room` bytes, zeroed, of which the last stays as it is.
    unsafe { std::ptr::copy_nonoverlapping(told.as_ptr().cast(), message, length) };
    null_mut()
}

extern "C" fn release_make(owner: *mut c_void) {
    // SAFETY: `owner` is the box that `remade_linear` made; the shim calls this once, after the last use.
    drop(unsafe { Box::from_raw(owner.cast::<Make>()) });
}

/// `x · weightᵀ`, `[N, in]` → `[N, out]`, for the frozen weight `[out, in]` that `make` makes, of `x`'s type. It is let go
/// after the product and made again for the gradient of `x`, so that a graph holds no weights.
pub fn remade_linear(x: &Tensor, make: impl Fn() -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let make: Make = Box::new(make);
    let owner = Box::into_raw(Box::new(make));
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; the shim takes `owner` over, also when it fails.
    checked("remade_linear", unsafe {
        luthier_remade_linear(pointer(x), make_weight, release_make, owner.cast(), &raw mut out)
    })?;
    Ok(owned(out))
}

/// What LoRA adds to a linear layer: `scale · (x · aᵀ) · bᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, in]`
    pub a: &'a Tensor,
    /// `[out, rank]`
    pub b: &'a Tensor,
    /// Factor of the whole.
    pub scale: f64,
}

/// `x · weightᵀ + bias + scale · (x · aᵀ) · bᵀ`, `[N, out]`: differentiable in all but `weight` `[out, in]`, which is
/// frozen. The factors may be f32 where the others are not: their gradients then are f32 too.
pub fn adapted_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    LowRank { a, b, scale }: LowRank,
) -> Result<Tensor> {
    let bias = bias.map_or(null_mut(), pointer);
    let mut out = null_mut();
    // SAFETY: four live tensors and one that may be null in, one pointer written on success.
    checked("adapted_linear", unsafe {
        luthier_adapted_linear(pointer(x), pointer(weight), bias, pointer(a), pointer(b), scale, &raw mut out)
    })?;
    Ok(owned(out))
}

/// `y += scale · (x · aᵀ) · bᵀ` in place, differentiable in all four: `y` is `[N, out]` and the result of an operation
/// that does not need it for its own gradient, `x` `[N, in]`, `a` `[rank, in]`, `b` `[out, rank]`. The factors may be f32
/// where the others are not: their gradients then are f32 too.
pub fn add_low_rank(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<()> {
    // SAFETY: four live tensors; `y` is written through autograd's own in-place operation.
    checked("add_low_rank", unsafe {
        luthier_add_low_rank(pointer(y), pointer(x), pointer(a), pointer(b), scale)
    })
}

/// A tensor like `x` that is 0 with probability `p` and else `1 / (1 - p)`; a function of `seed` alone.
pub fn dropout_mask(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success.
    checked("dropout_mask", unsafe { luthier_dropout_mask(pointer(x), p, seed, &raw mut out) })?;
    Ok(owned(out))
}

/// Memory of a CUDA device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by tensors now.
    pub allocated: i64,
    /// Most ever held by tensors.
    pub peak: i64,
    /// Held by the allocator.
    pub reserved: i64,
    /// Free on the device, whoever uses the rest.
    pub free: i64,
    /// Of the device.
    pub total: i64,
}

/// What libtorch's allocator holds on a CUDA device.
pub fn device_memory(index: usize) -> Result<DeviceMemory> {
    let mut out = [0_i64; 5];
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: the shim writes five numbers.
    checked("device_memory", unsafe { luthier_device_memory(index, out.as_mut_ptr()) })?;
    let [allocated, peak, reserved, free, total] = out;
    Ok(DeviceMemory { allocated, peak, reserved, free, total })
}

/// Gives unused memory back to a CUDA device and starts [`DeviceMemory::peak`] anew.
pub fn release_device_memory(index: usize) -> Result<()> {
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: plain call without pointers.
    checked("release_device_memory", unsafe { luthier_device_memory_release(index) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_borrowed_tensor_outlives_the_map_it_came_from() {
        let mut file = tempfile::tempfile().unwrap();
        let values: Vec<u8> = (0..64_u16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        file.write_all(&values).unwrap();
        let map = map(&file).unwrap();
        let tensor = borrow_map(&map, 16, &[3, 5], Kind::Float).unwrap().unwrap();
        assert_eq!(tensor.data_ptr().addr(), map.as_ptr().addr() + 16);
        assert_eq!(Arc::strong_count(&map), 2);
        let view = tensor.narrow(0, 1, 1);
        drop(tensor);
        let weak = Arc::downgrade(&map);
        drop(map);
        assert_eq!(Vec::<f32>::try_from(view.flatten(0, -1)).unwrap(), [9.0, 10.0, 11.0, 12.0, 13.0]);
        drop(view);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn released_pages_are_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let map = map(&file).unwrap();
        assert_eq!(map[..], content);
        release_pages(&map, 5000, 20_000);
        assert_eq!(map[..], content);
        release_pages(&map, usize::MAX, 1);
    }

    #[test]
    fn what_does_not_lie_in_the_map_is_not_borrowed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 64]).unwrap();
        let map = map(&file).unwrap();
        let borrow = |offset, shape: &[i64], kind| borrow_map(&map, offset, shape, kind).unwrap().is_some();
        assert!(borrow(0, &[16], Kind::Float) && borrow(2, &[31], Kind::BFloat16));
        assert!(!borrow(0, &[17], Kind::Float), "too long");
        assert!(!borrow(2, &[4], Kind::Float), "unaligned");
        assert!(
            !borrow(usize::MAX, &[1], Kind::Float) && !borrow(0, &[i64::MAX, 8], Kind::Float),
            "overflow"
        );
        assert!(!borrow(0, &[-1], Kind::Float) && !borrow(0, &[4], Kind::Int64));
    }
}
