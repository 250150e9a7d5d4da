//! Weights in and out: mapped files, block formats, NF4, safetensors; linear layers, the one place where weights meet
//! activations.

mod dequantise;
mod linear;
mod loader;
pub mod nf4;
mod quantised;
pub mod safetensors;

pub use linear::{Dense, Linear, Site, Weight};
pub use loader::Loader;
pub use quantised::{Nf4, Stored};
