//! Where a run computes, and what the forecast and the engine must agree on about it.

use super::PlanError;
use super::gpu::{GpuUse, use_of};
use crate::config::{Config, Device, Dtype};
use crate::machine::{self, Gpu, Sighting};

/// Most logits that training and evaluation hold at once: large enough for efficient products, small enough to stay out of
/// the way. A GPU needs more rows than a processor to be busy: with 128,256 tokens in the vocabulary 130 on a processor,
/// 261 on a GPU of less than 18 GiB, 523 on one of less than 36, 1,046 on a larger one, where they take 1.3 GiB in bf16.
/// GPUs are made with more or less memory than that: the driver and CUDA differ about its size by a few percent.
pub fn logits_at_once(gpu_memory: Option<u64>) -> u64 {
    const GIB: u64 = 1 << 30;
    match gpu_memory {
        None => 1 << 24,
        Some(bytes) if bytes < 18 * GIB => 1 << 25,
        Some(bytes) if bytes < 36 * GIB => 1 << 26,
        Some(_) => 1 << 27,
    }
}

/// Bytes that an element takes in addition to its result while a GPU decodes it: its value in f32, and the numbers it is
/// looked up by.
pub const DECODING: u64 = 8;

/// Where a run would compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether on a GPU.
    pub gpu: bool,
    /// Whether it computes in bf16 itself, faster than in f32.
    pub bf16: bool,
    /// Whether our own kernels for CUDA are used in bf16. Before a trial, assumed wherever
    /// there is bf16.
    pub kernels: bool,
    /// Bytes that are free there.
    pub available: u64,
    /// All bytes of the GPU.
    pub gpu_memory: u64,
    /// Other processes on the GPU.
    pub others: usize,
}

impl Place {
    /// Where a machine would run what the configuration asks for. The driver is asked only where a GPU may be used.
    ///
    /// # Errors
    ///
    /// [`PlanError::Gpu`] if it asks for a GPU that cannot be used.
    pub fn of(config: &Config, seen: impl FnOnce() -> Sighting) -> Result<Self, PlanError> {
        let on_cpu = Self::on_processor(machine::memory().available);
        if config.model.device == Device::Cpu {
            return Ok(on_cpu);
        }
        Ok(match use_of(config.model.device, &seen())? {
            GpuUse::On(gpu) => Self::on(&gpu),
            GpuUse::None { .. } => on_cpu,
        })
    }

    /// On this machine's processor, with so many bytes.
    pub fn on_processor(available: u64) -> Self {
        Self { bf16: machine::multiplies_in_bf16(), available, ..Self::default() }
    }

    /// On a GPU, with the memory that no process uses.
    pub fn on(gpu: &Gpu) -> Self {
        Self {
            gpu: true,
            bf16: gpu.has_bf16(),
            kernels: gpu.has_bf16(),
            available: gpu.memory_free(),
            gpu_memory: gpu.memory_total,
            others: gpu.processes.iter().filter(|process| process.pid != std::process::id()).count(),
        }
    }

    /// Memory that the libraries take by themselves.
    pub fn runtime_bytes(self) -> u64 {
        if self.gpu { 700 << 20 } else { 250 << 20 }
    }
}

/// Whether weights and activations are bf16, not f32: by `auto` where that is faster.
pub fn is_half(dtype: Dtype, place: Place) -> bool {
    match dtype {
        Dtype::F32 => false,
        Dtype::Bf16 => true,
        Dtype::Auto => place.bf16,
    }
}
