//! Inputs of a forward pass other than weights and cache.

use std::ops::Range;

use tch::Tensor;

use super::{Adapter, Form};
use crate::error::{EngineError, Result};
use crate::ops;

/// Inputs of a forward pass other than weights and cache. B rows of T columns, row-major.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// `[B, T]` int64: position of each token in its own document, from 0. Virtual tokens of an adapter come
    /// before that and are not counted, except with a cache, which contains them like all earlier tokens. No
    /// position exceeds its document's length as given by `mask` or the cache.
    pub positions: &'a Tensor,
    /// Which tokens see which.
    pub mask: Mask<'a>,
    /// Which adapters act on which rows.
    pub adapters: Active<'a>,
    /// Randomness of training (dropout); `None` otherwise.
    pub noise: Option<Noise>,
}

/// Which tokens see which. No token ever sees a later one.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Each row is one document from its first column. Padding on the right needs nothing else, because no
    /// real token sees it. With a cache, each row continues after its cached tokens.
    Causal,
    /// Documents lie end to end and do not see each other. Their lengths, over all rows in row-major order,
    /// sum to B × T.
    Documents(&'a [i64]),
    /// As `Documents`, for documents with shared beginnings, which are computed once.
    Branches(&'a [Document]),
    /// Ignored columns, in any place, are not seen: `[B, T]` bool, false for these. Needed for padding on the
    /// left.
    Columns(&'a Tensor),
}

/// A document whose first tokens may be shared with earlier documents. The own tokens of all documents lie
/// end to end, over all rows in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The tokens before its own, in order, as runs of consecutive tokens that are computed for earlier
    /// documents.
    pub shared: Vec<Range<i64>>,
    /// Number of its own tokens, at least 1.
    pub own: i64,
}

impl Document {
    /// Number of tokens before its own.
    pub fn before(&self) -> i64 {
        self.shared.iter().map(|range| range.end - range.start).sum()
    }
}

/// Which adapters act on which rows of a batch.
#[derive(Clone, Copy)]
pub enum Active<'a> {
    /// The base model.
    Base,
    /// One adapter on all rows.
    All(&'a dyn Adapter),
    /// One adapter or none for each row.
    Rows(&'a [Option<&'a dyn Adapter>]),
}

impl<'a> Active<'a> {
    /// Whether the weights of the base model are used for any row: no adapter of it replaces them all.
    pub(crate) fn uses_base(self) -> bool {
        let is_whole = |adapter: &dyn Adapter| matches!(adapter.form(), Form::Model(_));
        match self {
            Self::Base => true,
            Self::All(adapter) => !is_whole(adapter),
            Self::Rows(rows) => rows.iter().any(|adapter| adapter.is_none_or(|adapter| !is_whole(adapter))),
        }
    }

    /// The adapters that act on any row.
    fn all(self) -> impl Iterator<Item = &'a dyn Adapter> {
        let (one, rows): (_, &[Option<&dyn Adapter>]) = match self {
            Self::Base => (None, &[]),
            Self::All(adapter) => (Some(adapter), &[]),
            Self::Rows(rows) => (None, rows),
        };
        one.into_iter().chain(rows.iter().copied().flatten())
    }
}

impl Pass<'_> {
    /// Whether any adapter replaces the base model's tensor of this name.
    pub(crate) fn replaces(&self, tensor: &str) -> bool {
        self.adapters.all().any(|adapter| adapter.replacement(tensor).is_some())
    }

    /// Applies `f` to each run of consecutive rows with the same adapter. The first dimension of `x` and of
    /// the result is the tokens of all rows.
    pub(crate) fn by_adapter(
        &self,
        x: &Tensor,
        f: impl Fn(Option<&dyn Adapter>, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.adapters {
            Active::Base => f(None, x),
            Active::All(adapter) => f(Some(adapter), x),
            Active::Rows(_) => {
                let part = |run: Run| f(run.adapter, &ops::narrow(x, 0, run.start, run.length)?);
                let parts = self.runs(x)?.into_iter().map(part);
                ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, 0)
            }
        }
    }

    /// The runs of consecutive rows with the same adapter. The first dimension of `x` is the tokens of all
    /// rows.
    pub(crate) fn runs(&self, x: &Tensor) -> Result<Vec<Run<'_>>> {
        let tokens = x.size().first().copied().unwrap_or_default();
        let rows = match self.adapters {
            Active::Base => return Ok(vec![Run { adapter: None, start: 0, length: tokens }]),
            Active::All(adapter) => {
                return Ok(vec![Run { adapter: Some(adapter), start: 0, length: tokens }]);
            }
            Active::Rows(rows) => rows,
        };
        let count = rows.len() as i64;
        if count == 0 || tokens % count != 0 {
            return Err(EngineError::mismatch("adapters by row", &[x], &format!("{count} rows")));
        }
        let (mut runs, mut start) = (Vec::new(), 0);
        for run in rows.chunk_by(|a, b| same(*a, *b)) {
            let length = run.len() as i64 * (tokens / count);
            runs.push(Run { adapter: run.first().copied().flatten(), start, length });
            start += length;
        }
        Ok(runs)
    }
}

/// Tokens of consecutive rows with the same adapter.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub adapter: Option<&'a dyn Adapter>,
    pub start: i64,
    pub length: i64,
}

/// Whether two rows have the same adapter object.
fn same(a: Option<&dyn Adapter>, b: Option<&dyn Adapter>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => std::ptr::addr_eq(a, b),
        _ => false,
    }
}

/// The forward pass's place in a run. All random numbers are functions of this and of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Derived from the run's seed, the step and the micro-batch with [`luthier_core::random::derive`].
    pub seed: u64,
}

impl Noise {
    /// The seed of the random numbers of one module.
    pub fn at(self, module: &str) -> u64 {
        luthier_core::random::derive_name(self.seed, module)
    }
}
