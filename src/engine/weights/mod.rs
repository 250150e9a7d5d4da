//! Reading and writing weights: mapped files, block formats, NF4, safetensors; the in-memory forms of
//! matrices.

mod dequantise;
mod loader;
mod matrix;
pub mod nf4;
mod quantised;
pub mod safetensors;
mod tried;

pub use loader::Loader;
pub use matrix::{Dense, Weight};
pub use quantised::{Nf4, Stored};
pub use tried::try_kernels;
