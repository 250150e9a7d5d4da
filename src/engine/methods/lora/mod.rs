//! LoRA (arXiv 2106.09685): each chosen linear layer gives `y + scale · B · A · x` with trained `A` `[rank,
//! in]` and `B` `[out, rank]`; `scale = alpha / rank` (section 4.1), or `alpha / √rank` for rsLoRA (arXiv
//! 2312.03732). DoRA ([`dora`]) also trains the lengths of the sum's rows. As in PEFT, biases and whole
//! modules can be trained in addition.

mod dora;
mod settings;

use std::path::{Path, PathBuf};

use luthier_core::config::{Bias, MethodSection, Targets, Variant};
use luthier_core::model::roles::Part;
use luthier_core::model::trained::{Copied, copied_tensors};
use luthier_core::model::{LinearModule, hub, match_targets};
use luthier_core::random;
use tch::{Kind, Tensor};

use super::copies::Copies;
use super::peft::{self, PREFIX, Weights};
use super::{Method, linear_of, names_of, trained, wrong_targets};
use crate::error::Result;
use crate::layers::{Adapter, Folded, Form, Linear, Noise, Parameters};
use crate::models::Model;
use crate::{csrc, ops};
use dora::Magnitude;
use settings::{Patterns, Settings};

/// PEFT's name for it.
pub(super) const PEFT_TYPE: &str = "LORA";

/// Settings of a new LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraMethod {
    /// Rank of the factors, at least 1.
    pub rank: usize,
    /// The scale's numerator.
    pub alpha: f64,
    /// Probability that an element of the adapter's input is zeroed in training.
    pub dropout: f64,
    /// Which linear layers get factors.
    pub targets: Targets,
    pub variant: Variant,
    /// Biases that are trained in addition.
    pub bias: Bias,
    /// Modules that are trained as a whole.
    pub modules_to_save: Vec<String>,
    /// Written to `base_model_name_or_path`.
    pub base: PathBuf,
}

impl LoraMethod {
    /// From `[method]`; `base` is the base model's path.
    pub fn from_config(method: &MethodSection, base: &Path) -> Self {
        Self {
            rank: method.rank,
            alpha: method.alpha,
            dropout: method.dropout,
            targets: method.targets.clone(),
            variant: method.variant,
            bias: method.bias,
            modules_to_save: method.modules_to_save.clone(),
            base: base.to_owned(),
        }
    }
}

impl Method for LoraMethod {
    /// `A` as PEFT initialises it (`kaiming_uniform_(a = √5)`: uniform in ±1/√in), `B` zero: a new adapter
    /// changes nothing.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>> {
        self.make(model, seed).map(super::boxed)
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Lora::load(folder, model).map(super::boxed)
    }
}

impl LoraMethod {
    fn make(&self, model: &Model, seed: u64) -> Result<Lora> {
        let targets = match_targets(&self.targets, &model.architecture().linear_modules())
            .map_err(|error| wrong_targets(&error))?;
        let copied = copied_tensors(&self.modules_to_save, self.bias, &targets, model.architecture())
            .map_err(|error| wrong_targets(&error))?;
        let settings = Settings {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rank_stabilised: self.variant == Variant::Rslora,
            weight_decomposed: self.variant == Variant::Dora,
            bias: self.bias,
            modules_to_save: self.modules_to_save.clone(),
            patterns: Patterns::default(),
            transposed: model.architecture().transposed,
            base: hub::public_name(&self.base),
        };
        let copies = Copies::of_files(model.files(), &copied, model, |copied| stored_name(copied, &targets))?;
        let mut lora = Lora::empty(settings, copies);
        for module in &targets {
            let linear = linear_of(module, model)?;
            let rank = self.rank as i64;
            let bound = 1.0 / (linear.in_features as f64).sqrt();
            let place = random::derive_name(seed, &linear.name);
            let a = csrc::fill::<f32>(&[rank, linear.in_features as i64], |values| {
                for (index, value) in values.iter_mut().enumerate() {
                    *value = ((2.0 * random::unit(random::derive(place, index as u64)) - 1.0) * bound) as f32;
                }
                Ok(())
            })?;
            let b = ops::zeros(&[linear.out_features as i64, rank], Kind::Float, tch::Device::Cpu)?;
            lora.insert(linear, &a, &b, None, model)?;
        }
        lora.targets = lora.name_targets(model);
        Ok(lora)
    }
}

/// A LoRA adapter of one model.
#[derive(Debug)]
pub struct Lora {
    settings: Settings,
    /// Names that match exactly the layers with factors, by PEFT's rules.
    targets: Vec<String>,
    /// By site; shares memory with `parameters`.
    factors: Vec<Option<Factors>>,
    copies: Copies,
    parameters: Parameters,
}

#[derive(Debug)]
struct Factors {
    /// `[rank, in]`
    a: Tensor,
    /// `[out, rank]`
    b: Tensor,
    scale: f64,
    /// Set for DoRA.
    magnitude: Option<Magnitude>,
}

impl Lora {
    fn empty(settings: Settings, copies: Copies) -> Self {
        let parameters = copies.parameters().collect();
        Self { settings, targets: Vec::new(), factors: Vec::new(), copies, parameters }
    }

    fn name_targets(&self, model: &Model) -> Vec<String> {
        names_of(model, &|linear| self.factors(linear).is_some())
    }

    /// Reads a PEFT folder. All problems are reported at once.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let (mut config, mut weights) = peft::open(folder, model)?;
        let settings = Settings::read(&mut config, model);
        let targets: Vec<LinearModule> = model
            .architecture()
            .linear_modules()
            .into_iter()
            .filter(|module| factor_names(&module.name).iter().any(|name| weights.has(name)))
            .collect();
        let wanted = copied_tensors(&settings.modules_to_save, settings.bias, &targets, model.architecture())
            .unwrap_or_else(|error| {
                config.problem(error.to_string());
                Vec::new()
            });
        let copies = Copies::take(&wanted, &mut weights, model, |copied| stored_name(copied, &targets))?;
        let mut lora = Self::empty(settings, copies);
        for module in &targets {
            let linear = linear_of(module, model)?;
            lora.take(linear, &mut weights, model)?;
        }
        if targets.is_empty() {
            config.problem("it has no factors".into());
        }
        let problems = weights.finish(config);
        if !problems.is_empty() {
            return Err(peft::refusal(folder, problems));
        }
        lora.targets = lora.name_targets(model);
        Ok(lora)
    }

    /// Takes a layer's factors from an adapter's weights.
    fn take(&mut self, linear: &Linear, weights: &mut Weights, model: &Model) -> Result<()> {
        let rank = self.settings.rank_of(&linear.name) as i64;
        let (rows, columns) = (linear.out_features as i64, linear.in_features as i64);
        let [a_name, b_name, magnitude_name] = factor_names(&linear.name);
        match [weights.has(&a_name), weights.has(&b_name)] {
            [true, false] => weights.problems.push(format!("{a_name} has no lora_B")),
            [false, true] => weights.problems.push(format!("{b_name} has no lora_A")),
            _ => {}
        }
        let a = weights.take(&a_name, &[rank, columns])?;
        let b = weights.take(&b_name, &[rows, rank])?;
        let magnitude =
            if self.settings.weight_decomposed { weights.need(&magnitude_name, &[rows])? } else { None };
        // PEFT stores the head with an adapter on it, although it is the base model's.
        let stored_base = format!("{PREFIX}{}.base_layer.weight", linear.name);
        if let Some(stored) = weights.take(&stored_base, &[rows, columns])?
            && weights.problems.is_empty()
            && !is_base(linear, &stored, model)?
        {
            weights.problems.push(format!("{stored_base} is not the base model's; merge it into the base"));
        }
        if let (Some(a), Some(b), true) = (a, b, weights.problems.is_empty()) {
            self.insert(linear, &a, &b, magnitude.as_ref(), model)?;
        }
        Ok(())
    }

    /// Adds a layer's factors. Without a given magnitude, DoRA's is that of the current weight.
    fn insert(
        &mut self,
        linear: &Linear,
        a: &Tensor,
        b: &Tensor,
        magnitude: Option<&Tensor>,
        model: &Model,
    ) -> Result<()> {
        let (a, b) = (trained(a, model)?, trained(b, model)?);
        let scale = self.settings.scale_of(&linear.name);
        let magnitude = if self.settings.weight_decomposed {
            Some(Magnitude::new(linear, [&a, &b], scale, magnitude, model)?)
        } else {
            None
        };
        let [a_name, b_name, magnitude_name] = factor_names(&linear.name);
        self.parameters.insert(a_name, a.shallow_clone());
        self.parameters.insert(b_name, b.shallow_clone());
        if let Some(magnitude) = &magnitude {
            self.parameters.insert(magnitude_name, magnitude.vector.shallow_clone());
        }
        let site = linear.site.0;
        if self.factors.len() <= site {
            self.factors.resize_with(site + 1, || None);
        }
        self.factors[site] = Some(Factors { a, b, scale, magnitude });
        Ok(())
    }

    /// The adapter with factors of type `factors`, and with DoRA's gains computed in type `kind`.
    fn settle(
        &self,
        linears: &mut dyn Iterator<Item = &Linear>,
        kind: Kind,
        factors: impl Fn(&Tensor) -> Kind,
    ) -> Result<Self> {
        let mut settled = Self::empty(self.settings.clone(), self.copies.settled(kind)?);
        settled.targets.clone_from(&self.targets);
        settled.factors.resize_with(self.factors.len(), || None);
        for linear in linears {
            let Some(Factors { a, b, scale, magnitude }) = self.factors(linear) else { continue };
            let magnitude = magnitude.as_ref().map(|own| own.settled(linear, [a, b], *scale, kind));
            let [a, b] = [ops::to_kind(a, factors(a))?, ops::to_kind(b, factors(b))?];
            let magnitude = magnitude.transpose()?;
            settled.factors[linear.site.0] = Some(Factors { a, b, scale: *scale, magnitude });
        }
        Ok(settled)
    }

    fn factors(&self, linear: &Linear) -> Option<&Factors> {
        self.factors.get(linear.site.0)?.as_ref()
    }

    fn bias<'a>(&'a self, linear: &'a Linear) -> Option<&'a Tensor> {
        self.copies.get(linear.tensors()[1]).or(linear.bias())
    }
}

impl Adapter for Lora {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        Form::Peft(self.settings.write(&self.targets))
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.copies.get(tensor)
    }

    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        self.copies.weight(linear)
    }

    fn shares_product(&self, linear: &Linear) -> bool {
        self.weight(linear).is_none() && self.copies.get(linear.tensors()[1]).is_none()
    }

    fn settled(
        &self,
        linears: &mut dyn Iterator<Item = &Linear>,
        kind: Kind,
    ) -> Result<Option<Box<dyn Adapter>>> {
        // A CPU's kernels take the f32 factors as they are.
        let factors = |factor: &Tensor| if factor.device().is_cuda() { kind } else { factor.kind() };
        Ok(Some(super::boxed(self.settle(linears, kind, factors)?)))
    }

    fn is_random(&self) -> bool {
        self.settings.dropout > 0.0
    }

    fn low_rank(&self, linear: &Linear, noise: Option<&Noise>) -> Option<csrc::LowRank<'_>> {
        let drops = noise.is_some() && self.settings.dropout > 0.0;
        let factors = self.factors(linear).filter(|factors| !drops && factors.magnitude.is_none())?;
        Some(csrc::LowRank { a: &factors.a, b: &factors.b, scale: factors.scale, gated: None })
    }

    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let Some(Factors { a, b, scale, magnitude }) = self.factors(linear) else { return Ok(y) };
        let dropped = match noise {
            Some(noise) if self.settings.dropout > 0.0 => {
                let mask = csrc::dropout_mask(x, self.settings.dropout, noise.at(&linear.name))?;
                Some(ops::multiply(x, &mask)?)
            }
            _ => None,
        };
        let low_rank = csrc::LowRank { a, b, scale: *scale, gated: None };
        let Some(magnitude) = magnitude else {
            csrc::add_low_rank(&y, dropped.as_ref().unwrap_or(x), low_rank)?;
            return Ok(y);
        };
        let gain = magnitude.gain(linear, [a, b], *scale, x.kind())?;
        match dropped {
            None => {
                csrc::add_low_rank(&y, x, low_rank)?;
                dora::stretch(&y, &gain, self.bias(linear))
            }
            // Dropped elements are also missing from the base weight's part of the change.
            Some(x) => {
                let before = linear.weight().linear(&x, None)?;
                let [a, b] = [ops::to_kind(a, x.kind())?, ops::to_kind(b, x.kind())?];
                let low = ops::linear(&ops::linear(&x, &a, None)?, &b, None)?;
                let after = ops::add(&before, &ops::scale(&low, *scale)?)?;
                ops::add(&y, &ops::subtract(&dora::stretch(&after, &gain, None)?, &before)?)
            }
        }
    }

    fn fold(&self, linear: &Linear, weight: Tensor, bias: Option<Tensor>) -> Result<Folded> {
        let Some(Factors { a, b, scale, magnitude }) = self.factors(linear) else {
            return Ok(Folded { weight, bias });
        };
        let change = ops::scale(&ops::matmul(b, a)?, *scale)?;
        let change = ops::to_device(&ops::to_kind(&change, weight.kind())?, weight.device())?;
        let sum = ops::add(&weight, &change)?;
        let weight = match magnitude {
            Some(magnitude) => magnitude.fold(&sum)?,
            None => sum,
        };
        Ok(Folded { weight, bias })
    }
}

/// Whether a stored weight equals the base model's, within the precision of the compute type.
fn is_base(linear: &Linear, stored: &Tensor, model: &Model) -> Result<bool> {
    let stored = ops::to_device(&ops::to_kind(stored, model.kind())?, model.device())?;
    Ok(ops::distance(&linear.weight().dense(model.kind())?, &stored)? <= 0.0)
}

/// PEFT's stored names of a layer's factors and magnitude.
fn factor_names(module: &str) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|part| format!("{PREFIX}{module}.{part}"))
}

/// PEFT's stored name of a copied tensor. The own bias of a layer with factors is one level deeper.
fn stored_name(copied: &Copied, targets: &[LinearModule]) -> String {
    let below = copied.part == Part::Bias && targets.iter().any(|target| target.name == copied.module);
    let level = if below { ".base_layer" } else { "" };
    format!("{PREFIX}{}{level}.{}", copied.module, copied.part.suffix())
}

#[cfg(test)]
mod tests {
    use luthier_core::config::Config;
    use luthier_core::model::{ModelFiles, Quantisation};
    use tch::Device;

    use super::*;

    #[test]
    fn a_settled_adapter_gives_the_same_bits() {
        let _guard = tch::no_grad_guard();
        let files = ModelFiles::open(&crate::testing::model()).unwrap();
        let model = Model::load(&files, Device::Cpu, Kind::BFloat16, Quantisation::None).unwrap();
        for variant in [Variant::Plain, Variant::Dora] {
            let method = MethodSection { variant, rank: 4, alpha: 16.0, ..Config::default().method };
            let lora = LoraMethod::from_config(&method, "llama".as_ref()).make(&model, 1).unwrap();
            for parameter in lora.parameters.values() {
                let _ = parameter.shallow_clone().f_add_scalar_(0.05).unwrap();
            }
            let same = lora.settled(&mut model.linears(), Kind::BFloat16).unwrap().unwrap();
            let rounded = lora.settle(&mut model.linears(), Kind::BFloat16, |_| Kind::BFloat16).unwrap();
            for linear in model.linears() {
                let random = |rows, columns| {
                    Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
                };
                let y = random(3, linear.out_features as i64);
                let output =
                    |adapter: &dyn Adapter, x: &Tensor| adapter.output(linear, x, y.copy(), None).unwrap();
                let x = random(3, linear.in_features as i64);
                assert_eq!(output(same.as_ref(), &x), output(&lora, &x), "{}", linear.name);
                // Not contiguous, so that it takes the way of a GPU.
                let x = random(linear.in_features as i64, 3).transpose(0, 1);
                assert_eq!(output(&rounded, &x), output(&lora, &x), "{}", linear.name);
                assert_eq!(lora.factors(linear).is_some(), output(&lora, &x) != y, "{}", linear.name);
            }
        }
    }
}
