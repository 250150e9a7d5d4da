//! Decoder-only language models: one block with closed variation points, run over weights that are never written to.
//!
//! Nothing but weights lives in a [`Model`]: what one forward needs besides (positions, mask, adapters, noise, cache) is
//! passed in, so nothing has to be reset.

mod attention;
mod block;
mod decoder;
mod documents;
mod frame;
pub mod head;
mod mlp;
mod norm;
mod rope;

pub use decoder::{Model, Trace};
