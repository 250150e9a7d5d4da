//! NVIDIA GPUs: what the driver says of them, and which one a process computes on.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device as NvmlDevice, Nvml};
use serde::Serialize;

use crate::text;
use crate::units;

/// Values of `CUDA_VISIBLE_DEVICES` with which people, Slurm and containers hide all GPUs.
const HIDDEN: [&str; 3] = ["", "-1", "NoDevFiles"];
/// Lowest compute capability with bf16 arithmetic of its own.
const BF16: (i32, i32) = (8, 0);

/// One GPU, or one slice (MIG) of a GPU, at one moment. Values that the driver does not report (of slices, for
/// instance) are `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// NVML's index: all GPUs of the machine in PCI order, independent of `CUDA_VISIBLE_DEVICES`.
    pub index: u32,
    /// The number of the slice on its GPU.
    pub slice: Option<u32>,
    pub name: String,
    /// `GPU-…` or `MIG-…`, in the form used in `CUDA_VISIBLE_DEVICES`.
    pub uuid: Option<String>,
    /// Major and minor compute capability.
    pub capability: Option<(i32, i32)>,
    /// In bytes.
    pub memory_total: u64,
    /// In bytes, over all processes.
    pub memory_used: u64,
    /// Share of the last sampling period in which a kernel ran, in percent.
    pub load_percent: Option<u32>,
    /// In degrees Celsius.
    pub temperature: Option<u32>,
    /// In watts.
    pub power: Option<f64>,
    /// In watts.
    pub power_limit: Option<f64>,
    /// The processes that compute on it.
    pub processes: Vec<GpuProcess>,
}

impl Gpu {
    /// Bytes that no process uses.
    pub fn memory_free(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_used)
    }

    /// Whether it computes in bf16 itself; libtorch does so slowly on older ones.
    pub fn has_bf16(&self) -> bool {
        self.capability.is_none_or(|capability| capability >= BF16)
    }

    /// Who else uses it, such as `2 other processes use 3.1 GiB of it`; `None` if no one does.
    pub fn others(&self, own: u32) -> Option<String> {
        let others = || self.processes.iter().filter(|process| process.pid != own);
        let count = others().count();
        let bytes: u64 = others().filter_map(|process| process.bytes).sum();
        let (who, verb) = if count == 1 {
            ("another process".to_owned(), "uses")
        } else {
            (format!("{count} other processes"), "use")
        };
        match (count, bytes) {
            (0, _) => None,
            // Inside a container the driver does not say how much.
            (_, 0) => Some(format!("{who} {verb} it")),
            _ => Some(format!("{who} {verb} {} of it", units::bytes(bytes))),
        }
    }
}

impl fmt::Display for Gpu {
    /// Such as `0: NVIDIA H200`, and `1 slice 2: …`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slice {
            Some(slice) => write!(formatter, "{} slice {slice}: {}", self.index, self.name),
            None => write!(formatter, "{}: {}", self.index, self.name),
        }
    }
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GpuProcess {
    pub pid: u32,
    /// Bytes of the GPU's memory that it uses, if the driver says so.
    pub bytes: Option<u64>,
}

/// A version of CUDA, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    pub major: u32,
    pub minor: u32,
}

impl CudaVersion {
    /// From a text such as `13.0`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split('.').map(str::parse::<u32>);
        let (Some(Ok(major)), minor) = (numbers.next(), numbers.next()) else { return None };
        Some(Self { major, minor: minor.and_then(Result::ok).unwrap_or(0) })
    }

    /// The CUDA of the libtorch whose libraries are in a folder, from the version file beside it: archives have
    /// `build-version` (`2.11.0+cu130`), a torch installed by pip `version.py` (`cuda: Optional[str] = '13.0'`). `None`
    /// for one that computes on the processor only, also if that is because CUDA's own libraries are not installed.
    pub fn of_libtorch(libraries: &Path) -> Option<Self> {
        let root = libraries.parent()?;
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        let version = Self::parse_file(&read("build-version").or_else(|| read("version.py"))?)?;
        let packages = fs::read_dir(root.parent()?.join("nvidia")).into_iter().flatten().flatten();
        let mut folders = packages.map(|package| package.path().join("lib")).chain([libraries.to_path_buf()]);
        let has_products = folders.any(|folder| {
            let mut files = fs::read_dir(folder).into_iter().flatten().flatten();
            files.any(|file| file.file_name().to_string_lossy().starts_with("libcublas.so"))
        });
        (has_products && libraries.join("libtorch_cuda.so").exists()).then_some(version)
    }

    fn parse_file(text: &str) -> Option<Self> {
        if let Some((_, digits)) = text.lines().next().and_then(|line| line.split_once("+cu")) {
            let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
            let (major, minor) = digits.split_at(digits.len().checked_sub(1)?);
            return Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? });
        }
        let line = text.lines().find(|line| line.starts_with("cuda:") || line.starts_with("cuda ="))?;
        Self::parse(line.split_once('=')?.1.trim().trim_matches(['\'', '"']))
    }

    /// The oldest driver that runs programs of this version (CUDA's release notes, table "minor version
    /// compatibility").
    pub fn oldest_driver(self) -> &'static str {
        match self.major {
            0..=11 => "450",
            12 => "525",
            _ => "580",
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The measurements of the NVIDIA driver. Keeps the library open, because opening takes tens of milliseconds.
pub struct Gpus {
    library: Nvml,
}

impl Gpus {
    /// Opens NVML; `None` on a machine without an NVIDIA driver.
    pub fn open() -> Option<Self> {
        Some(Self { library: Nvml::init().ok()? })
    }

    /// The driver's version, e.g. `570.86.15`.
    pub fn driver_version(&self) -> Option<String> {
        self.library.sys_driver_version().ok().map(|version| text::clean_line(&version).into_owned())
    }

    /// The newest CUDA whose programs the driver runs.
    pub fn cuda_version(&self) -> Option<CudaVersion> {
        let version = u32::try_from(self.library.sys_cuda_driver_version().ok()?).ok()?;
        // 12040 is 12.4.
        Some(CudaVersion { major: version / 1000, minor: version % 1000 / 10 })
    }

    /// All GPUs now, and in place of a GPU that is divided its slices, without those that fail to answer (fallen off
    /// the bus).
    pub fn read(&self) -> Vec<Gpu> {
        let count = self.library.device_count().unwrap_or(0);
        (0..count).flat_map(|index| self.read_one(index)).collect()
    }

    fn read_one(&self, index: u32) -> Vec<Gpu> {
        let Ok(device) = self.library.device_by_index(index) else { return Vec::new() };
        if !device.mig_mode().is_ok_and(|mode| mode.current == 1) {
            return read_device(&device, index, None).into_iter().collect();
        }
        // As a whole, a GPU that is divided computes nothing.
        let slices = (0..device.mig_device_count().unwrap_or(0)).filter_map(|slice| {
            let part = device.mig_device_by_index(slice).ok()?;
            let found = read_device(&part, index, Some(slice))?;
            let capability = found.capability.or_else(|| capability(&device));
            Some(Gpu { capability, ..found })
        });
        slices.collect()
    }
}

fn capability(device: &NvmlDevice) -> Option<(i32, i32)> {
    device.cuda_compute_capability().ok().map(|version| (version.major, version.minor))
}

fn read_device(device: &NvmlDevice, index: u32, slice: Option<u32>) -> Option<Gpu> {
    let (memory_total, memory_used) = match device.memory_info() {
        Ok(memory) => (memory.total, memory.used),
        // It has no memory of its own.
        Err(NvmlError::NotSupported) => {
            let memory = super::memory();
            (memory.total, memory.total.saturating_sub(memory.available))
        }
        Err(_) => return None,
    };
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let processes = device.running_compute_processes().unwrap_or_default().into_iter();
    Some(Gpu {
        index,
        slice,
        name: device.name().map(|name| text::clean_line(&name).into_owned()).unwrap_or_default(),
        uuid: device.uuid().ok(),
        capability: capability(device),
        memory_total,
        memory_used,
        load_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
        power: device.power_usage().ok().map(watts),
        power_limit: device.enforced_power_limit().ok().map(watts),
        processes: processes
            .map(|process| GpuProcess {
                pid: process.pid,
                bytes: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            })
            .collect(),
    })
}

/// What decides on which device a process computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// Whether this process is given an NVIDIA driver. Inside a container without GPUs it is not, even if the machine
    /// has one.
    pub has_driver: bool,
    /// Whether its library (NVML) answers.
    pub answers: bool,
    pub driver_version: Option<String>,
    /// The newest CUDA whose programs the driver runs.
    pub driver_cuda: Option<CudaVersion>,
    /// In PCI order.
    pub gpus: Vec<Gpu>,
    /// The value of `CUDA_VISIBLE_DEVICES`.
    pub visible: Option<String>,
    /// The CUDA that libtorch was built with; `None` for one that has only the processor.
    pub torch_cuda: Option<CudaVersion>,
}

impl Sighting {
    /// What there is on this machine, for a libtorch of some CUDA.
    pub fn here(torch_cuda: Option<CudaVersion>) -> Self {
        // The second is the driver's library in Windows' Subsystem for Linux, whose device every maker's GPU has.
        let files = ["/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"];
        let has_driver = files.iter().any(|file| Path::new(file).exists());
        let library = if has_driver { Gpus::open() } else { None };
        let library = library.as_ref();
        Self {
            has_driver,
            answers: library.is_some(),
            driver_version: library.and_then(Gpus::driver_version),
            driver_cuda: library.and_then(Gpus::cuda_version),
            gpus: library.map(Gpus::read).unwrap_or_default(),
            visible: env::var("CUDA_VISIBLE_DEVICES").ok(),
            torch_cuda,
        }
    }

    /// The GPUs that `CUDA_VISIBLE_DEVICES` leaves, in its order: indices in PCI order, or beginnings of UUIDs. As
    /// CUDA does with `CUDA_DEVICE_ORDER=PCI_BUS_ID`, it is read up to the first entry that names no GPU, and naming one
    /// twice leaves none (CUDA C++ Programming Guide, "CUDA environment variables").
    pub fn visible_gpus(&self) -> Vec<&Gpu> {
        let Some(visible) = &self.visible else { return self.gpus.iter().collect() };
        let mut found: Vec<&Gpu> = Vec::new();
        for entry in visible.split(',').map(str::trim) {
            let is_uuid = entry.starts_with("GPU-") || entry.starts_with("MIG-");
            let mut named = self.gpus.iter().filter(|gpu| match &gpu.uuid {
                Some(uuid) if is_uuid => uuid.starts_with(entry),
                // Of a divided GPU, the first slice.
                _ => entry.parse() == Ok(gpu.index) && gpu.slice.unwrap_or(0) == 0,
            });
            let (Some(gpu), None) = (named.next(), named.next()) else { break };
            if found.contains(&gpu) {
                return Vec::new();
            }
            found.push(gpu);
        }
        found
    }

    /// Whether somebody hides all GPUs from this process.
    pub fn hides_all(&self) -> bool {
        self.visible.as_ref().is_some_and(|visible| HIDDEN.contains(&visible.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gpu, server};

    fn visible(setting: &str) -> Vec<u32> {
        let seen = Sighting { visible: Some(setting.to_owned()), ..server() };
        seen.visible_gpus().iter().map(|gpu| gpu.index).collect()
    }

    #[test]
    fn visible_gpus_are_those_that_cuda_would_list_in_pci_order() {
        assert_eq!(server().visible_gpus().len(), 3);
        for (setting, expected) in [
            ("2,0", &[2, 0][..]),
            (" 1 , 2", &[1, 2]),
            ("GPU-ac03,0", &[2, 0]),
            ("GPU-aa", &[0]),
            // Two begin so.
            ("GPU-a", &[]),
            ("1,9,2", &[1]),
            ("1,-1,2", &[1]),
            ("", &[]),
            ("-1", &[]),
            ("1,1", &[]),
            ("none", &[]),
        ] {
            assert_eq!(visible(setting), expected, "{setting:?}");
        }
    }

    #[test]
    fn other_processes_on_a_gpu_are_named() {
        let used = |bytes: &[(u32, Option<u64>)]| {
            let processes = bytes.iter().map(|&(pid, bytes)| GpuProcess { pid, bytes }).collect();
            Gpu { processes, ..gpu(0, "GPU-a") }.others(7)
        };
        assert_eq!(used(&[(7, Some(5))]), None);
        assert_eq!(used(&[(7, Some(5)), (8, None)]).unwrap(), "another process uses it");
        assert_eq!(
            used(&[(8, Some(1 << 30)), (9, Some(2 << 30))]).unwrap(),
            "2 other processes use 3.00 GiB of it"
        );
    }

    #[test]
    fn the_cuda_of_a_libtorch_is_that_of_its_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = || CudaVersion::of_libtorch(&root.path().join("torch/lib"));
        write(
            "torch/version.py",
            "from typing import Optional\n__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n",
        );
        assert_eq!(found(), None);
        write("torch/lib/libtorch_cuda.so", "");
        assert_eq!(found(), None);
        write("nvidia/cu13/lib/libcublas.so.13", "");
        assert_eq!(found(), CudaVersion::parse("13.0"));
        write("torch/build-version", "2.11.0+cu128\n");
        assert_eq!(found(), CudaVersion::parse("12.8"));
        write("torch/build-version", "2.11.0+cpu\n");
        assert_eq!(found(), None);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(CudaVersion::parse("12.8"), Some(CudaVersion { major: 12, minor: 8 }));
        assert_eq!(CudaVersion::parse("13"), Some(CudaVersion { major: 13, minor: 0 }));
        assert_eq!(CudaVersion::parse("None"), None);
    }
}
