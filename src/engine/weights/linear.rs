//! A linear layer: base weights, and whatever adapters make of their result.

use std::ops::Range;
use std::sync::Arc;

use luthier_core::model::Storage;
use memmap2::Mmap;
use tch::{Kind, Tensor};

use crate::error::{Result, from_tch};
use crate::methods::{Adapter, Folded};
use crate::models::{Active, Pass, Run};
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
        /// One element after the other, on the CPU.
        dense: Tensor,
        /// The same numbers, as they were before they were rounded to the type of the others.
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

/// A linear layer of the base model. Every product of activations with a block's weights, and with the head's, goes
/// through [`Linear::forward`].
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
    /// Hugging Face names of both tensors; a tied head's weight has the embedding's.
    tensors: [String; 2],
}

impl Linear {
    pub(super) fn new(
        site: Site,
        name: &str,
        [out_features, in_features]: [usize; 2],
        weight: Weight,
        bias: Option<Tensor>,
        weight_name: String,
    ) -> Self {
        let tensors = [weight_name, format!("{name}.bias")];
        Self { site, name: name.into(), in_features, out_features, weight, bias, tensors }
    }

    /// `[N, in]` → `[N, out]`, with the adapters of `pass`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let changed = match pass.adapters {
            Active::Base => self.product(x),
            Active::All(adapter) => self.adapted(x, adapter, pass),
            Active::Rows(rows) if rows.iter().flatten().all(|adapter| adapter.shares_product(self)) => {
                self.by_rows(x, pass)
            }
            Active::Rows(_) => pass.by_adapter(x, |adapter, x| match adapter {
                Some(adapter) => self.adapted(x, adapter, pass),
                None => self.product(x),
            }),
        };
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

    /// Hugging Face names of weight and bias. A tied head's weight has the embedding's name.
    pub fn tensors(&self) -> [&str; 2] {
        let [weight, bias] = &self.tensors;
        [weight, bias]
    }

    /// The weight and bias with elements of type `kind` that alone do what this layer does with `adapter`.
    pub fn folded(&self, adapter: Option<&dyn Adapter>, kind: Kind) -> Result<Folded> {
        let weight = match adapter.and_then(|adapter| adapter.weight(self)) {
            Some(weight) => ops::to_kind(weight, kind)?,
            None => self.weight.dense(kind)?,
        };
        let bias = self.bias_with(adapter, kind)?;
        match adapter {
            Some(adapter) => adapter.fold(self, weight, bias),
            None => Ok(Folded { weight, bias }),
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.linear(x, self.bias.as_ref())
    }

    fn bias_with(&self, adapter: Option<&dyn Adapter>, kind: Kind) -> Result<Option<Tensor>> {
        let own = adapter.and_then(|adapter| adapter.replacement(self.tensors()[1]));
        own.or(self.bias.as_ref()).map(|bias| ops::to_kind(bias, kind)).transpose()
    }

    fn adapted(&self, x: &Tensor, adapter: &dyn Adapter, pass: &Pass) -> Result<Tensor> {
        let input = adapter.input(self, x)?;
        let x = input.as_ref().unwrap_or(x);
        let bias = self.bias_with(Some(adapter), x.kind())?;
        let y = match adapter.weight(self) {
            Some(weight) => ops::linear(x, &ops::to_kind(weight, x.kind())?, bias.as_ref())?,
            None => self.weight.linear(x, bias.as_ref())?,
        };
        adapter.output(self, x, y, pass.noise.as_ref())
    }

    /// Base weights run once over the whole batch; each run of neighbouring rows with one adapter then gets it.
    fn by_rows(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let y = self.product(x)?;
        let mut parts = Vec::new();
        for Run { adapter, start, length } in pass.runs(&y)? {
            let part = ops::narrow(&y, 0, start, length)?;
            parts.push(match adapter {
                Some(adapter) => {
                    adapter.output(self, &ops::narrow(x, 0, start, length)?, part, pass.noise.as_ref())?
                }
                None => part,
            });
        }
        ops::concatenate(&parts, 0)
    }
}
