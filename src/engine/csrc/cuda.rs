//! The kernels of `csrc/cuda`: NVIDIA's run-time compiler (NVRTC), which comes with libtorch, compiles them for the GPU at
//! hand, and the driver loads them. Where one cannot be had, libtorch's operations do the same in more steps.

use std::ffi::{CString, c_int};
use std::path::{Path, PathBuf};

use luthier_core::{files, hash};
use tch::Device;

use super::device::DeviceSet;
use super::driver::{Compiler, Driver, DriverGpu, Handle, Launcher};
use super::{checked, device_index, luthier_use_kernel, luthier_use_launcher};
use crate::error::EngineError;

/// Largest compiled program that is read from the cache.
const LARGEST: u64 = 16 << 20;

/// Lowest compute capability that the kernels are written for: the first with bf16.
const LOWEST: (c_int, c_int) = (8, 0);

/// What every program begins with.
const SHARED: [&str; 2] = [include_str!("cuda/interface.h"), include_str!("cuda/device.h")];

/// Kernels that are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Gated activation and rotary embedding.
    Elementwise,
    /// RMS norm.
    Norm,
    CrossEntropy,
    /// The update of trained weights that have a working copy.
    AdamW,
    /// Matrices in NF4.
    Nf4,
    /// Matrices in llama.cpp's blocks.
    Blocks,
}

/// For each program, the devices on which it was seen to work.
static WORKS: [DeviceSet; Program::ALL.len()] = [const { DeviceSet::new() }; Program::ALL.len()];

impl Program {
    pub const ALL: [Self; 6] =
        [Self::Elementwise, Self::Norm, Self::CrossEntropy, Self::AdamW, Self::Nf4, Self::Blocks];

    pub fn name(self) -> &'static str {
        self.file().0
    }

    /// Its file in `csrc/cuda`, without the ending, and what that contains.
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Elementwise => ("elementwise", include_str!("cuda/elementwise.cu")),
            Self::Norm => ("norm", include_str!("cuda/norm.cu")),
            Self::CrossEntropy => ("cross_entropy", include_str!("cuda/cross_entropy.cu")),
            Self::AdamW => ("adamw", include_str!("cuda/adamw.cu")),
            Self::Nf4 => ("nf4", include_str!("cuda/nf4.cu")),
            Self::Blocks => ("blocks", include_str!("cuda/blocks.cu")),
        }
    }

    fn source(self) -> String {
        [SHARED[0], SHARED[1], self.file().1].join("\n")
    }

    /// The names of its kernels.
    fn kernels(self) -> impl Iterator<Item = &'static str> {
        let starts = self.file().1.split("\nKERNEL(").skip(1);
        starts.filter_map(|rest| rest.split_once(") ")?.1.split_once('(')).map(|(name, _)| name)
    }
}

/// Whether a program may be used on a device.
pub fn has_program(program: Program, device: Device) -> bool {
    WORKS[program as usize].contains(device)
}

/// Lets a program be used on a device on which it was loaded.
pub fn allow_program(program: Program, device: Device) {
    WORKS[program as usize].insert(device);
}

/// Why a program cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotLoaded {
    /// A library of NVIDIA's is missing or is not the one that it should be.
    Library(String),
    /// The compiler or the driver refuses the program.
    Refused(String),
    /// The kernels are for GPUs with bf16.
    NoBf16,
}

/// Compiles a program for a CUDA device, or reads it from the folder `cache`, and loads it. Returns where it is kept.
pub fn load_program(
    program: Program,
    device: Device,
    cache: Option<&Path>,
) -> Result<Option<PathBuf>, NotLoaded> {
    let (driver, compiler) =
        (Driver::find().map_err(NotLoaded::Library)?, Compiler::find().map_err(NotLoaded::Library)?);
    let Device::Cuda(index) = device else { return Err(NotLoaded::Refused("this is no CUDA device".into())) };
    let gpu = driver.gpu(index).map_err(NotLoaded::Refused)?;
    let capability = gpu.capability().map_err(NotLoaded::Refused)?;
    if capability < LOWEST {
        return Err(NotLoaded::NoBf16);
    }
    load(program, device, cache, (&gpu, capability), &compiler).map_err(NotLoaded::Refused)
}

fn load(
    program: Program,
    device: Device,
    cache: Option<&Path>,
    (gpu, capability): (&DriverGpu, (c_int, c_int)),
    compiler: &Compiler,
) -> Result<Option<PathBuf>, String> {
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let (name, source) = (program.name(), program.source());
    let key = hash::sha256(format!("{source}\0{architecture}\0{:?}", compiler.version()?));
    let kept = cache.map(|folder| folder.join(format!("{name}-{architecture}-{}.cubin", &key[..16])));
    let launcher = gpu.launcher()?;
    let names: Vec<&str> = program.kernels().collect();
    let load = |compiled: &[u8]| -> Result<(), String> {
        let kernels = gpu.load(launcher, compiled, &names)?;
        use_kernels(device, launcher, &names, &kernels).map_err(|error| error.to_string())
    };
    // One that the driver does not take any more is made again.
    if kept.as_deref().and_then(read).is_some_and(|compiled| load(&compiled).is_ok()) {
        return Ok(kept);
    }
    let compiled = compiler.compile(name, &source, &architecture)?;
    load(&compiled)?;
    if let Some(path) = &kept {
        write(path, &compiled);
    }
    Ok(kept)
}

/// Writes a compiled program after its hash: the driver does not survive every damage.
fn write(path: &Path, compiled: &[u8]) {
    let bytes = [hash::sha256(compiled).as_bytes(), compiled].concat();
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = made.and_then(|()| files::replace(path, &bytes, files::Access::Private)) {
        tracing::info!("{} cannot be written: {error}", path.display());
    }
}

/// What [`write`] wrote; `None` if there is none or it is damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    const HASH: usize = 64;
    let mut bytes = files::read(path, LARGEST).ok()?;
    if bytes.len() < HASH {
        return None;
    }
    let compiled = bytes.split_off(HASH);
    (hash::sha256(&compiled).as_bytes() == bytes).then_some(compiled)
}

/// Lets the shim launch kernels on a device.
fn use_kernels(
    device: Device,
    launcher: Launcher,
    names: &[&str],
    kernels: &[Handle],
) -> Result<(), EngineError> {
    let index = match device {
        Device::Cuda(index) => device_index(index)?,
        _ => -1,
    };
    // SAFETY: functions and a context that stay as long as the process.
    checked("kernels", unsafe { luthier_use_launcher(index, launcher) })?;
    for (name, &kernel) in names.iter().zip(kernels) {
        let name = CString::new(*name).map_err(|error| EngineError::torch("kernels", &error.to_string()))?;
        // SAFETY: a kernel that stays loaded, with the name that the shim knows it by.
        checked("kernels", unsafe { luthier_use_kernel(index, name.as_ptr(), kernel) })?;
    }
    Ok(())
}

/// Lets this process's tests run the kernels on the processor.
///
/// # Panics
///
/// If a kernel is not emulated.
#[cfg(test)]
pub fn emulate_kernels() {
    use std::ffi::{c_char, c_uint, c_void};

    unsafe extern "C" {
        fn luthier_emulated_kernel(name: *const c_char) -> Handle;
        fn luthier_emulated_launch(
            function: Handle,
            blocks: c_uint,
            blocks_y: c_uint,
            blocks_z: c_uint,
            threads: c_uint,
            threads_y: c_uint,
            threads_z: c_uint,
            shared_bytes: c_uint,
            stream: Handle,
            arguments: *mut *mut c_void,
            extra: *mut *mut c_void,
        ) -> c_int;
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let launcher = Launcher {
            launch: luthier_emulated_launch,
            get_context: None,
            set_context: None,
            context: std::ptr::null_mut(),
        };
        for program in Program::ALL {
            let names: Vec<&str> = program.kernels().collect();
            let emulated = |name: &&str| {
                let text = CString::new(*name).unwrap();
                // SAFETY: a string that lives through the call.
                let kernel = unsafe { luthier_emulated_kernel(text.as_ptr()) };
                assert!(!kernel.is_null(), "{name}");
                kernel
            };
            let kernels: Vec<Handle> = names.iter().map(emulated).collect();
            use_kernels(Device::Cpu, launcher, &names, &kernels).unwrap();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::driver::DRIVER;
    use super::*;

    #[test]
    fn every_kernel_in_the_list_is_in_its_program() {
        let list = include_str!("cuda/list.h");
        let listed: Vec<&str> = list.lines().filter_map(|line| line.trim().strip_prefix("X(")).collect();
        let found: Vec<String> = Program::ALL
            .into_iter()
            .flat_map(|program| program.kernels().map(move |name| format!("{}, {name})", program.name())))
            .collect();
        let listed: Vec<String> =
            listed.iter().map(|line| line.trim_end_matches(['\\', ' ']).to_owned()).collect();
        assert_eq!(found.len(), listed.len());
        for name in found {
            assert!(listed.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_damaged_program_in_the_cache_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels/norm.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"a program");
        assert_eq!(read(&path).unwrap(), b"a program");
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[1..], &whole[..10], b""] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None);
        }
    }

    #[test]
    fn without_a_driver_no_program_is_used() {
        assert!(!has_program(Program::Norm, Device::Cpu));
        if Driver::find().is_err() {
            let error = load_program(Program::Norm, Device::Cuda(0), None).unwrap_err();
            assert!(matches!(&error, NotLoaded::Library(text) if text.contains(DRIVER)), "{error:?}");
        }
    }
}
