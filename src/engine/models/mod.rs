//! Decoder-only language models: one block with closed variation points, run over weights that are never written to.
//!
//! Nothing but weights lives in a [`Model`]: what one forward needs besides (positions, mask, adapters, noise, cache) is
//! passed in, so nothing has to be reset.

mod block;
mod decoder;
mod frame;
pub mod head;
mod rope;

use tch::Tensor;

pub use decoder::{Model, Trace};

use crate::methods::Adapter;

/// All that one forward needs besides weights and cache. B rows of T columns; row-major.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// `[B, T]` int64: the place of each token in its own document, from 0.
    pub positions: &'a Tensor,
    /// Which tokens see which.
    pub mask: Mask<'a>,
    /// Which adapters act on which rows.
    pub adapters: Active<'a>,
    /// Randomness of training (dropout); `None` outside of it.
    pub noise: Option<Noise>,
}

/// Which tokens see which; none ever sees a later one.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Each row is one document, from its first column. Padding on the right needs no more than this: nothing that
    /// counts sees it. With a cache, each row goes on where the cache says.
    Causal,
    /// Documents lie end to end and none sees another. Their lengths, over all rows in row-major order, sum to B × T.
    Documents(&'a [i64]),
    /// Columns that do not count, wherever they are, are not seen: `[B, T]` bool, true where a column counts. Needed for
    /// padding on the left.
    Columns(&'a Tensor),
}

/// Which adapters act on which rows of a batch.
#[derive(Clone, Copy)]
pub enum Active<'a> {
    /// None: the base model.
    Base,
    /// One on all rows.
    All(&'a dyn Adapter),
    /// One (or none) for each row.
    Rows(&'a [Option<&'a dyn Adapter>]),
}

/// Where in a run a forward stands: everything random in it is a function of this and of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Derived from the run's seed, the step and the micro-batch with [`crate::random::derive`].
    pub seed: u64,
}
