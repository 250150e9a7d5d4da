//! Findings about the machine: processor, memory, GPUs, disk, cache.

use std::fs;
use std::path::{Path, PathBuf};

use luthier_core::machine::{self, Gpus};
use luthier_core::text::clean_line;
use luthier_core::units;

use super::{Finding, Standing};
use crate::cli::sample;
use crate::paths::cache_folder;

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
    let Some(driver) = Gpus::open() else {
        return if Path::new("/proc/driver/nvidia/version").exists() {
            Finding::short(
                "gpu",
                Standing::Warning,
                "the NVIDIA driver is loaded, but its library libnvidia-ml.so.1 cannot be used",
                "in a container, start it with the GPU and its libraries (docker run --gpus all); else reinstall the driver",
            )
        } else {
            Finding::short(
                "gpu",
                Standing::Note,
                "none with an NVIDIA driver; runs use the processor",
                "where there is a GPU, install its driver and run `make setup` again",
            )
        };
    };
    let names: Vec<_> = driver
        .read()
        .iter()
        .map(|gpu| {
            let free = gpu.memory_total.saturating_sub(gpu.memory_used);
            format!(
                "{}: {}, {} free of {}",
                gpu.index,
                gpu.name,
                units::bytes(free),
                units::bytes(gpu.memory_total)
            )
        })
        .collect();
    let version = driver.driver_version().unwrap_or_else(|| "of unknown version".to_owned());
    if names.is_empty() {
        Finding::short(
            "gpu",
            Standing::Warning,
            format!("NVIDIA driver {version}, but no GPU answers"),
            "look at `nvidia-smi`; a GPU that fell off the bus comes back with a restart of the machine",
        )
    } else {
        Finding::good("gpu", format!("{} (driver {version})", names.join("; ")))
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
