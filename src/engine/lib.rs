//! The Luthier engine: the only crate that links libtorch.

pub mod algorithms;
pub mod base;
pub mod bench;
pub mod csrc;
pub mod device;
pub mod doctor;
pub mod error;
pub mod evaluate;
pub mod generation;
mod in_halves;
pub mod layers;
pub mod methods;
pub mod models;
pub mod ops;
pub mod process;
pub mod serve;
pub mod step;
#[cfg(test)]
mod testing;
pub mod training;
pub mod trials;
pub mod verify;
pub mod weights;
