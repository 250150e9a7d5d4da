//! Weight matrices in the forms in which they are held.

use tch::{Kind, Tensor};

use super::quantised::{self, Nf4, Quantised, Stored};
use crate::error::Result;
use crate::{csrc, ops};

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

    /// `x · weightᵀ + bias` with what an adapter adds, computed at once; `None` where there is no kernel for that, or where
    /// few tokens are better multiplied with what is stored.
    pub(crate) fn adapted(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        low_rank: csrc::LowRank,
    ) -> Result<Option<Tensor>> {
        let Self::Dense(Dense { elements, .. }) = self else { return Ok(None) };
        let few = x.size().first().is_some_and(|&tokens| tokens <= quantised::FEW_TOKENS);
        if few || elements.kind() != x.kind() {
            return Ok(None);
        }
        csrc::adapted_linear(x, elements, bias, low_rank).map(Some)
    }

    /// The matrix with elements of type `kind`; a quantised one is decoded each time.
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

    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let few = self.stored.as_ref().map(|stored| quantised::few(stored, x)).transpose()?.flatten();
        match (few, bias) {
            (Some(y), Some(bias)) => ops::add(&y, bias),
            (Some(y), None) => Ok(y),
            (None, bias) => ops::linear(x, &self.elements, bias),
        }
    }
}
