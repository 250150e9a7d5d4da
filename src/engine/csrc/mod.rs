//! The C interface to libtorch (`csrc`): one safe function per symbol. The engine's only unsafe code.
#![expect(unsafe_code, reason = "this is the interface to C++; each use says why it is sound")]

mod cuda;
mod device;
mod driver;
mod flash;
mod fused;
mod kernels;
mod memory;
mod profile;
mod quantised;
mod signals;
mod training;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;
use torch_sys::C_tensor;

#[cfg(test)]
pub use self::cuda::emulate_kernels;
pub use self::cuda::{NotLoaded, Program, allow_program, has_program, load_program};
use self::device::device_index;
#[cfg(test)]
pub use self::device::has_cudnn_attention;
pub use self::device::{
    CudaLibraries, DeviceMemory, Event, device_memory, download, gpu_memory, leave_out_cudnn_attention,
    libtorch_folder, open_cuda, release_device_memory, set_deterministic, set_tf32, start_device_memory,
    tf32, upload,
};
use self::driver::Launcher;
pub use self::flash::{Lengths, allow_flash_attention, flash_attention, has_flash_attention};
pub use self::fused::{
    NewTokens, Nf4Levels, Places, fused_add_norm, fused_blocks_decode, fused_blocks_product,
    fused_nf4_decode, fused_nf4_encode, fused_nf4_product, fused_rope, fused_rope_into_cache, fused_swiglu,
    in_eights,
};
pub use self::kernels::{
    AdaptedLayer, LowRank, Seen, adapted_linear, adapted_linears, add_low_rank, all_plain, attend, attention,
    gather, is_plain, linear, rms_norm, rope, swiglu, time_spent,
};
pub use self::memory::{Element, borrow_map, fill, map, release_pages, with_floats};
use self::profile::Note;
pub use self::profile::{Operation, Profiler};
pub use self::quantised::{
    FewMatrix, Nf4Matrix, StoredMatrix, blocks_decode, can_multiply, few_products, nf4_decode, nf4_look_up,
    nf4_product, remade_linear,
};
use self::quantised::{MatrixPointers, Nf4Pointers};
pub use self::signals::{hold_signals, on_bus_error};
pub use self::training::{
    AdamW, Clipping, Comparison, CrossEntropy, FusedUpdate, Head, Moments, Through, adamw, as_recorded,
    backward, dropout_mask, grad_norm, linear_cross_entropy, take_gradient,
};
use crate::error::{EngineError, Result};

/// The libtorch version of tch 0.24, whose build refuses others.
pub const LIBTORCH_VERSION: &str = "2.11.0";

type Pointer = *mut C_tensor;

/// A `c10::Event`.
type EventPointer = *mut c_void;

unsafe extern "C" {
    fn luthier_last_error() -> *const c_char;
    fn luthier_prepare_process() -> c_int;
    fn luthier_set_threads(threads: c_int) -> c_int;
    fn luthier_set_deterministic(on: c_int) -> c_int;
    fn luthier_set_tf32(on: c_int) -> c_int;
    fn luthier_tf32(on: *mut c_int) -> c_int;
    fn luthier_start_device_memory(device: c_int, bytes: i64) -> c_int;
    fn luthier_leave_out_cudnn_attention() -> c_int;
    #[cfg(test)]
    fn luthier_has_cudnn_attention(on: *mut c_int) -> c_int;
    fn luthier_download(x: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_gather(x: Pointer, index: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_event_wait(event: EventPointer) -> c_int;
    fn luthier_upload(x: Pointer, device: c_int, out: *mut Pointer) -> c_int;
    fn luthier_event_record(device: c_int, out: *mut EventPointer) -> c_int;
    fn luthier_event_seconds(earlier: EventPointer, later: EventPointer, out: *mut f64) -> c_int;
    fn luthier_event_free(event: EventPointer);
    fn luthier_borrow(
        data: *mut c_void,
        sizes: *const i64,
        dimensions: usize,
        kind: c_int,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_as_recorded(x: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_take_gradient(leaf: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_backward(roots: *const Pointer, gradients: *const Pointer, count: usize) -> c_int;
    fn luthier_adamw(
        parameters: *const Pointer,
        gradients: *const Pointer,
        first: *const Pointer,
        second: *const Pointer,
        steps: *const Pointer,
        working: *const Pointer,
        count: usize,
        norm: Pointer,
        limit: f64,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        left_out: Pointer,
        fused: c_int,
    ) -> c_int;
    fn luthier_grad_norm(gradients: *const Pointer, count: usize, out: *mut Pointer) -> c_int;
    fn luthier_linear_cross_entropy(
        hidden: Pointer,
        weight: Pointer,
        bias: Pointer,
        ids: Pointer,
        cap: f64,
        chunk: i64,
        count_correct: c_int,
        by_row: c_int,
        fused: c_int,
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
    fn luthier_flash_attention(
        query: Pointer,
        key: Pointer,
        value: Pointer,
        queries: Pointer,
        keys: Pointer,
        most_queries: i64,
        most_keys: i64,
        window: i64,
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
    fn luthier_few_products(
        x: Pointer,
        matrices: *const MatrixPointers,
        count: usize,
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
        gate: Pointer,
        up: Pointer,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_adapted_linears(
        x: Pointer,
        weights: *const Pointer,
        biases: *const Pointer,
        factors_a: *const Pointer,
        factors_b: *const Pointer,
        scales: *const f64,
        count: usize,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_add_low_rank(
        y: Pointer,
        x: Pointer,
        a: Pointer,
        b: Pointer,
        scale: f64,
        gate: Pointer,
        up: Pointer,
    ) -> c_int;
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
    fn luthier_use_launcher(device: c_int, launcher: Launcher) -> c_int;
    fn luthier_use_kernel(device: c_int, name: *const c_char, function: *mut c_void) -> c_int;
    fn luthier_fused_swiglu(gate: Pointer, up: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_fused_rope(x: Pointer, cos: Pointer, sin: Pointer, out: *mut Pointer) -> c_int;
    fn luthier_fused_rope_into_cache(
        query: Pointer,
        key: Pointer,
        value: Pointer,
        cos: Pointer,
        sin: Pointer,
        keys: Pointer,
        values: Pointer,
        places: Pointer,
        start: i64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_fused_add_norm(
        x: Pointer,
        other: Pointer,
        weight: Pointer,
        epsilon: f64,
        sum: *mut Pointer,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_fused_nf4_decode(matrix: *const Nf4Pointers, kind: c_int, out: *mut Pointer) -> c_int;
    fn luthier_fused_nf4_product(x: Pointer, matrix: *const Nf4Pointers, out: *mut Pointer) -> c_int;
    fn luthier_fused_nf4_encode(
        values: Pointer,
        bounds: Pointer,
        smallest: f32,
        zero: c_int,
        codes: *mut Pointer,
        largest: *mut Pointer,
    ) -> c_int;
    fn luthier_fused_blocks_decode(
        bytes: Pointer,
        format: c_int,
        rows: i64,
        columns: i64,
        kind: c_int,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_fused_blocks_product(
        x: Pointer,
        bytes: Pointer,
        format: c_int,
        rows: i64,
        columns: i64,
        out: *mut Pointer,
    ) -> c_int;
    fn luthier_device_memory(device: c_int, out: *mut i64) -> c_int;
    fn luthier_device_memory_release(device: c_int) -> c_int;
    fn luthier_hold_signals(signals: *const c_int, count: usize, hold: c_int) -> c_int;
    fn luthier_on_bus_error(said: *const c_char, from: *const c_char, to: *const c_char) -> c_int;
    fn luthier_profile_start(cuda: c_int) -> c_int;
    fn luthier_profile_stop(cuda: c_int, note: Note, owner: *mut c_void) -> c_int;
}

/// Converts a status of the shim to a result.
fn checked(operation: &str, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a pointer to a thread-local string that lives until this thread's next failure.
    let text = unsafe { CStr::from_ptr(luthier_last_error()) }.to_string_lossy().into_owned();
    Err(EngineError::torch(operation, &text))
}

/// The pointer for the shim. It reads the tensor; a function whose shim call writes says so.
fn pointer(tensor: &Tensor) -> Pointer {
    tensor.as_ptr().cast_mut()
}

fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Pointer> {
    tensors.into_iter().map(pointer).collect()
}

/// Takes ownership of a tensor that the shim created.
fn owned(tensor: Pointer) -> Tensor {
    // SAFETY: the shim made it with `new` for this call alone, and reported success; `Tensor` deletes it once.
    unsafe { Tensor::from_ptr(tensor) }
}

/// Process-wide settings that must come first: freed memory stays with the process, and CUDA memory grows in
/// place. Call once at the start of `main`.
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

/// The work of [`parallel`], and whether it panicked.
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

/// Runs `work` for every number below `count`, on the threads of libtorch's operations. Other threads would
/// compete with these, which keep their cores busy for a while after they become idle.
pub fn parallel(count: usize, work: &(dyn Fn(usize) + Sync)) -> Result<()> {
    let mut shared = Shared { work, panicked: AtomicBool::new(false) };
    // SAFETY: `shared` lives until the call has returned, and the shim keeps nothing of it; several threads read it.
    checked("parallel", unsafe { luthier_parallel(count as i64, run_shared, (&raw mut shared).cast()) })?;
    if shared.panicked.into_inner() {
        return Err(EngineError::torch("parallel", "a part of the work panicked"));
    }
    Ok(())
}
