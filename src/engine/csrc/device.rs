//! What is asked of a device rather than of tensors: CUDA itself, how exact it is, its memory and its clock.

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

/// Whether operations must give the same bits each time, at some cost on CUDA; one of which libtorch has no such form fails.
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

/// Memory of a CUDA device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by tensors now.
    pub allocated: i64,
    /// Most ever held by tensors.
    pub peak: i64,
    /// Held by the allocator.
    pub reserved: i64,
    /// Free on the device, counting what other processes use as taken.
    pub free: i64,
    /// Of the device.
    pub total: i64,
}

/// What libtorch's allocator holds on a CUDA device.
pub fn device_memory(index: usize) -> Result<DeviceMemory> {
    let mut out = [0_i64; 5];
    let index = device_index(index)?;
    // SAFETY: the shim writes five numbers.
    checked("device_memory", unsafe { luthier_device_memory(index, out.as_mut_ptr()) })?;
    let [allocated, peak, reserved, free, total] = out;
    Ok(DeviceMemory { allocated, peak, reserved, free, total })
}

/// Gives unused memory back to a CUDA device and restarts [`DeviceMemory::peak`].
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

/// What [`set_tf32`] was told.
pub fn tf32() -> Result<bool> {
    let mut on = 0;
    // SAFETY: one number written on success.
    checked("tf32", unsafe { luthier_tf32(&raw mut on) })?;
    Ok(on != 0)
}

/// A CPU tensor on a CUDA device, in whose stream the copy takes its turn: nobody waits for it.
pub fn upload(x: &Tensor, index: usize) -> Result<Tensor> {
    let index = device_index(index)?;
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; libtorch keeps the pinned copy until it was read.
    checked("upload", unsafe { luthier_upload(pointer(x), index, &raw mut out) })?;
    Ok(owned(out))
}

/// A tensor in this process's memory, whose numbers are there once the device has come so far: when an [`Event`] that was
/// recorded after this has been waited for. Itself where it is there already.
pub fn download(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cuda() {
        return Ok(x.shallow_clone());
    }
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success.
    checked("download", unsafe { luthier_download(pointer(x), &raw mut out) })?;
    Ok(owned(out))
}

/// The number of a CUDA device as libtorch counts them.
fn device_index(index: usize) -> Result<c_int> {
    let index =
        i8::try_from(index).map_err(|_| EngineError::Device(format!("there is no device cuda:{index}")))?;
    Ok(c_int::from(index))
}

/// A point in what a device was given to do.
#[derive(Debug)]
pub struct Event(Moment);

#[derive(Debug)]
enum Moment {
    /// The CPU has done all it was given when the call returns.
    Host(Instant),
    Device(NonNull<c_void>),
}

// SAFETY: a CUDA event may be used and freed by any thread.
unsafe impl Send for Moment {}

impl Event {
    /// After all that was given to `device` so far.
    pub fn record(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else { return Ok(Self(Moment::Host(Instant::now()))) };
        let index = device_index(index)?;
        let mut out: EventPointer = null_mut();
        // SAFETY: one pointer written on success.
        checked("event", unsafe { luthier_event_record(index, &raw mut out) })?;
        let event = NonNull::new(out).ok_or_else(|| EngineError::torch("event", "there is none"))?;
        Ok(Self(Moment::Device(event)))
    }

    /// Waits until the device has come this far.
    pub fn wait(&self) -> Result<()> {
        match &self.0 {
            Moment::Host(_) => Ok(()),
            // SAFETY: a live event.
            Moment::Device(event) => checked("event", unsafe { luthier_event_wait(event.as_ptr()) }),
        }
    }

    /// Seconds from `earlier`, on the same device, to this one, as the device counts them; waits until it has come this far.
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
            _ => Err(EngineError::torch("event", "the two are of different devices")),
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
