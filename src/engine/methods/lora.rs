//! LoRA (arXiv 2106.09685): each chosen linear layer gets `y + scale · B · A · x` with trained `A` `[rank, in]` and `B`
//! `[out, rank]`; `scale = alpha / rank` (section 4.1), or `alpha / √rank` for rsLoRA (arXiv 2312.03732).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use luthier_core::config::{MethodSection, Targets};
use luthier_core::model::{LinearModule, match_targets};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{Adapter, Folded, Method, Parameters, peft};
use crate::error::{EngineError, Result};
use crate::models::{Model, Noise};
use crate::weights::Linear;
use crate::{csrc, ops, random};

/// What PEFT puts before module names.
const PREFIX: &str = "base_model.model.";

/// Settings of a new LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraMethod {
    /// Rank of the factors, at least 1.
    pub rank: usize,
    /// See [`Lora`]'s scale.
    pub alpha: f64,
    /// Probability that an element of the adapter's input is zeroed in training.
    pub dropout: f64,
    /// Which linear layers get factors.
    pub targets: Targets,
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
            base: base.to_owned(),
        }
    }
}

impl Method for LoraMethod {
    /// `A` as PEFT initialises it (`kaiming_uniform_(a = √5)`: uniform in ±1/√in), `B` zero: a new adapter changes nothing.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>> {
        let chosen = chosen(&self.targets, model)?;
        let mut lora = Lora::empty(Settings {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rank_stabilised: false,
            base: self.base.display().to_string(),
        });
        for linear in chosen {
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
            lora.insert(linear, &a, &b, model)?;
        }
        lora.name_targets(model);
        Ok(Box::new(lora))
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(Lora::load(folder, model)?))
    }
}

/// The numbers of an adapter that are not trained.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    rank: usize,
    alpha: f64,
    dropout: f64,
    rank_stabilised: bool,
    base: String,
}

impl Settings {
    fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rank_stabilised { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }
}

/// A LoRA adapter of one model.
#[derive(Debug)]
pub struct Lora {
    settings: Settings,
    /// Names that choose exactly the layers with factors, as PEFT matches them.
    targets: Vec<String>,
    /// By site; shares memory with `parameters`.
    factors: Vec<Option<Factors>>,
    parameters: Parameters,
}

#[derive(Debug)]
struct Factors {
    /// `[rank, in]`
    a: Tensor,
    /// `[out, rank]`
    b: Tensor,
}

impl Lora {
    fn empty(settings: Settings) -> Self {
        Self { settings, targets: Vec::new(), factors: Vec::new(), parameters: Parameters::new() }
    }

    /// Names the layers that have factors: by the last part of their names where that chooses no others.
    fn name_targets(&mut self, model: &Model) {
        let last_part = |linear: &Linear| linear.name.rsplit('.').next().unwrap_or_default().to_owned();
        let (mut chosen, mut spared) = (Vec::new(), BTreeSet::new());
        for linear in model.linears() {
            if self.factors(linear).is_some() {
                chosen.push(linear);
            } else {
                spared.insert(last_part(linear));
            }
        }
        let name = |linear: &&Linear| {
            let short = last_part(linear);
            if spared.contains(&short) { linear.name.clone() } else { short }
        };
        self.targets = chosen.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect();
    }

    /// Reads a PEFT folder. Everything that does not fit is reported at once.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let (config, mut tensors) = peft::read(folder)?;
        let mut problems = Vec::new();
        let settings = settings(&config, &mut problems);
        let rank = settings.rank as i64;
        let mut lora = Self::empty(settings);
        let linears: Vec<&Linear> = model.linears().collect();
        for linear in &linears {
            let [a_name, b_name] = names(linear);
            let (a, b) = match (tensors.remove(&a_name), tensors.remove(&b_name)) {
                (None, None) => continue,
                (Some(a), Some(b)) => (a, b),
                (Some(_), None) => {
                    problems.push(format!("{a_name} has no lora_B beside it"));
                    continue;
                }
                (None, Some(_)) => {
                    problems.push(format!("{b_name} has no lora_A beside it"));
                    continue;
                }
            };
            let (a_shape, b_shape) = ([rank, linear.in_features as i64], [linear.out_features as i64, rank]);
            for (name, tensor, wanted) in [(&a_name, &a, a_shape), (&b_name, &b, b_shape)] {
                if tensor.size() != wanted {
                    problems.push(format!("{name} is {:?}, but needs {wanted:?}", tensor.size()));
                } else if !matches!(tensor.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
                    problems.push(format!("{name} has elements of type {:?}", tensor.kind()));
                } else if !ops::all_finite(tensor)? {
                    problems.push(format!("{name} holds numbers that are not finite"));
                }
            }
            if problems.is_empty() {
                lora.insert(linear, &a, &b, model)?;
            }
        }
        for name in tensors.keys() {
            let name = luthier_core::text::clean_line(name);
            problems.push(format!("{name} belongs to no linear layer of this model"));
        }
        if problems.is_empty() && lora.parameters.is_empty() {
            problems.push("it holds no weights".into());
        }
        if problems.is_empty() {
            lora.name_targets(model);
            Ok(lora)
        } else {
            Err(EngineError::Adapter { path: folder.to_owned(), problems })
        }
    }

    fn insert(&mut self, linear: &Linear, a: &Tensor, b: &Tensor, model: &Model) -> Result<()> {
        let ready = |tensor: &Tensor| {
            let single = ops::to_kind(&ops::contiguous(tensor)?, Kind::Float)?;
            ops::leaf(&ops::to_device(&single, model.device())?)
        };
        let factors = Factors { a: ready(a)?, b: ready(b)? };
        let [a_name, b_name] = names(linear);
        self.parameters.insert(a_name, factors.a.shallow_clone());
        self.parameters.insert(b_name, factors.b.shallow_clone());
        let site = linear.site.0;
        if self.factors.len() <= site {
            self.factors.resize_with(site + 1, || None);
        }
        self.factors[site] = Some(factors);
        Ok(())
    }

    fn factors(&self, linear: &Linear) -> Option<&Factors> {
        self.factors.get(linear.site.0)?.as_ref()
    }
}

impl Adapter for Lora {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn peft_config(&self) -> Value {
        let alpha = self.settings.alpha;
        // PEFT declares alpha as a whole number.
        let alpha = if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.settings.base,
            "r": self.settings.rank,
            "lora_alpha": alpha,
            "lora_dropout": self.settings.dropout,
            "use_rslora": self.settings.rank_stabilised,
            "use_dora": false,
            "target_modules": self.targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "rank_pattern": {},
            "alpha_pattern": {},
        })
    }

    fn output(&self, linear: &Linear, x: &Tensor, y: Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let Some(Factors { a, b }) = self.factors(linear) else { return Ok(y) };
        let scale = self.settings.scale();
        match noise {
            Some(noise) if self.settings.dropout > 0.0 => {
                let mask = csrc::dropout_mask(x, self.settings.dropout, noise.at(&linear.name))?;
                csrc::add_low_rank(&y, &ops::multiply(x, &mask)?, a, b, scale)?;
            }
            _ => csrc::add_low_rank(&y, x, a, b, scale)?,
        }
        Ok(y)
    }

    fn fold(&self, linear: &Linear, weight: Tensor, bias: Option<Tensor>) -> Result<Folded> {
        let Some(Factors { a, b }) = self.factors(linear) else { return Ok(Folded { weight, bias }) };
        let change = ops::scale(&ops::matmul(b, a)?, self.settings.scale())?;
        let change = ops::to_device(&ops::to_kind(&change, weight.kind())?, weight.device())?;
        Ok(Folded { weight: ops::add(&weight, &change)?, bias })
    }
}

/// The linear layers that the targets name.
fn chosen<'a>(targets: &Targets, model: &'a Model) -> Result<Vec<&'a Linear>> {
    let modules = match_targets(targets, &model.architecture().linear_modules())
        .map_err(|error| EngineError::Config(error.to_string()))?;
    let find = |module: &LinearModule| {
        model.linears().find(|linear| linear.name == module.name).ok_or_else(|| {
            EngineError::Config(format!(
                "method.targets: an adapter on {} is not available in this version of Luthier; leave it out",
                module.name
            ))
        })
    };
    modules.iter().map(find).collect()
}

/// Names that PEFT stores the two factors under.
fn names(linear: &Linear) -> [String; 2] {
    ["lora_A", "lora_B"].map(|factor| format!("{PREFIX}{}.{factor}.weight", linear.name))
}

/// Reads `adapter_config.json`; what Luthier cannot do goes into `problems`.
fn settings(config: &Value, problems: &mut Vec<String>) -> Settings {
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let empty = |key: &str| match config.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::Object(entries)) => entries.is_empty(),
        Some(Value::Array(entries)) => entries.is_empty(),
        Some(_) => false,
    };
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => problems.push(format!(
            "its peft_type is {}, which this version of Luthier cannot use",
            luthier_core::text::clean_line(other)
        )),
        None => problems.push("adapter_config.json names no peft_type".into()),
    }
    for (found, what) in [
        (flag("use_dora"), "use_dora"),
        (flag("lora_bias"), "lora_bias"),
        (flag("fan_in_fan_out"), "fan_in_fan_out"),
        (flag("use_qalora"), "use_qalora"),
        (!empty("modules_to_save"), "modules_to_save"),
        (!empty("rank_pattern"), "rank_pattern"),
        (!empty("alpha_pattern"), "alpha_pattern"),
        (!empty("layer_replication"), "layer_replication"),
        (!empty("target_parameters"), "target_parameters"),
        (!empty("trainable_token_indices"), "trainable_token_indices"),
        (config.get("bias").and_then(Value::as_str).unwrap_or("none") != "none", "bias"),
    ] {
        if found {
            problems.push(format!("it uses {what}, which this version of Luthier cannot apply"));
        }
    }
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| (1..=65_536).contains(rank));
    if rank.is_none() {
        problems.push("adapter_config.json has no valid r".into());
    }
    let alpha = number("lora_alpha").filter(|alpha| alpha.is_finite());
    if alpha.is_none() {
        problems.push("adapter_config.json has no valid lora_alpha".into());
    }
    let dropout = number("lora_dropout").unwrap_or(0.0);
    if !(0.0..1.0).contains(&dropout) {
        problems.push(format!("lora_dropout is {dropout}"));
    }
    Settings {
        rank: rank.unwrap_or(1) as usize,
        alpha: alpha.unwrap_or(1.0),
        dropout,
        rank_stabilised: flag("use_rslora"),
        base: config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default().to_owned(),
    }
}
