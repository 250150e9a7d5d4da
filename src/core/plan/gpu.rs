//! Which GPU a process computes on, and why none.

use crate::config::Device;
use crate::machine::{CudaVersion, Gpu, Sighting};
use crate::text;
use crate::units;

/// Lowest compute capability that a libtorch of [`NEW_CUDA`] or newer has kernels for.
const NEW_KERNELS: (i32, i32) = (7, 5);
/// The first CUDA whose libtorch has no kernels for older GPUs.
const NEW_CUDA: CudaVersion = CudaVersion { major: 12, minor: 8 };

/// Where a process computes.
#[derive(Debug, Clone, PartialEq)]
pub enum GpuUse {
    /// On the processor.
    None {
        /// Why not on a GPU, where the machine has one.
        why: Option<String>,
    },
    /// On this GPU.
    On(Box<Gpu>),
}

/// Why a GPU cannot be used. The messages say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoGpu {
    #[error(
        "cuda:{index} is asked for (model.device or --device), but this machine has no NVIDIA driver; ask for auto or cpu \
         (`luthier doctor` lists what there is)"
    )]
    NoDriver { index: usize },
    #[error(
        "an NVIDIA driver is loaded, but its library libnvidia-ml.so.1 does not answer. In a container, start it with \
         the GPU and its libraries (docker run --gpus all), else reinstall the driver; to compute on the processor, set \
         model.device = \"cpu\""
    )]
    NoAnswer,
    #[error(
        "the NVIDIA driver sees no GPU that answers; look at `nvidia-smi` (one that fell off the bus comes back with a \
         restart of the machine, and one in MIG mode needs an instance), or set model.device = \"cpu\""
    )]
    NoneAnswers,
    #[error(
        "CUDA_VISIBLE_DEVICES={visible:?} names no GPU of this machine; correct it (`nvidia-smi -L` lists them), leave it \
         empty to compute on the processor, or set model.device = \"cpu\""
    )]
    NothingVisible { visible: String },
    #[error(
        "cuda:{index} is asked for (model.device or --device), but {}; the first is cuda:0 (`luthier doctor` lists \
         them)",
        seen(*count, visible.as_deref())
    )]
    NotThere {
        index: usize,
        /// How many are visible.
        count: usize,
        /// `CUDA_VISIBLE_DEVICES`.
        visible: Option<String>,
    },
    #[error(
        "this machine has a GPU, but its torch computes on the processor only; run `make setup` and `make build`, which \
         take a torch with CUDA that the driver runs, or set model.device = \"cpu\""
    )]
    TorchWithoutCuda,
    #[error(
        "the NVIDIA driver {driver} is too old for this torch, whose CUDA {torch} needs driver {} or newer; install a \
         newer driver, or run `make setup` and `make build`, which take a torch that this one runs; or set model.device \
         = \"cpu\"",
        torch.oldest_driver()
    )]
    OldDriver {
        driver: String,
        /// The CUDA that libtorch was built with.
        torch: CudaVersion,
    },
    #[error(
        "the GPU {gpu} is older (compute capability {}.{}) than this torch, whose CUDA {torch} begins with {}.{}; set \
         LUTHIER_TORCH_BUILD=cu126 and run `make setup` and `make build`, choose another GPU with model.device, or set it \
         to \"cpu\"",
        capability.0, capability.1, NEW_KERNELS.0, NEW_KERNELS.1
    )]
    OldGpu { gpu: String, capability: (i32, i32), torch: CudaVersion },
}

fn seen(count: usize, visible: Option<&str>) -> String {
    let gpus = units::counted(count, "GPU is visible", "GPUs are visible");
    match visible {
        Some(visible) => format!("{gpus} with CUDA_VISIBLE_DEVICES={:?}", text::clean_line(visible)),
        None => gpus,
    }
}

/// The GPU that `model.device` asks for, counted from 0 among the visible ones; for `auto` the first.
///
/// # Errors
///
/// Where a GPU is asked for that is not there. And for `auto`, where there is one that cannot be used: a run on the
/// processor instead would take days, and should be somebody's decision.
pub fn use_of(device: Device, seen: &Sighting) -> Result<GpuUse, NoGpu> {
    let index = match device {
        Device::Cpu => return Ok(GpuUse::None { why: None }),
        Device::Auto => None,
        Device::Cuda(index) => Some(index),
    };
    match index {
        None if !seen.has_driver => return Ok(GpuUse::None { why: None }),
        None if seen.hides_all() => {
            let setting = seen.visible.as_deref().unwrap_or_default();
            let why = format!("CUDA_VISIBLE_DEVICES={:?} leaves no GPU", text::clean_line(setting));
            return Ok(GpuUse::None { why: Some(why) });
        }
        Some(index) if !seen.has_driver => return Err(NoGpu::NoDriver { index }),
        _ if !seen.answers => return Err(NoGpu::NoAnswer),
        _ => {}
    }
    let visible = seen.visible_gpus();
    let of = |gpu: &Gpu| usable(gpu, seen);
    match (index, visible.first()) {
        (Some(index), _) => match visible.get(index) {
            Some(gpu) => of(gpu),
            None => Err(NoGpu::NotThere { index, count: visible.len(), visible: seen.visible.clone() }),
        },
        // Beside a good one there may be one for the screen only.
        (None, Some(first)) => visible.iter().find_map(|gpu| of(gpu).ok()).map_or_else(|| of(first), Ok),
        (None, None) => Err(match &seen.visible {
            Some(setting) => NoGpu::NothingVisible { visible: text::clean_line(setting).into_owned() },
            None => NoGpu::NoneAnswers,
        }),
    }
}

/// A GPU, if this libtorch and this driver can use it.
fn usable(gpu: &Gpu, seen: &Sighting) -> Result<GpuUse, NoGpu> {
    let Some(torch) = seen.torch_cuda else { return Err(NoGpu::TorchWithoutCuda) };
    if seen.driver_cuda.is_some_and(|driver| driver.major < torch.major) {
        let driver = seen.driver_version.clone().unwrap_or_else(|| "of unknown version".to_owned());
        return Err(NoGpu::OldDriver { driver, torch });
    }
    match gpu.capability {
        Some(capability) if torch >= NEW_CUDA && capability < NEW_KERNELS => {
            Err(NoGpu::OldGpu { gpu: gpu.to_string(), capability, torch })
        }
        _ => Ok(GpuUse::On(Box::new(gpu.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gpu, server};

    #[test]
    fn auto_takes_the_first_visible_gpu_and_the_processor_only_without_a_driver() {
        let on = |device, seen: &Sighting| match use_of(device, seen).unwrap() {
            GpuUse::On(gpu) => Some(gpu.index),
            GpuUse::None { .. } => None,
        };
        let hidden = Sighting { visible: Some(String::new()), ..server() };
        let second = Sighting { visible: Some("1,2".to_owned()), ..server() };
        let bare = Sighting { has_driver: false, answers: false, gpus: Vec::new(), ..server() };
        let wedged = Sighting { answers: false, ..hidden.clone() };
        let screen = Gpu { capability: Some((6, 1)), ..gpu(0, "GPU-s") };
        let beside = Sighting { gpus: vec![screen, gpu(1, "GPU-b")], ..server() };
        assert_eq!(on(Device::Auto, &beside), Some(1));
        assert_eq!(on(Device::Auto, &wedged), None);
        assert_eq!(on(Device::Auto, &server()), Some(0));
        assert_eq!(on(Device::Auto, &second), Some(1));
        assert_eq!(on(Device::Cuda(1), &second), Some(2));
        assert_eq!(on(Device::Cpu, &server()), None);
        assert_eq!(use_of(Device::Auto, &bare), Ok(GpuUse::None { why: None }));
        let why = Some("CUDA_VISIBLE_DEVICES=\"\" leaves no GPU".to_owned());
        assert_eq!(use_of(Device::Auto, &hidden), Ok(GpuUse::None { why }));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_an_error_with_a_remedy() {
        let bare = Sighting { has_driver: false, answers: false, gpus: Vec::new(), ..server() };
        let seeing = |setting: &str| Sighting { visible: Some(setting.to_owned()), ..server() };
        let hidden = seeing("0");
        let old = CudaVersion { major: 12, minor: 4 };
        let old = Sighting { driver_cuda: Some(old), driver_version: Some("550.54.15".into()), ..server() };
        let small = Gpu { capability: Some((6, 1)), name: "Tesla P40".to_owned(), ..gpu(0, "GPU-p") };
        for (device, seen, expected) in [
            (Device::Cuda(0), bare, "has no NVIDIA driver"),
            (Device::Auto, Sighting { answers: false, ..server() }, "docker run --gpus all"),
            (Device::Auto, Sighting { gpus: Vec::new(), ..server() }, "nvidia-smi"),
            (Device::Cuda(9), server(), "3 GPUs are visible; the first is cuda:0"),
            (Device::Cuda(1), hidden, "1 GPU is visible with CUDA_VISIBLE_DEVICES=\"0\""),
            (Device::Auto, Sighting { torch_cuda: None, ..server() }, "make setup"),
            (
                Device::Auto,
                old,
                "driver 550.54.15 is too old for this torch, whose CUDA 13.0 needs driver 580",
            ),
            (Device::Auto, seeing("7"), "CUDA_VISIBLE_DEVICES=\"7\" names no GPU"),
            (Device::Auto, seeing("1,1"), "CUDA_VISIBLE_DEVICES=\"1,1\" names no GPU"),
            (Device::Cuda(0), seeing(""), "0 GPUs are visible with CUDA_VISIBLE_DEVICES=\"\""),
            (
                Device::Auto,
                Sighting { gpus: vec![small.clone()], ..server() },
                "0: Tesla P40 is older (compute capability 6.1)",
            ),
            (
                Device::Cuda(0),
                Sighting { gpus: vec![small.clone(), gpu(1, "GPU-b")], ..server() },
                "LUTHIER_TORCH_BUILD=cu126",
            ),
        ] {
            let error = use_of(device, &seen).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_divided_gpu_is_its_slices() {
        let slice = |number, uuid: &str| Gpu { slice: Some(number), memory_total: 18 << 30, ..gpu(0, uuid) };
        let gpus = vec![slice(0, "MIG-1"), slice(1, "MIG-2"), gpu(1, "GPU-ab02")];
        let named = |setting: Option<&str>, device| {
            let seen = Sighting { gpus: gpus.clone(), visible: setting.map(ToOwned::to_owned), ..server() };
            match use_of(device, &seen) {
                Ok(GpuUse::On(gpu)) => gpu.uuid.unwrap(),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(named(None, Device::Auto), "MIG-1");
        assert_eq!(named(None, Device::Cuda(1)), "MIG-2");
        assert_eq!(named(Some("MIG-2"), Device::Auto), "MIG-2");
        assert_eq!(named(Some("0"), Device::Cuda(0)), "MIG-1");
        assert_eq!(named(Some("1,MIG-2"), Device::Cuda(0)), "GPU-ab02");
    }
}
