//! The Luthier engine: the only crate that links libtorch.

pub mod csrc;
pub mod device;
pub mod error;
pub mod generation;
pub mod methods;
pub mod models;
pub mod ops;
pub mod process;
pub mod random;
pub mod training;
pub mod weights;
