//! The device of tensors, and libtorch's process-wide settings.

use std::collections::BTreeSet;
use std::env;
use std::sync::{Mutex, OnceLock, PoisonError};

use luthier_core::config::{self, Config};
use luthier_core::machine::{self, CudaVersion, Gpu, Sighting};
use luthier_core::plan::{self, GpuUse, Place, use_of};
use tch::{Cuda, Device, Kind};

use crate::csrc;
use crate::error::{EngineError, Result};
use crate::models;

/// Names the GPU that a process was started for, as `model.device` counts it.
const BOUND: &str = "LUTHIER_GPU";

/// Bytes of the allocation that shows whether a GPU works.
const FIRST_ALLOCATION: i64 = 1 << 20;

/// What the driver says of this machine; asked once.
fn sighting() -> &'static Sighting {
    static SEEN: OnceLock<Sighting> = OnceLock::new();
    SEEN.get_or_init(|| Sighting::here(torch_cuda()))
}

/// The CUDA of the libtorch that is loaded.
fn torch_cuda() -> Option<CudaVersion> {
    CudaVersion::of_libtorch(&csrc::libtorch_folder()?)
}

/// Variables with which a process sees only the GPU that a configuration asks for. CUDA counts GPUs in an order of its
/// own and takes memory on each that it sees; the driver, Luthier and `nvidia-smi` count in PCI order. Empty if there is
/// nothing to set: on a processor, or if [`choose`] will refuse.
pub fn variables(device: config::Device) -> Vec<(&'static str, String)> {
    if device == config::Device::Cpu || bound().is_some() {
        return Vec::new();
    }
    let Ok(GpuUse::On(gpu)) = use_of(device, sighting()) else { return Vec::new() };
    let asked = index_of(&gpu, sighting());
    let (Some(index), Some(uuid)) = (asked, gpu.uuid) else { return Vec::new() };
    vec![
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        ("CUDA_VISIBLE_DEVICES", uuid),
        (BOUND, index.to_string()),
    ]
}

/// The GPU's number in `model.device`, if this process sees that one only.
fn bound() -> Option<usize> {
    env::var(BOUND).ok()?.parse().ok()
}

/// The number of a GPU among the visible ones.
fn index_of(gpu: &Gpu, seen: &Sighting) -> Option<usize> {
    seen.visible_gpus().iter().position(|visible| *visible == gpu)
}

/// The device that a configuration gives. `auto` is the first visible CUDA device that can be used, or the CPU on a machine
/// without a driver.
pub fn choose(device: config::Device) -> Result<Device> {
    // cuDNN makes a plan for each new length, which takes most of a second; other kernels need none.
    csrc::leave_out_cudnn_attention()?;
    let asked = match (bound(), device) {
        (_, config::Device::Cpu) => return Ok(Device::Cpu),
        // The one GPU that is visible to this process.
        (Some(index), config::Device::Cuda(asked)) if index == asked => config::Device::Auto,
        _ => device,
    };
    match use_of(asked, sighting())? {
        GpuUse::None { why } => {
            if let Some(why) = why {
                tracing::info!("computing on the processor: {why}");
            }
            Ok(Device::Cpu)
        }
        GpuUse::On(gpu) => start(index_of(&gpu, sighting()).unwrap_or(0)).map_err(|error| match error {
            EngineError::Device(reason) => {
                EngineError::Device(format!("the GPU {gpu} cannot be used: {reason}"))
            }
            other => other,
        }),
    }
}

/// Starts CUDA on a device. Must be called before the first tensor is created; later calls do little.
fn start(index: usize) -> Result<Device> {
    static CUDA: OnceLock<std::result::Result<csrc::CudaLibraries, String>> = OnceLock::new();
    static TRIED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    let major = torch_cuda().map_or(0, |cuda| cuda.major);
    let opened = CUDA.get_or_init(|| csrc::open_cuda(major));
    opened.as_ref().map_err(|reason| EngineError::Device(reason.clone()))?;
    let count = Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index >= count) {
        return Err(EngineError::Device(format!("CUDA sees {count} devices")));
    }
    csrc::start_device_memory(index, FIRST_ALLOCATION)?;
    let device = Device::Cuda(index);
    // Whoever comes during a trial waits for its end.
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    // Without bf16 there is nothing to try.
    if tried.insert(index) && compute_kind(config::Dtype::Auto, device) == Kind::BFloat16 {
        models::try_flash_attention(device)?;
        models::try_fused_operations(device)?;
    }
    Ok(device)
}

/// The devices of this machine, in the words of `model.device`: the processor, then each visible GPU.
pub fn all() -> Vec<config::Device> {
    let count = sighting().visible_gpus().len();
    std::iter::once(config::Device::Cpu).chain((0..count).map(config::Device::Cuda)).collect()
}

/// The GPU of a device, as the driver describes it now.
pub fn gpu(device: Device) -> Option<Gpu> {
    let Device::Cuda(index) = device else { return None };
    let seen = Sighting::here(torch_cuda());
    seen.visible_gpus().get(index).map(|&gpu| gpu.clone())
}

/// Where a run on this device computes, with the memory that is free for it: what no process uses, and what this one
/// already holds for the run.
pub fn place(device: Device) -> Place {
    let Device::Cuda(index) = device else {
        let own = machine::own_process().map_or(0, |process| process.own_bytes);
        return Place::on_processor(machine::memory().available.saturating_add(own));
    };
    let place = gpu(device).map_or(Place { gpu: true, ..Place::default() }, |gpu| Place::on(&gpu));
    let has = |program| csrc::has_program(program, device);
    let kernels = has(csrc::Program::Elementwise) && has(csrc::Program::CrossEntropy);
    let place = Place { kernels, ..place };
    match csrc::device_memory(index) {
        Ok(memory) => Place {
            available: memory.free.saturating_add(memory.reserved).max(0) as u64,
            gpu_memory: memory.total.max(0) as u64,
            ..place
        },
        Err(_) => place,
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
    let bf16 = match device {
        Device::Cuda(index) => sighting().visible_gpus().get(index).is_none_or(|gpu| gpu.has_bf16()),
        _ => machine::multiplies_in_bf16(),
    };
    let place = Place { gpu: device.is_cuda(), bf16, ..Place::default() };
    if plan::is_half(dtype, place) { Kind::BFloat16 } else { Kind::Float }
}

/// Name of a device, as `model.device` counts: `cpu`, `cuda:0`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{}", bound().unwrap_or(index)),
        _ => "cpu".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cudnn_attention_is_off_once_a_device_is_chosen() {
        assert_eq!(choose(config::Device::Cpu).unwrap(), Device::Cpu);
        assert!(!csrc::has_cudnn_attention().unwrap());
    }

    #[test]
    fn memory_that_this_process_holds_is_free_for_its_run() {
        let held = vec![1_u8; 1 << 30];
        let (place, machine) = (place(Device::Cpu), machine::memory());
        assert!(!place.gpu && place.available > machine.available + (held.len() as u64 / 2));
        assert_eq!(name(Device::Cpu), "cpu");
    }
}
