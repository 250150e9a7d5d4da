//! Weight matrices in their in-memory forms.

use tch::{Kind, Tensor};

use super::quantised::{self, Nf4, Quantised, Stored};
use crate::error::Result;
use crate::{csrc, ops};

/// A weight matrix `[out, in]` in one of its forms.
#[derive(Debug)]
pub enum Weight {
    Dense(Dense),
    Nf4(Nf4),
    /// In the file's own blocks.
    Stored(Stored),
}

/// A matrix with one element after another.
#[derive(Debug)]
pub struct Dense {
    elements: Tensor,
    /// The same numbers as in the file, before rounding to the compute type. They need a fraction of the
    /// memory traffic, so generation multiplies with them.
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

    /// `x · weightᵀ` of each weight, if `x` `[N, in]` is few tokens on the CPU without gradient and there is a kernel for all
    /// of them.
    pub(crate) fn few_together(weights: &[&Self], x: &Tensor) -> Result<Option<Vec<Tensor>>> {
        let few = x.dim() == 2 && x.size()[0] <= quantised::FEW_TOKENS;
        if !few || x.requires_grad() || !csrc::is_plain(x) {
            return Ok(None);
        }
        let matrices: Option<Vec<csrc::FewMatrix>> =
            weights.iter().map(|weight| weight.few_matrix(x)).collect();
        matrices.map(|matrices| csrc::few_products(x, &matrices)).transpose()
    }

    fn few_matrix(&self, x: &Tensor) -> Option<csrc::FewMatrix<'_>> {
        match self {
            Self::Dense(Dense { stored: Some(stored), .. }) | Self::Stored(stored) => stored.in_order(),
            Self::Dense(Dense { elements, stored: None }) => {
                csrc::all_plain(&[x, elements]).then_some(csrc::FewMatrix::Dense(elements))
            }
            Self::Nf4(_) => None,
        }
    }

    /// `x · weightᵀ + bias` plus an adapter's part, in one kernel. `None` if there is no kernel for it, or if
    /// there are few tokens, for which a product with the stored form is faster.
    pub(crate) fn adapted(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        low_rank: csrc::LowRank,
    ) -> Result<Option<Tensor>> {
        let elements = self.for_adapters(x);
        elements.map(|elements| csrc::adapted_linear(x, elements, bias, low_rank)).transpose()
    }

    /// The elements, if an adapter's part can be added during the product with `x`.
    pub(crate) fn for_adapters(&self, x: &Tensor) -> Option<&Tensor> {
        let Self::Dense(Dense { elements, .. }) = self else { return None };
        let few = x.size().first().is_some_and(|&tokens| tokens <= quantised::FEW_TOKENS);
        (!few && elements.kind() == x.kind()).then_some(elements)
    }

    /// The matrix as type `kind`. A quantised matrix is decoded at each call.
    pub fn dense(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => ops::to_kind(&weight.elements, kind),
            Self::Nf4(weight) => weight.dense(kind),
            Self::Stored(weight) => weight.dense(kind),
        }
    }

    /// Its bytes; for a mapped matrix, in its file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(weight) => ops::bytes_of(&weight.elements),
            Self::Nf4(weight) => weight.bytes(),
            Self::Stored(weight) => weight.bytes(),
        }
    }
}

impl Dense {
    /// `stored` is the same matrix.
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
