//! A linear layer: base weights, and the effect of adapters.

use tch::{Kind, Tensor};

use super::pass::Run;
use super::{Active, Adapter, Folded, Pass};
use crate::error::{EngineError, Result};
use crate::weights::{Loader, Weight};
use crate::{csrc, ops};

/// Index of a linear layer in `Model::linears`, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(pub usize);

/// A linear layer of the base model. Every product of activations with the weights of a block or of the head
/// goes through [`Linear::forward`].
#[derive(Debug)]
pub struct Linear {
    pub site: Site,
    /// Its Hugging Face module name, which PEFT stores adapters under.
    pub name: String,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
    weight: Weight,
    bias: Option<Tensor>,
    /// Hugging Face names of weight and bias. A tied head's weight has the embedding's name.
    tensors: [String; 2],
}

impl Linear {
    /// Loads the layer with this module name, with its weight in the loader's quantisation. Layers must be
    /// loaded in the order of their sites.
    pub fn load(loader: &mut Loader, name: &str, has_bias: bool) -> Result<Self> {
        let weight_name = format!("{name}.weight");
        let weight = loader.matrix(&weight_name)?;
        Self::with_bias(loader, name, weight_name, weight, has_bias)
    }

    /// As [`Linear::load`], for the head, which is always dense. A tied head has the embedding's weight.
    pub fn load_head(loader: &mut Loader, name: &str, weight_name: String, has_bias: bool) -> Result<Self> {
        let weight = loader.dense_matrix(&weight_name)?;
        Self::with_bias(loader, name, weight_name, weight, has_bias)
    }

    fn with_bias(
        loader: &mut Loader,
        name: &str,
        weight_name: String,
        weight: Weight,
        has_bias: bool,
    ) -> Result<Self> {
        let [out_features, in_features] = loader.features(&weight_name)?;
        let tensors = [weight_name, format!("{name}.bias")];
        let bias = has_bias.then(|| loader.tensor(&tensors[1])).transpose()?;
        let site = Site(loader.next_number());
        Ok(Self { site, name: name.into(), in_features, out_features, weight, bias, tensors })
    }

    /// `[N, in]` → `[N, out]`, with the adapters of `pass`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let changed = match pass.adapters {
            Active::Base => self.product(x),
            Active::All(adapter) => self.adapted(x, adapter, pass, None),
            Active::Rows(rows) if rows.iter().flatten().all(|adapter| adapter.shares_product(self)) => {
                self.product(x).and_then(|y| self.by_rows(x, y, pass))
            }
            Active::Rows(_) => pass.by_adapter(x, |adapter, x| match adapter {
                Some(adapter) => self.adapted(x, adapter, pass, None),
                None => self.product(x),
            }),
        };
        changed.map_err(|error| error.within(&self.name))
    }

    /// [`Linear::forward`] of `silu(gate) · up`, `[N, in]` each. Where one kernel computes that, it is computed again in the
    /// backward pass, which otherwise keeps it for an adapter.
    pub fn forward_gated(&self, gate: &Tensor, up: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = ops::swiglu(gate, up)?;
        match pass.adapters {
            Active::All(adapter) if ops::is_swiglu_fused(gate, up) => {
                self.adapted(&x, adapter, pass, Some([gate, up])).map_err(|error| error.within(&self.name))
            }
            _ => self.forward(&x, pass),
        }
    }

    /// As [`Linear::forward`] for each of `linears`, in their order, which have the same input. A few tokens are multiplied
    /// with all weights at once.
    pub fn forward_all<const N: usize>(linears: [&Self; N], x: &Tensor, pass: &Pass) -> Result<[Tensor; N]> {
        let is_shared = match pass.adapters {
            Active::Base => true,
            Active::All(_) => false,
            Active::Rows(rows) => rows
                .iter()
                .flatten()
                .all(|adapter| linears.iter().all(|linear| adapter.shares_product(linear))),
        };
        if let Active::All(adapter) = pass.adapters
            && x.device().is_cuda()
            && let Some(layers) = Self::adapted_layers(&linears, x, adapter, pass)?
        {
            return to_array(csrc::adapted_linears(x, &layers)?);
        }
        let weights = linears.map(|linear| &linear.weight);
        let products = if is_shared { Weight::few_together(&weights, x)? } else { None };
        let results = match products {
            None => linears.iter().map(|linear| linear.forward(x, pass)).collect::<Result<Vec<_>>>()?,
            Some(products) => {
                let each = linears.iter().zip(products).map(|(linear, y)| {
                    let y = linear.bias.as_ref().map_or(Ok(y.shallow_clone()), |bias| ops::add(&y, bias))?;
                    linear.by_rows(x, y, pass).map_err(|error| error.within(&linear.name))
                });
                each.collect::<Result<Vec<_>>>()?
            }
        };
        to_array(results)
    }

    /// The layers for [`csrc::adapted_linears`]; `None` if the adapter changes one of them in another way than by factors.
    fn adapted_layers<'a>(
        linears: &[&'a Self],
        x: &Tensor,
        adapter: &'a dyn Adapter,
        pass: &Pass,
    ) -> Result<Option<Vec<csrc::AdaptedLayer<'a>>>> {
        let mut layers = Vec::new();
        for linear in linears {
            let changes_else = !adapter.shares_product(linear) || adapter.input(linear, x)?.is_some();
            let low_rank = adapter.low_rank(linear, pass.noise.as_ref());
            let (false, Some(low_rank), Some(weight)) =
                (changes_else, low_rank, linear.weight.for_adapters(x))
            else {
                return Ok(None);
            };
            layers.push(csrc::AdaptedLayer { weight, bias: linear.bias.as_ref(), low_rank });
        }
        Ok(Some(layers))
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

    /// The weight and bias, of type `kind`, that include the effect of `adapter`.
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

    /// `gated` as in [`csrc::LowRank`].
    fn adapted(
        &self,
        x: &Tensor,
        adapter: &dyn Adapter,
        pass: &Pass,
        gated: Option<[&Tensor; 2]>,
    ) -> Result<Tensor> {
        let input = adapter.input(self, x)?;
        let x = input.as_ref().unwrap_or(x);
        let bias = self.bias_with(Some(adapter), x.kind())?;
        let noise = pass.noise.as_ref();
        let y = if let Some(weight) = adapter.weight(self) {
            ops::linear(x, &ops::to_kind(weight, x.kind())?, bias.as_ref())?
        } else {
            if let Some(low_rank) = adapter.low_rank(self, noise) {
                let low_rank = csrc::LowRank { gated: gated.filter(|_| input.is_none()), ..low_rank };
                if let Some(y) = self.weight.adapted(x, bias.as_ref(), low_rank)? {
                    return Ok(y);
                }
                let y = self.weight.linear(x, bias.as_ref())?;
                csrc::add_low_rank(&y, x, low_rank)?;
                return Ok(y);
            }
            self.weight.linear(x, bias.as_ref())?
        };
        adapter.output(self, x, y, noise)
    }

    /// `y` is the base product for the whole batch. Each adapter is applied to its runs of consecutive rows, in place if it
    /// can be.
    fn by_rows(&self, x: &Tensor, y: Tensor, pass: &Pass) -> Result<Tensor> {
        let (mut parts, mut is_whole) = (Vec::new(), true);
        for Run { adapter, start, length } in pass.runs(&y)? {
            let mut part = ops::narrow(&y, 0, start, length)?;
            if let Some(adapter) = adapter {
                let (x, place) = (ops::narrow(x, 0, start, length)?, part.shallow_clone());
                part = adapter.output(self, &x, part, pass.noise.as_ref())?;
                is_whole &= !part.requires_grad() && ops::is_same_memory(&part, &place);
            }
            parts.push(part);
        }
        if is_whole { Ok(y) } else { ops::concatenate(&parts, 0) }
    }
}

fn to_array<const N: usize>(results: Vec<Tensor>) -> Result<[Tensor; N]> {
    results.try_into().map_err(|_| EngineError::torch("linear", "a product is missing"))
}
