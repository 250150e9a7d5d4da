//! NVIDIA's driver and its run-time compiler (NVRTC), as far as our kernels need them. Both are loaded with CUDA.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};

use super::device::reason;

pub(super) type Handle = *mut c_void;

/// What the driver or the compiler says.
type Result<T> = std::result::Result<T, String>;

/// A function of a library that is loaded already, with the C signature `F`.
fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F> {
    // SAFETY: the callers give the signature that NVIDIA's headers (cuda.h, nvrtc.h) declare for the name. The libraries
    // are never unloaded.
    let symbol: std::result::Result<Symbol<F>, _> = unsafe { library.get(name.to_bytes_with_nul()) };
    symbol.map(|symbol| *symbol).map_err(|_| format!("{} is not loaded", name.to_string_lossy()))
}

/// Functions of the driver, from `cuda.h`.
pub(super) struct Driver {
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    retain_context: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    load: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    get_context: GetContext,
    set_context: SetContext,
    launch: Launch,
}

/// `cuCtxGetCurrent`
pub(super) type GetContext = unsafe extern "C" fn(*mut Handle) -> c_int;

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

/// `luthier_launcher` of `csrc/launch.cpp`: what launches kernels on a device.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Launcher {
    pub launch: Launch,
    /// These three are used on CUDA only.
    pub get_context: Option<GetContext>,
    pub set_context: Option<SetContext>,
    pub context: Handle,
}

pub(super) const DRIVER: &str = "libcuda.so.1";

/// Attributes of `CUdevice_attribute`: major and minor compute capability.
const CAPABILITY: [c_int; 2] = [75, 76];

fn status(what: &str, status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(format!("{what} gave {status}")) }
}

impl Driver {
    pub fn find() -> Result<Self> {
        // CUDA has loaded it, but for itself alone.
        // SAFETY: the driver's own library. Its initialisers only register it: cuInit, which CUDA has called, starts it.
        let library = unsafe { Library::open(Some(DRIVER), RTLD_NOW) };
        let library = std::mem::ManuallyDrop::new(library.map_err(|error| reason(&error))?);
        Ok(Self {
            device: function(&library, c"cuDeviceGet")?,
            attribute: function(&library, c"cuDeviceGetAttribute")?,
            retain_context: function(&library, c"cuDevicePrimaryCtxRetain")?,
            load: function(&library, c"cuModuleLoadData")?,
            function: function(&library, c"cuModuleGetFunction")?,
            get_context: function(&library, c"cuCtxGetCurrent")?,
            set_context: function(&library, c"cuCtxSetCurrent")?,
            launch: function(&library, c"cuLaunchKernel")?,
        })
    }

    /// A device by its index, which is the same in the driver and in libtorch.
    pub fn gpu(&self, index: usize) -> Result<DriverGpu<'_>> {
        let index = c_int::try_from(index).map_err(|error| error.to_string())?;
        let mut device = 0;
        // SAFETY: one number written on success.
        status("cuDeviceGet", unsafe { (self.device)(&raw mut device, index) })?;
        Ok(DriverGpu { driver: self, device })
    }
}

/// A GPU as the driver knows it.
pub(super) struct DriverGpu<'a> {
    driver: &'a Driver,
    device: c_int,
}

impl DriverGpu<'_> {
    /// Its compute capability, major and minor.
    pub fn capability(&self) -> Result<(c_int, c_int)> {
        let mut found = [0; 2];
        for (number, attribute) in found.iter_mut().zip(CAPABILITY) {
            // SAFETY: one number written on success.
            let given = unsafe { (self.driver.attribute)(number, attribute, self.device) };
            status("cuDeviceGetAttribute", given)?;
        }
        Ok(found.into())
    }

    /// What launches kernels on it: in the context that libtorch uses, which lives as long as the process.
    pub fn launcher(&self) -> Result<Launcher> {
        let (driver, mut context) = (self.driver, null_mut());
        // SAFETY: one pointer written on success. The context is never released.
        let given = unsafe { (driver.retain_context)(&raw mut context, self.device) };
        status("cuDevicePrimaryCtxRetain", given)?;
        Ok(Launcher {
            launch: driver.launch,
            get_context: Some(driver.get_context),
            set_context: Some(driver.set_context),
            context,
        })
    }

    /// The kernels with these names of a compiled program, which stay loaded.
    pub fn load(&self, launcher: Launcher, compiled: &[u8], names: &[&str]) -> Result<Vec<Handle>> {
        let (driver, mut before) = (self.driver, null_mut());
        // SAFETY: one pointer written on success.
        status("cuCtxGetCurrent", unsafe { (driver.get_context)(&raw mut before) })?;
        // SAFETY: a live context, and below the one that was current before.
        status("cuCtxSetCurrent", unsafe { (driver.set_context)(launcher.context) })?;
        let kernels = self.load_here(compiled, names);
        // SAFETY: as above.
        status("cuCtxSetCurrent", unsafe { (driver.set_context)(before) })?;
        kernels
    }

    fn load_here(&self, compiled: &[u8], names: &[&str]) -> Result<Vec<Handle>> {
        let mut module = null_mut();
        // SAFETY: an image that NVRTC made, as its hash says; the driver copies it.
        status("cuModuleLoadData", unsafe { (self.driver.load)(&raw mut module, compiled.as_ptr().cast()) })?;
        let find = |name: &&str| {
            let (text, mut kernel) = (CString::new(*name).map_err(|error| error.to_string())?, null_mut());
            // SAFETY: a live module, which is never unloaded; one pointer written on success.
            let found = unsafe { (self.driver.function)(&raw mut kernel, module, text.as_ptr()) };
            status(&format!("cuModuleGetFunction of {name}"), found)?;
            Ok(kernel)
        };
        names.iter().map(find).collect()
    }
}

/// Functions of NVRTC, from `nvrtc.h`.
pub(super) struct Compiler {
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
    pub fn find() -> Result<Self> {
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
    pub fn version(&self) -> Result<(c_int, c_int)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two numbers written on success.
        status("nvrtcVersion", unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    /// Compiles a program for an architecture, such as `sm_90`.
    pub fn compile(&self, name: &str, source: &str, architecture: &str) -> Result<Vec<u8>> {
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
) -> Result<Vec<u8>> {
    let mut length = 0;
    // SAFETY: a live program; one number written on success.
    status(what, unsafe { size(program, &raw mut length) })?;
    let mut bytes = vec![0_u8; length];
    // SAFETY: NVRTC writes exactly the number of bytes that it gave.
    status(what, unsafe { get(program, bytes.as_mut_ptr().cast()) })?;
    Ok(bytes)
}
