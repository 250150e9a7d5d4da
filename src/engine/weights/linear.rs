//! A linear layer: base weights, and whatever adapters make of their result.

use tch::{Kind, Tensor};

use super::quantised::{self, Nf4, Quantised, Stored};
use crate::error::Result;
use crate::methods::{Adapter, Folded};
use crate::models::{Active, Pass, Run};
use crate::{csrc, ops};

/// Names a linear layer of one model by number, counted from 0 in the order of [`crate::models::Model::linears`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(pub usize);

/// A weight matrix `[out, in]`, in whichever way it is held.
#[derive(Debug)]
pub enum Weight {
    /// One element after the other.
    Dense(Dense),
    /// In NF4.
    Nf4(Nf4),
    /// In the blocks that the file has it in.
    Stored(Stored),
}

/// A matrix, one element after the other.
#[derive(Debug)]
pub struct Dense {
    elements: Tensor,
    /// The same numbers as the file has them, before they were rounded to the type of the others, which takes a fraction of
    /// the memory traffic: generation multiplies with that.
    stored: Option<Stored>,
}

impl Weight {
    /// `x · weightᵀ + bias`: `[N, in]` → `[N, out]`
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.linear(x, bias),
            Self::Nf4(weight) => quantised::linear(weight, x, bias),
            Self::Stored(weight) => quantised::linear(weight, x, bias),
        }
    }

    /// The matrix with elements of type `kind`; a quantised one is decoded again each time.
    pub fn dense(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => ops::to_kind(&weight.elements, kind),
            Self::Nf4(weight) => weight.dense(kind),
            Self::Stored(weight) => weight.dense(kind),
        }
    }

    /// Bytes it takes; of a mapped one, in its file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(weight) => ops::bytes_of(&weight.elements),
            Self::Nf4(weight) => weight.bytes(),
            Self::Stored(weight) => weight.bytes(),
        }
    }
}

impl Dense {
    /// `stored` holds the same numbers.
    pub(super) fn new(elements: Tensor, stored: Option<Stored>) -> Self {
        Self { elements, stored }
    }

    /// The product with what an adapter adds, made at once; `None` where few tokens are better multiplied with what is
    /// stored.
    fn adapted(&self, x: &Tensor, bias: Option<&Tensor>, low_rank: csrc::LowRank) -> Result<Option<Tensor>> {
        let few = x.size().first().is_some_and(|&tokens| tokens <= quantised::FEW_TOKENS);
        if few || self.elements.kind() != x.kind() {
            return Ok(None);
        }
        csrc::adapted_linear(x, &self.elements, bias, low_rank).map(Some)
    }

    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let few = self.stored.as_ref().map(|stored| quantised::few(stored, x)).transpose()?.flatten();
        match (few, bias) {
            (Some(y), Some(bias)) => ops::add(&y, bias),
            (Some(y), None) => Ok(y),
            (None, bias) => ops::linear(x, &self.elements, bias),
        }
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
        let noise = pass.noise.as_ref();
        let y = match (adapter.weight(self), adapter.low_rank(self, noise), &self.weight) {
            (Some(weight), ..) => ops::linear(x, &ops::to_kind(weight, x.kind())?, bias.as_ref())?,
            (None, Some(low_rank), Weight::Dense(weight)) => {
                if let Some(y) = weight.adapted(x, bias.as_ref(), low_rank)? {
                    return Ok(y);
                }
                self.weight.linear(x, bias.as_ref())?
            }
            (None, ..) => self.weight.linear(x, bias.as_ref())?,
        };
        adapter.output(self, x, y, noise)
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
