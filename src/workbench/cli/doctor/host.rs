//! Findings about the machine: processor, memory, GPUs, disk, cache.

use std::fs;
use std::path::{Path, PathBuf};

use luthier_core::config::Device;
use luthier_core::machine::{self, Gpu, Sighting};
use luthier_core::plan::{GpuUse, use_of};
use luthier_core::text::clean_line;
use luthier_core::units;

use super::{Finding, Standing};
use crate::cli::sample;
use crate::project::torch_cuda;
use luthier_core::paths::cache_folder;

/// Less memory than this is too little for the smallest model worth tuning.
const LITTLE_MEMORY: u64 = 2 << 30;

/// Below this, checkpoints soon fill the disk.
const LITTLE_DISK: u64 = 2 << 30;

/// Everything about the machine, seen from a project folder.
pub fn findings(folder: &Path) -> Vec<Finding> {
    vec![cores(), memory(), gpus(), disk(folder), cache()]
}

fn cores() -> Finding {
    Finding::good("processor", units::counted(machine::cores(), "core", "cores"))
}

fn memory() -> Finding {
    let memory = machine::memory();
    let found = format!("{} available of {}", units::bytes(memory.available), units::bytes(memory.total));
    if memory.available < LITTLE_MEMORY {
        Finding::short(
            "memory",
            Standing::Warning,
            found,
            "end other programs, or use a smaller model, batch_size or max_length; `luthier plan` forecasts what a run needs",
        )
    } else {
        Finding::good("memory", found)
    }
}

fn gpus() -> Finding {
    gpu_finding(&Sighting::here(torch_cuda()))
}

/// The GPUs of a machine, and whether runs can use them.
fn gpu_finding(seen: &Sighting) -> Finding {
    if !seen.has_driver {
        return Finding::short(
            "gpu",
            Standing::Note,
            "none with an NVIDIA driver; runs use the processor",
            "where there is a GPU, install its driver and run `make setup` again",
        );
    }
    let described = |gpu: &Gpu| {
        let (free, total) = (units::bytes(gpu.memory_free()), units::bytes(gpu.memory_total));
        let others = gpu.others(std::process::id()).map(|others| format!(" ({others})")).unwrap_or_default();
        format!("{gpu}, {free} free of {total}{others}")
    };
    let names: Vec<String> = seen.gpus.iter().map(described).collect();
    let version = seen.driver_version.as_deref().unwrap_or("of unknown version");
    let visible: Vec<String> = seen.visible_gpus().iter().map(|gpu| gpu.index.to_string()).collect();
    let found = if names.is_empty() {
        format!("NVIDIA driver {version}")
    } else if visible.is_empty() || visible.len() == names.len() {
        format!("{} (driver {version})", names.join("; "))
    } else {
        let visible = visible.join(", ");
        format!("{} (driver {version}); CUDA_VISIBLE_DEVICES leaves {visible}", names.join("; "))
    };
    match use_of(Device::Auto, seen) {
        Ok(GpuUse::On(gpu)) if !gpu.has_bf16() => Finding::short(
            "gpu",
            Standing::Note,
            found,
            format!("{gpu} has no bf16 arithmetic: model.dtype = \"auto\" takes f32 there"),
        ),
        Ok(GpuUse::On(_)) => Finding::good("gpu", found),
        Ok(GpuUse::None { why }) => {
            let why = why.unwrap_or_default();
            Finding::short("gpu", Standing::Note, found, format!("runs use the processor: {why}"))
        }
        Err(problem) => Finding::short("gpu", Standing::Warning, found, problem.to_string()),
    }
}

fn disk(folder: &Path) -> Finding {
    let shown = clean_line(&folder.display().to_string()).into_owned();
    match machine::free_disk_bytes(folder) {
        Ok(free) if free < LITTLE_DISK => Finding::short(
            "disk",
            Standing::Warning,
            format!("{} free at {shown}", units::bytes(free)),
            "free some space, or lower train.keep_checkpoints",
        ),
        Ok(free) => Finding::good("disk", format!("{} free at {shown}", units::bytes(free))),
        Err(error) => Finding::short(
            "disk",
            Standing::Warning,
            format!("{shown} does not report its free space: {error}"),
            "look at `df`",
        ),
    }
}

fn cache() -> Finding {
    let Some(folder) = cache_folder() else {
        return Finding::short(
            "cache",
            Standing::Warning,
            "no home folder is known",
            "set HOME or XDG_CACHE_HOME",
        );
    };
    let shown = clean_line(&folder.display().to_string()).into_owned();
    match sample::cached_model() {
        Some(model) => Finding::good("cache", format!("{shown} holds the sample model {}", name_of(&model))),
        None if is_read_only(&folder) => Finding::short(
            "cache",
            Standing::Warning,
            format!("{shown} cannot be written"),
            "set XDG_CACHE_HOME to a folder of your own",
        ),
        None => Finding::short(
            "cache",
            Standing::Note,
            format!("{shown} does not hold the sample model"),
            "`make setup` fetches it; any other model works without it",
        ),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| clean_line(&name.to_string_lossy()).into_owned()).unwrap_or_default()
}

/// Whether the folder, or the nearest one above it that exists, cannot be written.
fn is_read_only(folder: &Path) -> bool {
    let existing: Option<PathBuf> = folder.ancestors().find(|folder| folder.exists()).map(Path::to_owned);
    existing.is_some_and(|folder| {
        rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_err()
            || fs::metadata(&folder).is_ok_and(|found| !found.is_dir())
    })
}

#[cfg(test)]
mod tests {
    use luthier_core::machine::{CudaVersion, GpuProcess};

    use super::*;

    fn server() -> Sighting {
        let gpu = |index, bytes: u64| Gpu {
            index,
            slice: None,
            name: "NVIDIA H200".to_owned(),
            uuid: Some(format!("GPU-{index}")),
            capability: Some((9, 0)),
            memory_total: 139 << 30,
            memory_used: bytes,
            load_percent: None,
            temperature: None,
            power: None,
            power_limit: None,
            processes: vec![GpuProcess { pid: u32::MAX, bytes: Some(bytes) }; usize::from(bytes > 0)],
        };
        Sighting {
            has_driver: true,
            answers: true,
            driver_version: Some("580.65.06".to_owned()),
            driver_cuda: CudaVersion::parse("13.0"),
            gpus: vec![gpu(0, 100 << 30), gpu(1, 0)],
            visible: None,
            torch_cuda: CudaVersion::parse("13.0"),
        }
    }

    #[test]
    fn gpus_are_listed_with_those_who_use_them() {
        let found = gpu_finding(&server());
        assert_eq!(found.standing, Standing::Good);
        assert_eq!(
            found.found,
            "0: NVIDIA H200, 39.0 GiB free of 139 GiB (another process uses 100 GiB of it); 1: NVIDIA H200, 139 GiB \
             free of 139 GiB (driver 580.65.06)"
        );
        let one = gpu_finding(&Sighting { visible: Some("1".to_owned()), ..server() });
        assert!(one.found.ends_with("; CUDA_VISIBLE_DEVICES leaves 1"), "{}", one.found);
    }

    #[test]
    fn what_keeps_runs_from_the_gpu_is_said_with_its_remedy() {
        let old = CudaVersion::parse("12.2");
        for (seen, standing, remedy) in [
            (Sighting { has_driver: false, ..server() }, Standing::Note, "install its driver"),
            (Sighting { answers: false, gpus: Vec::new(), ..server() }, Standing::Warning, "--gpus all"),
            (Sighting { gpus: Vec::new(), ..server() }, Standing::Warning, "nvidia-smi"),
            (Sighting { torch_cuda: None, ..server() }, Standing::Warning, "make setup"),
            (Sighting { driver_cuda: old, ..server() }, Standing::Warning, "needs driver 580 or newer"),
            (Sighting { visible: Some(String::new()), ..server() }, Standing::Note, "leaves no GPU"),
        ] {
            let found = gpu_finding(&seen);
            assert_eq!(found.standing, standing, "{}", found.found);
            assert!(found.remedy.as_ref().is_some_and(|said| said.contains(remedy)), "{:?}", found.remedy);
        }
    }
}
