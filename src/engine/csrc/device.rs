//! Operations on a device itself: CUDA, precision settings, memory and events.

use std::ffi::{c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tch::{Device, Tensor};

use super::{
    EventPointer, checked, luthier_device_memory, luthier_device_memory_release, luthier_download,
    luthier_event_free, luthier_event_record, luthier_event_seconds, luthier_event_wait,
    luthier_leave_out_cudnn_attention, luthier_set_deterministic, luthier_set_tf32,
    luthier_start_device_memory, luthier_tf32, luthier_upload, owned, pointer,
};
use crate::error::{EngineError, Result};

/// Whether operations must give the same bits each time, at some cost on CUDA. An operation without a
/// deterministic form in libtorch then fails.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: plain call without pointers.
    checked("set_deterministic", unsafe { luthier_set_deterministic(c_int::from(on)) })
}

/// Attention takes any of libtorch's kernels but cuDNN's.
pub fn leave_out_cudnn_attention() -> Result<()> {
    // SAFETY: plain call without pointers.
    checked("leave_out_cudnn_attention", unsafe { luthier_leave_out_cudnn_attention() })
}

/// Whether attention may take cuDNN's kernels.
#[cfg(test)]
pub fn has_cudnn_attention() -> Result<bool> {
    let mut on = 0;
    // SAFETY: one number written on success.
    checked("has_cudnn_attention", unsafe { super::luthier_has_cudnn_attention(&raw mut on) })?;
    Ok(on != 0)
}

/// Libraries that must stay loaded.
pub type CudaLibraries = Vec<libloading::Library>;

/// Loads libtorch's CUDA half, which registers itself, and before it the compiler of kernels that cuDNN and libtorch
/// look for by name and find only where it is loaded already. The linker drops libraries without references to them,
/// and without this one libtorch has no CUDA. `cuda_major` is the CUDA that libtorch was built with. The error says what
/// is missing.
pub fn open_cuda(cuda_major: u32) -> std::result::Result<CudaLibraries, String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let open = |path: &Path| {
        // SAFETY: libraries of libtorch and of NVIDIA from their own folders; their initialisers only register
        // themselves.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        library.map(libloading::Library::from).map_err(|error| reason(&error))
    };
    let folder = libtorch_folder().ok_or("libtorch's folder is not known")?;
    let mut opened = Vec::new();
    for path in compilers(&folder, cuda_major) {
        match open(&path) {
            Ok(library) => opened.push(library),
            // Only some kernels need it, and those say so.
            Err(error) => tracing::warn!("{} cannot be loaded: {error}", path.display()),
        }
    }
    let cuda = folder.join("libtorch_cuda.so");
    if !cuda.exists() {
        return Err(format!("{} is missing: this torch computes on the processor only", cuda.display()));
    }
    opened.push(open(&cuda).map_err(|error| format!("libtorch's CUDA half cannot be loaded: {error}"))?);
    Ok(opened)
}

/// Why a library cannot be loaded. The error itself says only that it cannot.
pub(super) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The folder of the libtorch that is loaded.
pub fn libtorch_folder() -> Option<PathBuf> {
    folder_of("libtorch_cpu.so", &fs::read_to_string("/proc/self/maps").ok()?)
}

/// The folder of a loaded library, from `/proc/self/maps`.
fn folder_of(library: &str, maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..)).map(Path::new);
    let mut found = paths.filter(|path| path.file_name().is_some_and(|name| name == library));
    found.next()?.parent().map(Path::to_path_buf)
}

/// NVIDIA's run-time compiler (NVRTC) and linker, in the order in which they need one another: beside libtorch in its
/// archives, in packages of their own where pip installed it. Packages of another CUDA may have been left behind.
fn compilers(torch_libraries: &Path, cuda_major: u32) -> Vec<PathBuf> {
    let packages = torch_libraries.join("../../nvidia");
    let list = |folder: &Path| -> Vec<PathBuf> {
        let mut inside: Vec<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        inside.sort();
        inside
    };
    let folders = list(&packages).into_iter().map(|package| package.join("lib"));
    let files: Vec<PathBuf> =
        folders.chain([torch_libraries.to_path_buf()]).flat_map(|folder| list(&folder)).collect();
    let named = |library: &str| {
        let wanted = format!("{library}.so.{cuda_major}");
        let is_wanted = |path: &&PathBuf| {
            let version = path.file_name().and_then(|name| name.to_str()?.strip_prefix(&wanted));
            version.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        files.iter().rev().find(is_wanted).cloned()
    };
    ["libnvJitLink", "libnvrtc-builtins", "libnvrtc"].into_iter().filter_map(named).collect()
}

/// Allocates on a CUDA device for the first time, which shows whether it works.
pub fn start_device_memory(index: usize, bytes: i64) -> Result<()> {
    let index = device_index(index)?;
    // SAFETY: plain call without pointers.
    checked("start_device_memory", unsafe { luthier_start_device_memory(index, bytes) })
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

/// All bytes of a CUDA device; `None` for a processor.
pub fn gpu_memory(device: Device) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    Ok(Some(device_memory(index)?.total.max(0) as u64))
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
pub(super) fn device_index(index: usize) -> Result<c_int> {
    let index =
        i8::try_from(index).map_err(|_| EngineError::Device(format!("there is no device cuda:{index}")))?;
    Ok(c_int::from(index))
}

/// CUDA devices, below 64, that have something in common. What a device was prepared with before it came in is seen by
/// whoever finds it there.
#[derive(Debug)]
pub(super) struct DeviceSet(AtomicU64);

impl DeviceSet {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn insert(&self, device: Device) {
        self.0.fetch_or(Self::bit(device), Ordering::Release);
    }

    pub fn contains(&self, device: Device) -> bool {
        self.0.load(Ordering::Acquire) & Self::bit(device) != 0
    }

    fn bit(device: Device) -> u64 {
        let Device::Cuda(index) = device else { return 0 };
        u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_found_beside_libtorch_and_in_packages() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let found = || -> Vec<String> {
            let paths = compilers(&root.path().join("torch/lib"), 13);
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        file("torch/lib/libtorch_cpu.so");
        assert_eq!(found(), [] as [&str; 0]);
        for name in
            ["libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.0", "libnvJitLink.so.13"]
        {
            file(&format!("nvidia/cu13/lib/{name}"));
        }
        assert_eq!(found(), ["libnvJitLink.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]);
        for (package, name) in [("cuda_nvrtc", "libnvrtc.so.12"), ("cuda_nvrtc", "libnvrtc-builtins.so.12.8")]
        {
            file(&format!("nvidia/{package}/lib/{name}"));
        }
        assert_eq!(found(), ["libnvJitLink.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]);
        file("torch/lib/libnvrtc.so.12");
        let older = compilers(&root.path().join("torch/lib"), 12);
        assert_eq!(older.last(), Some(&root.path().join("torch/lib/libnvrtc.so.12")));
        assert_eq!(compilers(&root.path().join("torch/lib"), 1), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_set_of_devices_holds_those_that_were_put_in() {
        let set = DeviceSet::new();
        for device in [Device::Cuda(1), Device::Cuda(63), Device::Cuda(64), Device::Cpu] {
            set.insert(device);
        }
        let held = (0..70).filter(|&index| set.contains(Device::Cuda(index)));
        assert_eq!(held.collect::<Vec<_>>(), [1, 63]);
        assert!(!set.contains(Device::Cpu));
    }

    #[test]
    fn a_loaded_library_is_found_in_the_map_of_memory() {
        let maps = "7f00-7f01 r-xp 00000000 00:1f 12   /usr/lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 00:1f 34   /opt/my torch/lib/libtorch_cpu.so\n\
                    7f04-7f05 rw-p 00000000 00:00 0\n";
        assert_eq!(folder_of("libtorch_cpu.so", maps), Some(PathBuf::from("/opt/my torch/lib")));
        assert_eq!(folder_of("libtorch_cuda.so", maps), None);
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").exists());
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_named() {
        // SAFETY: there is no such library.
        let missing = unsafe { libloading::Library::new("libluthier-missing.so") };
        let text = reason(&missing.unwrap_err());
        assert!(text.contains("libluthier-missing.so"), "{text}");
    }

    #[test]
    fn without_its_cuda_half_libtorch_says_what_is_missing() {
        let folder = libtorch_folder().unwrap();
        match open_cuda(13) {
            Ok(libraries) => assert!(!libraries.is_empty() && folder.join("libtorch_cuda.so").exists()),
            Err(reason) => assert!(reason.contains("libtorch"), "{reason}"),
        }
    }
}
