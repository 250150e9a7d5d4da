//! Methods and their adapters: a method turns settings into an adapter, and an adapter changes what linear
//! layers compute.

mod copies;
pub mod full;
pub mod ia3;
pub mod lora;
mod peft;
pub mod prefix;
pub mod prompt;

use std::path::Path;

use luthier_core::config::{Config, MethodKind};
use luthier_core::model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use luthier_core::model::{LinearModule, TargetError};
use luthier_core::random;
use luthier_core::runs::ResultForm;
use tch::{Kind, Tensor};

pub use full::FullMethod;
pub use ia3::Ia3Method;
pub use lora::LoraMethod;
pub use prefix::PrefixMethod;
pub use prompt::PromptMethod;

use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Form, Linear, Parameters};
use crate::models::Model;
use crate::weights::safetensors::Stored;
use crate::{csrc, ops};

/// A method of fine-tuning: creates and loads adapters. One file each.
pub trait Method: Sync {
    /// A new adapter for `model`. The same seed gives the same adapter.
    fn create(&self, model: &Model, seed: u64) -> Result<Box<dyn Adapter>>;

    /// Reads an adapter of this method from its folder, to train it further. All mismatches with `model` are
    /// reported at once.
    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>>;
}

pub fn method_of(config: &Config) -> Box<dyn Method> {
    let (method, base) = (&config.method, Path::new(&config.model.path));
    match method.kind {
        MethodKind::Full => Box::new(FullMethod),
        MethodKind::Lora | MethodKind::Qlora => Box::new(LoraMethod::from_config(method, base)),
        MethodKind::Ia3 => Box::new(Ia3Method::from_config(method, base)),
        MethodKind::Prefix => Box::new(PrefixMethod::from_config(method, base)),
        MethodKind::Prompt => Box::new(PromptMethod::from_config(method, base)),
    }
}

/// Reads an adapter of any method from a folder written by a run or by PEFT, to use it.
pub fn load(folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
    let refused = |problem: String| EngineError::Adapter { path: folder.to_owned(), problems: vec![problem] };
    match ResultForm::of(folder) {
        Some(ResultForm::Model) => full::Full::to_use(folder, model).map(boxed),
        Some(ResultForm::Adapter) => match peft::peft_type(folder)?.as_deref() {
            Some(lora::PEFT_TYPE) => lora::Lora::load(folder, model).map(boxed),
            Some(ia3::PEFT_TYPE) => ia3::Ia3::load(folder, model).map(boxed),
            Some(prefix::PEFT_TYPE) => prefix::Prefix::load(folder, model).map(boxed),
            Some(prompt::PEFT_TYPE) => prompt::Prompt::load(folder, model).map(boxed),
            Some(other) => Err(refused(format!(
                "its peft_type is {}, which this version of Luthier cannot use",
                luthier_core::text::clean_line(other)
            ))),
            None => Err(refused(format!("{CONFIG_FILE} has no peft_type"))),
        },
        None => {
            Err(refused(format!("there is neither an {CONFIG_FILE} nor a config.json with weights in it")))
        }
    }
}

fn boxed(adapter: impl Adapter + 'static) -> Box<dyn Adapter> {
    Box::new(adapter)
}

/// What a written folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To continue exactly from here: f32.
    Checkpoint,
    /// For use: the weights of a whole model are written in the types of the base's files.
    Result,
}

/// Writes an adapter to a folder, which is created if it is missing: a PEFT folder, or a model folder like
/// the base's.
pub fn save(adapter: &dyn Adapter, folder: &Path, purpose: Purpose) -> Result<()> {
    save_as(&adapter.form(), adapter.parameters(), folder, purpose)
}

/// As [`save`], of an adapter of this form with these parameters.
pub fn save_as(form: &Form, parameters: &Parameters, folder: &Path, purpose: Purpose) -> Result<()> {
    match form {
        Form::Peft(config) => peft::save(folder, config, parameters),
        Form::Model(files) => full::save(folder, files, parameters, purpose),
    }
}

/// Sets an adapter's parameters to those that [`save`] wrote, in place: no second copy on the device.
pub fn restore(adapter: &dyn Adapter, folder: &Path) -> Result<()> {
    let name = match adapter.form() {
        Form::Peft(_) => WEIGHTS_FILE,
        Form::Model(_) => full::WEIGHTS,
    };
    let stored = Stored::open(&folder.join(name))?;
    let parameters = adapter.parameters();
    let unlike = parameters.iter().filter(|(name, parameter)| {
        stored.entry(name).is_none_or(|entry| !peft::same_shape(&entry.shape, &parameter.size()))
    });
    let problems: Vec<String> =
        unlike.map(|(name, parameter)| format!("{name} {:?} is missing", parameter.size())).collect();
    if !problems.is_empty() {
        return Err(peft::refusal(folder, problems));
    }
    for (name, parameter) in parameters {
        ops::copy_into(&mut parameter.shallow_clone(), &stored.read(name)?)?;
        if let Some(copy) = adapter.working().and_then(|working| working.get(name)) {
            copy.write(parameter)?;
        }
    }
    Ok(())
}

/// A trained parameter with these values, an f32 leaf on the model's device.
fn trained(values: &Tensor, model: &Model) -> Result<Tensor> {
    let single = ops::to_kind(&ops::contiguous(values)?, Kind::Float)?;
    ops::leaf(&ops::to_device(&single, model.device())?)
}

/// Normally distributed random numbers with mean 0 and standard deviation 1, the initial values of
/// `torch.nn.Embedding`.
fn normal(shape: &[i64], seed: u64) -> Result<Tensor> {
    csrc::fill::<f32>(shape, |values| {
        for (index, value) in values.iter_mut().enumerate() {
            *value = random::normal(random::derive(seed, index as u64)) as f32;
        }
        Ok(())
    })
}

/// The model's layer with this name.
fn linear_of<'a>(module: &LinearModule, model: &'a Model) -> Result<&'a Linear> {
    model.linears().find(|linear| linear.name == module.name).ok_or_else(|| {
        EngineError::Config(format!("method.targets: this model has no layer {}", module.name))
    })
}

/// The error of `method.targets` or `method.modules_to_save`.
fn wrong_targets(error: &TargetError) -> EngineError {
    EngineError::Config(error.to_string())
}

/// Names that match exactly the layers for which `is_chosen` is true, by PEFT's rules: the last part of a
/// layer's name, if that matches no other layer.
fn names_of(model: &Model, is_chosen: &dyn Fn(&Linear) -> bool) -> Vec<String> {
    let last_part = |linear: &Linear| linear.name.rsplit('.').next().unwrap_or_default().to_owned();
    let spared: Vec<String> = model.linears().filter(|linear| !is_chosen(linear)).map(last_part).collect();
    let chosen = model.linears().filter(|linear| is_chosen(linear));
    let names = chosen.map(|linear| {
        let short = last_part(linear);
        if spared.contains(&short) { linear.name.clone() } else { short }
    });
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}
