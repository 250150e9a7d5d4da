//! IA3 (arXiv 2205.05638): trained scales on the outputs of chosen linear layers, and on the inputs of the
//! feed-forward part's last layers.

use std::path::{Path, PathBuf};

use luthier_core::config::{Bias, MethodSection, Targets};
use luthier_core::model::trained::{Copied, ScaledLayer, copied_tensors, scaled_layers};
use luthier_core::model::{LinearModule, hub};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::copies::Copies;
use super::peft::{self, PREFIX};
use super::{Method, linear_of, names_of, trained, wrong_targets};
use crate::error::Result;
use crate::layers::{Adapter, Folded, Form, Linear, Noise, Parameters};
use crate::models::Model;
use crate::ops;

/// PEFT's name for it.
pub(super) const PEFT_TYPE: &str = "IA3";

/// The keys of PEFT's `IA3Config` that are applied, or whose effect can be read from the weights.
const KNOWN: [&str; 6] = [
    "exclude_modules",
    "fan_in_fan_out",
    "feedforward_modules",
    "init_ia3_weights",
    "modules_to_save",
    "target_modules",
];

/// Settings of new IA3 scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Ia3Method {
    /// Which linear layers are scaled; see [`scaled_layers`].
    pub targets: Targets,
    /// Modules that are trained as a whole.
    pub modules_to_save: Vec<String>,
    /// Written to `base_model_name_or_path`.
    pub base: PathBuf,
}

impl Ia3Method {
    /// From `[method]`; `base` is the base model's path.
    pub fn from_config(method: &MethodSection, base: &Path) -> Self {
        let (targets, modules_to_save) = (method.targets.clone(), method.modules_to_save.clone());
        Self { targets, modules_to_save, base: base.to_owned() }
    }
}

impl Method for Ia3Method {
    /// Scales of 1: a new adapter changes nothing.
    fn create(&self, model: &Model, _: u64) -> Result<Box<dyn Adapter>> {
        let layers =
            scaled_layers(&self.targets, model.architecture()).map_err(|error| wrong_targets(&error))?;
        let targets: Vec<LinearModule> = layers.iter().map(|layer| layer.module.clone()).collect();
        let copied = copied_tensors(&self.modules_to_save, Bias::None, &targets, model.architecture())
            .map_err(|error| wrong_targets(&error))?;
        let copies = Copies::of_files(model.files(), &copied, model, stored_name)?;
        let mut ia3 = Ia3::empty(self.modules_to_save.clone(), hub::public_name(&self.base), copies, model);
        for ScaledLayer { module, input } in &layers {
            let linear = linear_of(module, model)?;
            let ones = ops::ones(&shape(linear, *input), Kind::Float, model.device())?;
            ia3.insert(linear, &ones, *input, model)?;
        }
        ia3.name_targets(model);
        Ok(Box::new(ia3))
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Ia3::load(folder, model).map(super::boxed)
    }
}

/// IA3 scales of one model.
#[derive(Debug)]
pub struct Ia3 {
    /// By site; shares memory with `parameters`.
    scales: Vec<Option<Scale>>,
    /// Names of all scaled layers, and of those whose input is scaled.
    targets: [Vec<String>; 2],
    modules_to_save: Vec<String>,
    copies: Copies,
    transposed: bool,
    base: String,
    parameters: Parameters,
}

#[derive(Debug)]
struct Scale {
    /// `[1, in]` for an input, `[out, 1]` for an output.
    leaf: Tensor,
    input: bool,
}

impl Ia3 {
    fn empty(modules_to_save: Vec<String>, base: String, copies: Copies, model: &Model) -> Self {
        let parameters = copies.parameters().collect();
        let transposed = model.architecture().transposed;
        let (scales, targets) = (Vec::new(), [Vec::new(), Vec::new()]);
        Self { scales, targets, modules_to_save, copies, transposed, base, parameters }
    }

    /// Reads a PEFT folder. All problems are reported at once.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let (mut config, mut weights) = peft::open(folder, model)?;
        config.check(PEFT_TYPE, &KNOWN);
        let modules_to_save = config.names("modules_to_save");
        let targets: Vec<LinearModule> = model
            .architecture()
            .linear_modules()
            .into_iter()
            .filter(|module| weights.has(&scale_name(&module.name)))
            .collect();
        let wanted = copied_tensors(&modules_to_save, Bias::None, &targets, model.architecture())
            .unwrap_or_else(|error| {
                config.problem(error.to_string());
                Vec::new()
            });
        let copies = Copies::take(&wanted, &mut weights, model, stored_name)?;
        let mut ia3 = Self::empty(modules_to_save, config.base(), copies, model);
        for module in &targets {
            let linear = linear_of(module, model)?;
            // PEFT gives the scales their shape by `feedforward_modules`.
            let name = scale_name(&linear.name);
            let input =
                weights.shape(&name).is_some_and(|found| peft::same_shape(found, &shape(linear, true)));
            let found = weights.take(&name, &shape(linear, input))?;
            if let Some(found) = found.filter(|_| weights.problems.is_empty()) {
                ia3.insert(linear, &found, input, model)?;
            }
        }
        if targets.is_empty() {
            config.problem("it has no scales".into());
        }
        let problems = weights.finish(config);
        if !problems.is_empty() {
            return Err(peft::refusal(folder, problems));
        }
        ia3.name_targets(model);
        Ok(ia3)
    }

    fn insert(&mut self, linear: &Linear, values: &Tensor, input: bool, model: &Model) -> Result<()> {
        let leaf = trained(values, model)?;
        self.parameters.insert(scale_name(&linear.name), leaf.shallow_clone());
        let site = linear.site.0;
        if self.scales.len() <= site {
            self.scales.resize_with(site + 1, || None);
        }
        self.scales[site] = Some(Scale { leaf, input });
        Ok(())
    }

    fn name_targets(&mut self, model: &Model) {
        self.targets = [
            names_of(model, &|linear| self.scale(linear).is_some()),
            names_of(model, &|linear| self.scale(linear).is_some_and(|scale| scale.input)),
        ];
    }

    fn scale(&self, linear: &Linear) -> Option<&Scale> {
        self.scales.get(linear.site.0)?.as_ref()
    }

    fn config(&self) -> Value {
        let [targets, feedforward] = &self.targets;
        let saved = &self.modules_to_save;
        json!({
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "target_modules": targets,
            "feedforward_modules": feedforward,
            "fan_in_fan_out": self.transposed,
            "inference_mode": true,
            "init_ia3_weights": true,
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        })
    }
}

impl Adapter for Ia3 {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        Form::Peft(self.config())
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.copies.get(tensor)
    }

    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        self.copies.weight(linear)
    }

    fn shares_product(&self, linear: &Linear) -> bool {
        self.weight(linear).is_none()
            && self.copies.get(linear.tensors()[1]).is_none()
            && !self.scale(linear).is_some_and(|scale| scale.input)
    }

    fn input(&self, linear: &Linear, x: &Tensor) -> Result<Option<Tensor>> {
        let scale = self.scale(linear).filter(|scale| scale.input);
        scale.map(|scale| scaled(x, &ops::reshape(&scale.leaf, &[-1])?)).transpose()
    }

    fn output(&self, linear: &Linear, _: &Tensor, y: Tensor, _: Option<&Noise>) -> Result<Tensor> {
        match self.scale(linear).filter(|scale| !scale.input) {
            Some(scale) => scaled(&y, &ops::reshape(&scale.leaf, &[-1])?),
            None => Ok(y),
        }
    }

    fn fold(&self, linear: &Linear, weight: Tensor, bias: Option<Tensor>) -> Result<Folded> {
        let Some(scale) = self.scale(linear) else { return Ok(Folded { weight, bias }) };
        // Rows of the weight give outputs, columns take inputs.
        let leaf = ops::to_device(&scale.leaf, weight.device())?;
        let bias = match bias {
            Some(bias) if !scale.input => Some(scaled(&bias, &ops::reshape(&leaf, &[-1])?)?),
            other => other,
        };
        Ok(Folded { weight: scaled(&weight, &leaf)?, bias })
    }
}

/// `x` times f32 scales, rounded to the type of `x` once.
fn scaled(x: &Tensor, scales: &Tensor) -> Result<Tensor> {
    ops::to_kind(&ops::multiply(x, scales)?, x.kind())
}

/// The shape that PEFT stores a layer's scales in.
fn shape(linear: &Linear, input: bool) -> [i64; 2] {
    if input { [1, linear.in_features as i64] } else { [linear.out_features as i64, 1] }
}

fn scale_name(module: &str) -> String {
    format!("{PREFIX}{module}.ia3_l")
}

fn stored_name(copied: &Copied) -> String {
    format!("{PREFIX}{}", copied.tensor())
}
