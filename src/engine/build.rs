//! Finds libtorch through the link that `make setup` leaves, and compiles the C++ seam.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    // The Rust half of the interface is in the same folder, but is no reason to compile the C++ half.
    let folders =
        ["csrc", "csrc/cuda"].map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let sources = folders.into_iter().flatten().map(|entry| entry.path());
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|kind| ["cpp", "h", "cu"].map(Some).contains(&kind.to_str()))
    };
    for source in sources.filter(is_source) {
        println!("cargo:rerun-if-changed={}", source.display());
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(linked) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        panic!("LIBTORCH is not set: run `make setup`, which links .libtorch and lets cargo know of it");
    };
    // The link may change after the build; the binary must still find the libtorch that it was built against.
    let torch = match linked.canonicalize() {
        Ok(torch) if torch.join("lib/libtorch_cpu.so").exists() => torch,
        _ => panic!("there is no libtorch in {}: run `make setup`", linked.display()),
    };
    // Archives of libtorch have the first file, a torch installed by pip the second. Cargo treats a watched
    // file that does not exist as changed and would compile the C++ code at every build.
    for version in ["build-version", "version.py"].map(|name| torch.join(name)) {
        if version.exists() {
            println!("cargo:rerun-if-changed={}", version.display());
        }
    }
    // `make setup` rewrites it whenever it moves the link.
    let moved = linked.with_extension("path");
    if moved.exists() {
        println!("cargo:rerun-if-changed={}", moved.display());
    }
    let sources = ["shim", "launch", "fused", "profile", "signals"].map(|name| format!("csrc/{name}.cpp"));
    seam(&torch).files(sources).compile("luthier_shim");
    // Decoded weights equal those of bitsandbytes bit for bit only if products are rounded before additions.
    seam(&torch).flag("-ffp-contract=off").file("csrc/quantised.cpp").compile("luthier_quantised");
    // Only tests refer to it. Its products are rounded like those that CUDA is told to round.
    compiler().flag("-ffp-contract=off").file("csrc/cuda/emulation.cpp").compile("luthier_emulation");
    // The same kernels for several instruction sets; the program chooses at run time.
    let x86: &[(&str, &[&str])] = &[
        ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
        ("avx512", &["-march=x86-64-v4", "-mprefer-vector-width=512"]),
        ("avx512_bf16", &["-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"]),
    ];
    let others = if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|name| name == "x86_64") { x86 } else { &[] };
    for (name, flags) in [&[("base", &[] as &[&str])], others].concat() {
        let mut build = compiler();
        for flag in flags {
            build.flag(flag);
        }
        build.file("csrc/kernels.cpp").compile(&format!("luthier_kernels_{name}"));
    }
    let lib = torch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    link_openmp(&lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // libtorch_cpu finds the CUDA runtime through its own RPATH at run time; the linker would not.
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");
}

/// Links libtorch's own OpenMP runtime: a second one would be a second thread pool on the same cores.
fn link_openmp(lib: &Path) {
    let names = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let own = names.filter(|name| name.starts_with("libgomp") || name.starts_with("libiomp5")).min();
    match own {
        Some(name) => println!("cargo:rustc-link-lib=dylib:+verbatim={name}"),
        None => println!("cargo:rustc-link-lib=dylib=gomp"),
    }
}

fn seam(torch: &Path) -> cc::Build {
    let mut build = compiler();
    build
        // Without it `at::parallel_for`, which consists of inline functions, uses one thread.
        .flag("-fopenmp")
        .warnings(true)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-isystem")
        .flag(torch.join("include"))
        .flag("-isystem")
        .flag(torch.join("include/torch/csrc/api/include"));
    build
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .opt_level(3)
        .debug(false)
        // Nothing reads errno; with it, loops over mathematical functions would not be vectorised.
        .flag("-fno-math-errno")
        .flag("-ffp-contract=fast")
        // Vector types wider than the baseline's registers are never passed to a function call.
        .flag("-Wno-psabi");
    build
}
