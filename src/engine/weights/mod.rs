//! Weights in and out: mapped files, block formats, safetensors; linear layers, the one place where weights meet
//! activations.

mod dequantise;
mod linear;
mod loader;
pub mod safetensors;

pub use linear::{Linear, Site, Weight};
pub use loader::Loader;
