//! The kernels of `csrc/cuda`: NVIDIA's run-time compiler (NVRTC), which comes with libtorch, compiles them for the GPU at
//! hand, and the driver loads them. Where one cannot be had, libtorch's operations do the same in more steps.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use luthier_core::runs::FailureClass;
use luthier_core::text::clean_line;
use luthier_core::{files, hash, machine};
use tch::Device;

use super::device::reason;
use super::{checked, luthier_use_driver, luthier_use_kernel};
use crate::error::{EngineError, Result};

/// Largest compiled program that is read from the cache.
const LARGEST: u64 = 16 << 20;

/// Lowest compute capability that the kernels are written for: the first with bf16.
const LOWEST: (c_int, c_int) = (8, 0);

/// `off` does without the kernels, to compare.
const SWITCH: &str = "LUTHIER_KERNELS";

/// What every program begins with.
const SHARED: &str = include_str!("cuda/device.h");

/// Kernels that are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Gated activation and rotary embedding.
    Elementwise,
    /// RMS norm.
    Norm,
    CrossEntropy,
    /// Matrices in NF4.
    Nf4,
    /// Matrices in llama.cpp's blocks.
    Blocks,
}

/// For each program, a bit for each CUDA device on which it was seen to work.
static WORKS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

impl Program {
    /// Its file in `csrc/cuda`, without the ending, and what that contains.
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Elementwise => ("elementwise", include_str!("cuda/elementwise.cu")),
            Self::Norm => ("norm", include_str!("cuda/norm.cu")),
            Self::CrossEntropy => ("cross_entropy", include_str!("cuda/cross_entropy.cu")),
            Self::Nf4 => ("nf4", include_str!("cuda/nf4.cu")),
            Self::Blocks => ("blocks", include_str!("cuda/blocks.cu")),
        }
    }

    fn source(self) -> String {
        [SHARED, self.file().1].join("\n")
    }

    /// The names of its kernels.
    fn kernels(self) -> impl Iterator<Item = &'static str> {
        let starts = self.file().1.split("\nKERNEL ").skip(1);
        starts.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name)
    }
}

/// Whether a program may be used on a device.
pub fn has_program(program: Program, device: Device) -> bool {
    WORKS[program as usize].load(Ordering::Relaxed) & bit(device) != 0
}

fn bit(device: Device) -> u64 {
    let Device::Cuda(index) = device else { return 0 };
    u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
}

/// Compiles and loads a program for a CUDA device, and lets it be used if `agrees`, which compares its kernels with their
/// definitions, says so. Compiled programs are kept in the folder `cache`.
pub fn try_program(
    program: Program,
    device: Device,
    cache: Option<&Path>,
    agrees: impl FnOnce() -> Result<bool>,
) {
    let (name, _) = program.file();
    if bit(device) == 0 || has_program(program, device) {
        return;
    }
    if std::env::var_os(SWITCH).is_some_and(|value| value == "off") {
        return do_without(format!("the kernels {name} are switched off by {SWITCH}"));
    }
    let unavailable = |reason: String| do_without(format!("the kernels {name} are not available: {reason}"));
    let kept = match load(program, cache) {
        Ok(kept) => kept,
        Err(reason) => return unavailable(reason),
    };
    let mark = match kept.as_deref().map(Mark::set).transpose() {
        Ok(mark) => mark,
        Err(reason) => return unavailable(reason),
    };
    match agrees() {
        Ok(true) => {
            WORKS[program as usize].fetch_or(bit(device), Ordering::Relaxed);
        }
        Ok(false) => do_without(format!("the kernels {name} are wrong on this GPU")),
        Err(error) => {
            // A kernel that fails leaves a GPU on which nothing works in this process: the next one goes without it.
            if error.class() != FailureClass::Oom {
                std::mem::forget(mark);
            }
            unavailable(error.to_string());
        }
    }
}

/// A file beside a compiled program that says which process tries it. If that process has ended and the file is there, the
/// trial has ended the process.
#[derive(Debug)]
struct Mark(PathBuf);

impl Mark {
    /// The error says that an earlier trial failed.
    fn set(kept: &Path) -> std::result::Result<Self, String> {
        let (folder, name) = (kept.parent().unwrap_or(kept), kept.with_extension("tried-by."));
        let start = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let other = entry.file_name().to_string_lossy().into_owned();
            let process = other.strip_prefix(&start).and_then(|process| process.parse::<u32>().ok());
            if process.is_some_and(|process| machine::process(process).is_none()) {
                let path = entry.path();
                return Err(format!(
                    "they ended an earlier process; remove {} to try them once more",
                    clean_line(&path.display().to_string())
                ));
            }
        }
        let path = folder.join(format!("{start}{}", std::process::id()));
        // Without the file the trial is only less safe.
        if let Err(error) = std::fs::write(&path, "") {
            tracing::info!("{} cannot be written: {error}", path.display());
        }
        Ok(Self(path))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What this process computes in more steps than on other GPUs.
static MISSING: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Remembers and logs that something that makes a GPU faster cannot be used.
pub fn do_without(what: String) {
    tracing::warn!("{what}; going on without");
    MISSING.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

/// What was given to [`do_without`].
pub fn done_without() -> Vec<String> {
    MISSING.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Compiles a program, or reads it from the cache, and loads it. Returns where it is kept.
fn load(program: Program, cache: Option<&Path>) -> std::result::Result<Option<PathBuf>, String> {
    let (driver, compiler) = (Driver::find()?, Compiler::find()?);
    let capability = driver.capability()?;
    if capability < LOWEST {
        return Err(format!("this GPU's compute capability {}.{} is below 8.0", capability.0, capability.1));
    }
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let (name, source) = (program.file().0, program.source());
    let key = hash::sha256(format!("{source}\0{architecture}\0{:?}", compiler.version()?));
    let kept = cache.map(|folder| folder.join(format!("{name}-{architecture}-{}.cubin", &key[..16])));
    let from_cache = kept.as_ref().and_then(|path| files::read(path, LARGEST).ok());
    // A file that is damaged is made again.
    if from_cache.is_some_and(|compiled| driver.load(program, &compiled).is_ok()) {
        return Ok(kept);
    }
    let compiled = compiler.compile(name, &source, &architecture)?;
    driver.load(program, &compiled)?;
    if let Some(path) = &kept {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = made.and_then(|()| files::replace(path, &compiled, files::Access::Private)) {
            tracing::info!("{} cannot be written: {error}", path.display());
        }
    }
    Ok(kept)
}

/// A function of a library that is loaded already, with the C signature `F`.
fn function<F: Copy>(library: &Library, name: &CStr) -> std::result::Result<F, String> {
    // SAFETY: the callers give the signature that NVIDIA's headers (cuda.h, nvrtc.h) declare for the name. The libraries
    // are never unloaded.
    let symbol: std::result::Result<Symbol<F>, _> = unsafe { library.get(name.to_bytes_with_nul()) };
    symbol.map(|symbol| *symbol).map_err(|_| format!("{} is not loaded", name.to_string_lossy()))
}

type Handle = *mut c_void;

/// The driver's functions, from `cuda.h`.
struct Driver {
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    context: unsafe extern "C" fn(*mut Handle) -> c_int,
    device: unsafe extern "C" fn(*mut c_int) -> c_int,
    load: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    set_context: SetContext,
    launch: Launch,
}

/// `cuCtxSetCurrent`
pub(super) type SetContext = unsafe extern "C" fn(Handle) -> c_int;

/// `cuLaunchKernel`
pub(super) type Launch = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

const DRIVER: &str = "libcuda.so.1";

/// Attributes of `CUdevice_attribute`.
const CAPABILITY: [c_int; 2] = [75, 76];

fn status(what: &str, status: c_int) -> std::result::Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("{what} gave {status}")) }
}

impl Driver {
    fn find() -> std::result::Result<Self, String> {
        // CUDA has loaded it, but for itself alone.
        // SAFETY: the driver's own library, whose initialisers CUDA has run already.
        let library = unsafe { Library::open(Some(DRIVER), RTLD_NOW) };
        let library = std::mem::ManuallyDrop::new(library.map_err(|error| reason(&error))?);
        Ok(Self {
            attribute: function(&library, c"cuDeviceGetAttribute")?,
            context: function(&library, c"cuCtxGetCurrent")?,
            device: function(&library, c"cuCtxGetDevice")?,
            load: function(&library, c"cuModuleLoadData")?,
            function: function(&library, c"cuModuleGetFunction")?,
            set_context: function(&library, c"cuCtxSetCurrent")?,
            launch: function(&library, c"cuLaunchKernel")?,
        })
    }

    /// The compute capability of the current context's device.
    fn capability(&self) -> std::result::Result<(c_int, c_int), String> {
        let (mut device, mut found) = (0, [0; 2]);
        // SAFETY: one number written on success.
        status("cuCtxGetDevice", unsafe { (self.device)(&raw mut device) })?;
        for (number, attribute) in found.iter_mut().zip(CAPABILITY) {
            // SAFETY: one number written on success.
            status("cuDeviceGetAttribute", unsafe { (self.attribute)(number, attribute, device) })?;
        }
        Ok(found.into())
    }

    /// Loads the kernels of a compiled program into the current context.
    fn load(&self, program: Program, compiled: &[u8]) -> std::result::Result<(), String> {
        let (mut context, mut module) = (null_mut(), null_mut());
        // SAFETY: one pointer written on success.
        status("cuCtxGetCurrent", unsafe { (self.context)(&raw mut context) })?;
        // SAFETY: the driver checks the image, which says its own length, and copies it.
        status("cuModuleLoadData", unsafe { (self.load)(&raw mut module, compiled.as_ptr().cast()) })?;
        let told = |error: EngineError| error.to_string();
        // SAFETY: functions of the driver, which stays loaded, and a context that lives as long as the process.
        checked("kernels", unsafe { luthier_use_driver(self.launch, Some(self.set_context), context) })
            .map_err(told)?;
        for name in program.kernels() {
            let (name, mut kernel) = (CString::new(name).map_err(|error| error.to_string())?, null_mut());
            // SAFETY: a live module, which is never unloaded; one pointer written on success.
            let found = unsafe { (self.function)(&raw mut kernel, module, name.as_ptr()) };
            status(&format!("cuModuleGetFunction of {}", name.to_string_lossy()), found)?;
            // SAFETY: a kernel that stays loaded, with the name that the shim knows it by.
            checked("kernels", unsafe { luthier_use_kernel(name.as_ptr(), kernel) }).map_err(told)?;
        }
        Ok(())
    }
}

/// The functions of NVRTC, from `nvrtc.h`.
struct Compiler {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    binary: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Handle) -> c_int,
}

impl Compiler {
    fn find() -> std::result::Result<Self, String> {
        let library = Library::this();
        Ok(Self {
            version: function(&library, c"nvrtcVersion")?,
            create: function(&library, c"nvrtcCreateProgram")?,
            compile: function(&library, c"nvrtcCompileProgram")?,
            log_size: function(&library, c"nvrtcGetProgramLogSize")?,
            log: function(&library, c"nvrtcGetProgramLog")?,
            size: function(&library, c"nvrtcGetCUBINSize")?,
            binary: function(&library, c"nvrtcGetCUBIN")?,
            destroy: function(&library, c"nvrtcDestroyProgram")?,
        })
    }

    /// Major and minor.
    fn version(&self) -> std::result::Result<(c_int, c_int), String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two numbers written on success.
        status("nvrtcVersion", unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    /// Compiles a program for an architecture, such as `sm_90`.
    fn compile(&self, name: &str, source: &str, architecture: &str) -> std::result::Result<Vec<u8>, String> {
        let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let (source, name) = (text(source)?, text(name)?);
        let options = [text(&format!("--gpu-architecture={architecture}"))?, text("--std=c++17")?];
        let options = options.each_ref().map(|option| option.as_ptr());
        let mut program = null_mut();
        // SAFETY: two strings that live through the call, no headers, one pointer written on success.
        let made =
            unsafe { (self.create)(&raw mut program, source.as_ptr(), name.as_ptr(), 0, null(), null()) };
        status("nvrtcCreateProgram", made)?;
        // SAFETY: a live program and two strings.
        let compiled = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = if compiled == 0 {
            bytes_of("nvrtcGetCUBIN", program, self.size, self.binary)
        } else {
            let log = bytes_of("nvrtcGetProgramLog", program, self.log_size, self.log).unwrap_or_default();
            Err(format!("NVRTC gave {compiled}: {}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
        };
        // SAFETY: made above, and not used any more.
        unsafe { (self.destroy)(&raw mut program) };
        result
    }
}

/// What two functions of NVRTC give of a program: the number of bytes, and the bytes.
fn bytes_of(
    what: &str,
    program: Handle,
    size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
) -> std::result::Result<Vec<u8>, String> {
    let mut length = 0;
    // SAFETY: a live program; one number written on success.
    status(what, unsafe { size(program, &raw mut length) })?;
    let mut bytes = vec![0_u8; length];
    // SAFETY: NVRTC writes exactly the number of bytes that it gave.
    status(what, unsafe { get(program, bytes.as_mut_ptr().cast()) })?;
    Ok(bytes)
}

/// Lets this process's tests run the kernels on the processor.
///
/// # Panics
///
/// If a kernel is not emulated.
#[cfg(test)]
pub fn emulate_kernels() {
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
        // SAFETY: a function of this program with the signature of the driver's.
        checked("kernels", unsafe { luthier_use_driver(luthier_emulated_launch, None, null_mut()) }).unwrap();
        for program in PROGRAMS {
            for name in program.kernels() {
                let name = CString::new(name).unwrap();
                // SAFETY: a string that lives through the call.
                let kernel = unsafe { luthier_emulated_kernel(name.as_ptr()) };
                assert!(!kernel.is_null(), "{name:?}");
                // SAFETY: an emulated kernel, which the emulated launch takes.
                checked("kernels", unsafe { luthier_use_kernel(name.as_ptr(), kernel) }).unwrap();
            }
        }
    });
}

#[cfg(test)]
pub const PROGRAMS: [Program; 5] =
    [Program::Elementwise, Program::Norm, Program::CrossEntropy, Program::Nf4, Program::Blocks];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_in_the_list_is_in_its_program() {
        let list = include_str!("cuda/list.h");
        let listed: Vec<&str> = list.lines().filter_map(|line| line.trim().strip_prefix("X(")).collect();
        let found: Vec<String> = PROGRAMS
            .into_iter()
            .flat_map(|program| program.kernels().map(move |name| format!("{}, {name})", program.file().0)))
            .collect();
        let listed: Vec<String> =
            listed.iter().map(|line| line.trim_end_matches(['\\', ' ']).to_owned()).collect();
        assert_eq!(found.len(), listed.len());
        for name in found {
            assert!(listed.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_trial_that_ended_its_process_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("norm-sm_90-0123.cubin");
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        drop(Mark::set(&kept).unwrap());
        assert_eq!(files(), 0);
        // Another process that still tries it.
        std::fs::write(folder.path().join("norm-sm_90-0123.tried-by.1"), "").unwrap();
        drop(Mark::set(&kept).unwrap());
        // No process has this number.
        let left = folder.path().join(format!("norm-sm_90-0123.tried-by.{}", u32::MAX));
        std::fs::write(&left, "").unwrap();
        let error = Mark::set(&kept).unwrap_err();
        assert!(error.contains("remove") && error.contains("tried-by"), "{error}");
        assert!(Mark::set(&folder.path().join("nf4-sm_90-0123.cubin")).is_ok(), "another program");
        std::fs::remove_file(left).unwrap();
        assert!(Mark::set(&kept).is_ok());
    }

    #[test]
    fn without_a_driver_no_program_is_used() {
        try_program(Program::Norm, Device::Cpu, None, || panic!("there is nothing to try"));
        assert!(!has_program(Program::Norm, Device::Cpu));
        if Driver::find().is_err() {
            let error = load(Program::Norm, None).unwrap_err();
            assert!(error.contains(DRIVER), "{error}");
        }
    }
}
