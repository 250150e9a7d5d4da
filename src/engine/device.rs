//! The device of tensors, and libtorch's process-wide settings.

use std::path::Path;
use std::sync::OnceLock;

use luthier_core::config::{self, Config};
use luthier_core::plan::{is_half, wanted_gpu};
use tch::{Cuda, Device, Kind};

use crate::csrc;
use crate::error::{EngineError, Result};

fn driver_present() -> bool {
    Path::new("/dev/nvidiactl").exists() || Path::new("/dev/dxg").exists()
}

/// Loads libtorch's CUDA half if the machine has a driver. The linker drops libraries without references to
/// them, and without this one libtorch has no CUDA. Must be called before the first tensor is created; later
/// calls do nothing.
pub fn load_cuda() {
    static CUDA: OnceLock<Option<libloading::Library>> = OnceLock::new();
    CUDA.get_or_init(|| if driver_present() { csrc::open_cuda() } else { None });
}

/// The device that a configuration gives. `auto` is the first CUDA device, or the CPU without one.
pub fn choose(device: config::Device) -> Result<Device> {
    load_cuda();
    let Some(index) = wanted_gpu(device) else { return Ok(Device::Cpu) };
    let count = if driver_present() { Cuda::device_count() } else { 0 };
    if i64::try_from(index).is_ok_and(|index| index < count) {
        Ok(Device::Cuda(index))
    } else if device == config::Device::Auto {
        Ok(Device::Cpu)
    } else {
        Err(EngineError::Device(format!(
            "cuda:{index} is requested (model.device or --device), but this machine has {count} usable CUDA devices"
        )))
    }
}

/// Applies a configuration's settings to the process. Both settings concern a GPU; a CPU is always
/// deterministic and exact.
pub fn prepare(config: &Config, device: Device) -> Result<()> {
    if device.is_cuda() {
        csrc::set_deterministic(config.train.deterministic)?;
        csrc::set_tf32(config.model.tf32)?;
    }
    Ok(())
}

/// The type of activations and frozen weights.
pub fn compute_kind(dtype: config::Dtype, device: Device) -> Kind {
    if is_half(dtype, device.is_cuda()) { Kind::BFloat16 } else { Kind::Float }
}
