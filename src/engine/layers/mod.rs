//! What models and methods share: linear layers, the trait of adapters that change them, what one forward is given, and the
//! cache of keys and values.

mod adapter;
mod cache;
mod linear;
mod pass;

pub use adapter::{Adapter, Folded, Form, Parameters};
pub use cache::KvCache;
pub(crate) use cache::LayerCache;
pub use linear::{Linear, Site};
pub use pass::{Active, Document, Mask, Noise, Pass};
