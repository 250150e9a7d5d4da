//! Decoder-only language models: one block with a fixed set of variants. Weights are never written to.
//!
//! A [`Model`] contains only weights. All other inputs of a forward pass (positions, mask, adapters, noise,
//! cache) are arguments, so that there is no state to reset.

mod attention;
mod block;
mod decoder;
mod documents;
mod flash;
mod frame;
mod fused;
pub mod head;
mod mlp;
mod norm;
mod rope;

pub use decoder::{Model, Trace};
pub use flash::try_flash_attention;
pub use fused::try_fused_operations;
