//! Tells the workbench where the engine's libtorch is, so that it can refuse a run that its CUDA cannot do before the
//! engine starts.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let linked = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    // `make setup` rewrites it whenever it moves the link.
    println!("cargo:rerun-if-changed={}", linked.with_extension("path").display());
    let torch = linked.canonicalize().unwrap_or_default();
    println!("cargo:rustc-env=LUTHIER_LIBTORCH={}", torch.join("lib").display());
}
