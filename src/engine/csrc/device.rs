//! Operations on a device itself: CUDA, precision settings, memory and events.

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::time::Instant;

use tch::{Device, Tensor};

use super::{
    EventPointer, checked, luthier_device_memory, luthier_device_memory_release, luthier_download,
    luthier_event_free, luthier_event_record, luthier_event_seconds, luthier_event_wait,
    luthier_set_deterministic, luthier_set_tf32, luthier_tf32, luthier_upload, owned, pointer,
};
use crate::error::{EngineError, Result};

/// Whether operations must give the same bits each time, at some cost on CUDA. An operation without a
/// deterministic form in libtorch then fails.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: plain call without pointers.
    checked("set_deterministic", unsafe { luthier_set_deterministic(c_int::from(on)) })
}

/// Loads libtorch's CUDA half, which registers itself; `None` if it cannot be loaded. The returned library
/// must be kept.
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

/// Memory of a CUDA device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Currently used by tensors.
    pub allocated: i64,
    /// Highest use by tensors.
    pub peak: i64,
    /// Reserved by the allocator.
    pub reserved: i64,
    /// Free on the device, after the use by all processes.
    pub free: i64,
    /// Total on the device.
    pub total: i64,
}

/// Memory of libtorch's allocator on a CUDA device.
pub fn device_memory(index: usize) -> Result<DeviceMemory> {
    let mut out = [0_i64; 5];
    let index = device_index(index)?;
    // SAFETY: the shim writes five numbers.
    checked("device_memory", unsafe { luthier_device_memory(index, out.as_mut_ptr()) })?;
    let [allocated, peak, reserved, free, total] = out;
    Ok(DeviceMemory { allocated, peak, reserved, free, total })
}

/// Returns unused memory to a CUDA device and resets [`DeviceMemory::peak`].
pub fn release_device_memory(index: usize) -> Result<()> {
    let index = device_index(index)?;
    // SAFETY: plain call without pointers.
    checked("release_device_memory", unsafe { luthier_device_memory_release(index) })
}

/// Whether products of f32 tensors on CUDA may round their operands to TF32 (8 bits of exponent, 10 of mantissa).
pub fn set_tf32(on: bool) -> Result<()> {
    // SAFETY: plain call without pointers.
    checked("set_tf32", unsafe { luthier_set_tf32(c_int::from(on)) })
}

/// The value set with [`set_tf32`].
pub fn tf32() -> Result<bool> {
    let mut on = 0;
    // SAFETY: one number written on success.
    checked("tf32", unsafe { luthier_tf32(&raw mut on) })?;
    Ok(on != 0)
}

/// Copies a CPU tensor to a CUDA device. The copy is queued in the device's stream; nothing waits for it.
pub fn upload(x: &Tensor, index: usize) -> Result<Tensor> {
    let index = device_index(index)?;
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; libtorch keeps the pinned copy until it was read.
    checked("upload", unsafe { luthier_upload(pointer(x), index, &raw mut out) })?;
    Ok(owned(out))
}

/// Copies a tensor to host memory. The numbers are valid once an [`Event`] recorded after this call has been
/// waited for. Returns the tensor itself if it is already there.
pub fn download(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cuda() {
        return Ok(x.shallow_clone());
    }
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success.
    checked("download", unsafe { luthier_download(pointer(x), &raw mut out) })?;
    Ok(owned(out))
}

/// The index of a CUDA device as libtorch counts them.
fn device_index(index: usize) -> Result<c_int> {
    let index =
        i8::try_from(index).map_err(|_| EngineError::Device(format!("there is no device cuda:{index}")))?;
    Ok(c_int::from(index))
}

/// A point in a device's queue of work.
#[derive(Debug)]
pub struct Event(Moment);

#[derive(Debug)]
enum Moment {
    /// A CPU has done all its work when the call returns.
    Host(Instant),
    Device(NonNull<c_void>),
}

// SAFETY: a CUDA event may be used and freed by any thread.
unsafe impl Send for Moment {}

impl Event {
    /// After all work launched on `device` so far.
    pub fn record(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else { return Ok(Self(Moment::Host(Instant::now()))) };
        let index = device_index(index)?;
        let mut out: EventPointer = null_mut();
        // SAFETY: one pointer written on success.
        checked("event", unsafe { luthier_event_record(index, &raw mut out) })?;
        let event = NonNull::new(out).ok_or_else(|| EngineError::torch("event", "there is none"))?;
        Ok(Self(Moment::Device(event)))
    }

    /// Waits until the device has reached this point.
    pub fn wait(&self) -> Result<()> {
        match &self.0 {
            Moment::Host(_) => Ok(()),
            // SAFETY: a live event.
            Moment::Device(event) => checked("event", unsafe { luthier_event_wait(event.as_ptr()) }),
        }
    }

    /// Seconds from `earlier`, on the same device, to this point, as measured by the device. Waits until it
    /// has reached this point.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        match (&earlier.0, &self.0) {
            (Moment::Host(earlier), Moment::Host(later)) => Ok(later.duration_since(*earlier).as_secs_f64()),
            (Moment::Device(earlier), Moment::Device(later)) => {
                let mut seconds = 0.0;
                // SAFETY: two live events in, one number written on success.
                checked("event", unsafe {
                    luthier_event_seconds(earlier.as_ptr(), later.as_ptr(), &raw mut seconds)
                })?;
                Ok(seconds)
            }
            _ => Err(EngineError::torch("event", "the events belong to different devices")),
        }
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        if let Self::Device(event) = self {
            // SAFETY: made by `luthier_event_record`, and freed here alone.
            unsafe { luthier_event_free(event.as_ptr()) };
        }
    }
}
