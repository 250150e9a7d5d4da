//! A linear layer: base weights, and whatever adapters make of their result.

use std::ops::Range;
use std::sync::Arc;

use luthier_core::model::Storage;
use memmap2::Mmap;
use tch::{Kind, Tensor};

use crate::error::{Result, from_tch};
use crate::methods::Adapter;
use crate::models::{Active, Pass};
use crate::{csrc, ops};

/// Names a linear layer of one model by number, counted from 0 in the order of [`crate::models::Model::linears`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(pub usize);

/// Up to so many tokens at once, reading a matrix takes longer than multiplying with it.
const FEW_TOKENS: i64 = 8;

/// A weight matrix `[out, in]` as it lies in memory.
#[derive(Debug)]
pub enum Weight {
    /// One element after the other.
    Dense(Tensor),
    /// As dense, and beside it the file's own form, which takes a fraction of the memory traffic: generation multiplies
    /// with that.
    Doubled {
        /// One element after the other, f32 on the CPU.
        dense: Tensor,
        /// The same numbers.
        stored: Stored,
    },
}

/// A matrix where it lies in a mapped file.
#[derive(Debug)]
pub struct Stored {
    pub(super) map: Arc<Mmap>,
    pub(super) bytes: Range<usize>,
    pub(super) storage: Storage,
    pub(super) paired_heads: Option<usize>,
}

impl Weight {
    /// `x · weightᵀ + bias`: `[N, in]` → `[N, out]`
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => ops::linear(x, weight, bias),
            Self::Doubled { dense, stored } => {
                let few = x.dim() == 2 && x.size()[0] <= FEW_TOKENS;
                if !few || x.requires_grad() || !csrc::is_plain(x) {
                    return ops::linear(x, dense, bias);
                }
                let y = stored.product(x, dense)?;
                bias.map_or(Ok(y.shallow_clone()), |bias| ops::add(&y, bias))
            }
        }
    }

    /// The matrix with elements of type `kind`.
    pub fn dense(&self, kind: Kind) -> Result<Tensor> {
        ops::to_kind(self.tensor(), kind)
    }

    /// The matrix.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Dense(dense) | Self::Doubled { dense, .. } => dense,
        }
    }
}

impl Stored {
    fn product(&self, x: &Tensor, dense: &Tensor) -> Result<Tensor> {
        let (rows, columns) = dense.size2().map_err(|error| from_tch("product", &error))?;
        let matrix = csrc::StoredMatrix {
            bytes: self.map.get(self.bytes.clone()).unwrap_or_default(),
            storage: self.storage,
            rows: rows as usize,
            columns: columns as usize,
            paired_heads: self.paired_heads,
        };
        csrc::stored_product(x, &matrix)
    }
}

/// A linear layer of the base model. Every product of activations with a block's weights goes through
/// [`Linear::forward`].
#[derive(Debug)]
pub struct Linear {
    /// Where it is.
    pub site: Site,
    /// Its Hugging Face module name, which PEFT stores adapters under.
    pub name: String,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(
        site: Site,
        name: &str,
        features: [usize; 2],
        weight: Weight,
        bias: Option<Tensor>,
    ) -> Self {
        let [out_features, in_features] = features;
        Self { site, name: name.into(), in_features, out_features, weight, bias }
    }

    /// `[N, in]` → `[N, out]`, with the adapters of `pass`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let changed = self.weight.linear(x, self.bias.as_ref()).and_then(|y| match pass.adapters {
            Active::Base => Ok(y),
            Active::All(adapter) => adapter.output(self, x, y, pass.noise.as_ref()),
            Active::Rows(rows) => self.by_rows(x, &y, rows, pass),
        });
        changed.map_err(|error| error.within(&self.name))
    }

    /// The base weight, `[out, in]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Base weights have run once over the whole batch; each run of neighbouring rows with one adapter then gets it.
    fn by_rows(&self, x: &Tensor, y: &Tensor, rows: &[Option<&dyn Adapter>], pass: &Pass) -> Result<Tensor> {
        let tokens = x.size().first().copied().unwrap_or_default();
        let count = rows.len() as i64;
        if count == 0 || tokens % count != 0 {
            return Err(ops::mismatch("adapters by row", &[x], &format!("{count} rows")));
        }
        let width = tokens / count;
        let mut parts = Vec::new();
        let mut start = 0;
        for run in rows.chunk_by(|a, b| same(*a, *b)) {
            let length = run.len() as i64 * width;
            let part = ops::narrow(y, 0, start, length)?;
            parts.push(match run.first().copied().flatten() {
                Some(adapter) => {
                    adapter.output(self, &ops::narrow(x, 0, start, length)?, part, pass.noise.as_ref())?
                }
                None => part,
            });
            start += length;
        }
        ops::concatenate(&parts, 0)
    }
}

/// Whether two rows have the same adapter, the same object.
fn same(a: Option<&dyn Adapter>, b: Option<&dyn Adapter>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => std::ptr::addr_eq(a, b),
        _ => false,
    }
}
