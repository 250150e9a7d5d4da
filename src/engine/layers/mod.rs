//! Shared by models and methods: linear layers, the trait of adapters that change them, the inputs of a
//! forward pass, and the KV cache.

mod adapter;
mod cache;
mod linear;
mod pass;
mod working;

pub use adapter::{Adapter, Folded, Form, Parameters};
pub use cache::KvCache;
pub(crate) use cache::LayerCache;
pub use linear::{Linear, Site};
pub use pass::{Active, Document, Mask, Noise, Pass};
pub use working::{WorkingCopies, WorkingCopy, added};
