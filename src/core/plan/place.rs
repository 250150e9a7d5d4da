//! Where a run computes, and what the forecast and the engine must agree on about it.

use super::PlanError;
use crate::config::{Config, Device, Dtype};
use crate::machine::{self, Gpus};

/// Most logits that training and evaluation hold at once, in elements: large enough for efficient products, small enough
/// to stay out of the way.
pub const LOGITS_AT_ONCE: u64 = 1 << 24;

/// Bytes that an element takes in addition to its result while a GPU decodes it: its value in f32, and the numbers it is
/// looked up by.
pub const DECODING: u64 = 8;

/// Where a run would compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whether on a GPU.
    pub gpu: bool,
    /// Bytes that are free there.
    pub available: u64,
}

impl Place {
    /// Where this machine would run what the configuration asks for: the GPU of [`wanted_gpu`] or, for `auto` without
    /// one, the processor.
    ///
    /// # Errors
    ///
    /// [`PlanError::NoGpu`] if it names one that is not there.
    pub fn here(config: &Config) -> Result<Self, PlanError> {
        if let Some(index) = wanted_gpu(config.model.device) {
            let gpus = Gpus::open().map(|gpus| gpus.read()).unwrap_or_default();
            let gpu = gpus.iter().find(|gpu| gpu.index as usize == index);
            if let Some(gpu) = gpu {
                let available = gpu.memory_total.saturating_sub(gpu.memory_used);
                return Ok(Self { gpu: true, available });
            }
            if config.model.device != Device::Auto {
                return Err(PlanError::NoGpu { index });
            }
        }
        Ok(Self { gpu: false, available: machine::memory().available })
    }

    /// Memory that the libraries take by themselves.
    pub fn runtime_bytes(self) -> u64 {
        if self.gpu { 700 << 20 } else { 250 << 20 }
    }
}

/// The GPU that `model.device` asks for, counted from 0; for `auto` the first, which need not be there.
pub fn wanted_gpu(device: Device) -> Option<usize> {
    match device {
        Device::Cpu => None,
        Device::Auto => Some(0),
        Device::Cuda(index) => Some(index),
    }
}

/// Whether weights and activations are bf16, not f32: by `auto` on a GPU.
pub fn is_half(dtype: Dtype, gpu: bool) -> bool {
    match dtype {
        Dtype::F32 => false,
        Dtype::Bf16 => true,
        Dtype::Auto => gpu,
    }
}
