//! Weights in and out: mapped files, block formats, NF4, safetensors; matrices in the forms in which they are held.

mod dequantise;
mod loader;
mod matrix;
pub mod nf4;
mod quantised;
pub mod safetensors;

pub use loader::Loader;
pub use matrix::{Dense, Weight};
pub use quantised::{Nf4, Stored};
