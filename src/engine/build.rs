//! Finds libtorch through the link that `make setup` leaves, and compiles the C++ seam.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(linked) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        panic!("LIBTORCH is not set: run `make setup`, which links .libtorch and lets cargo know of it");
    };
    // The link may be moved after the build; the binary must go on finding what it was built against.
    let torch = match linked.canonicalize() {
        Ok(torch) if torch.join("lib/libtorch_cpu.so").exists() => torch,
        _ => panic!("there is no libtorch in {}: run `make setup`", linked.display()),
    };
    println!("cargo:rerun-if-changed={}", torch.join("build-version").display());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(true)
        .extra_warnings(false)
        .opt_level(3)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // errno of the mathematical functions is never read; without it loops over them stay scalar.
        .flag("-fno-math-errno")
        .flag("-isystem")
        .flag(torch.join("include"))
        .flag("-isystem")
        .flag(torch.join("include/torch/csrc/api/include"))
        .file("csrc/shim.cpp")
        .compile("luthier_shim");
    let lib = torch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // libtorch_cpu finds the CUDA runtime through its own RPATH at run time; the linker would not.
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");
}
