//! Adapter folders as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`
//! (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;
use tch::{Kind, Tensor};

use super::Parameters;
use crate::error::{EngineError, Result};
use crate::ops;
use crate::weights::safetensors;

/// What PEFT puts before module names.
pub(super) const PREFIX: &str = "base_model.model.";

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Largest `adapter_config.json` that is read.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Keys that say nothing about what an adapter computes.
const DESCRIPTIVE: [&str; 7] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
];

/// Writes an adapter folder; makes the folder where it is missing.
pub(super) fn save(folder: &Path, config: &Value, parameters: &Parameters) -> Result<()> {
    let failed = |path: &Path, source| EngineError::File { action: "write", path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let path = folder.join(CONFIG);
    fs::write(&path, format!("{config:#}\n")).map_err(|source| failed(&path, source))?;
    let tensors = parameters.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.join(WEIGHTS), tensors)
}

/// An `adapter_config.json`, with what cannot be done of it.
pub(super) struct PeftConfig {
    values: Value,
    pub problems: Vec<String>,
}

/// Reads an `adapter_config.json`.
pub(super) fn read_config(folder: &Path) -> Result<PeftConfig> {
    let path = folder.join(CONFIG);
    let failed = |source| EngineError::File { action: "read", path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST_CONFIG {
        return Err(failed(io::Error::other("it is no ordinary file, or too large")));
    }
    let values: Value = serde_json::from_slice(&fs::read(&path).map_err(failed)?)
        .map_err(|error| refusal(folder, vec![format!("{CONFIG}: {error}")]))?;
    if !values.is_object() {
        return Err(refusal(folder, vec![format!("{CONFIG} holds no object")]));
    }
    Ok(PeftConfig { values, problems: Vec::new() })
}

/// The error of a folder that cannot be used.
pub(super) fn refusal(folder: &Path, problems: Vec<String>) -> EngineError {
    EngineError::Adapter { path: folder.to_owned(), problems }
}

impl PeftConfig {
    /// Says what of it cannot be applied: a `peft_type` other than `peft_type`, a task other than language modelling, and
    /// every key that is neither in `known` nor set to nothing. PEFT grows new ones with each version, and an adapter that
    /// needs one of them would compute something else without it.
    pub fn check(&mut self, peft_type: &str, known: &[&str]) {
        let found = self.peft_type().map(str::to_owned);
        match found.as_deref() {
            Some(found) if found == peft_type => {}
            Some(other) => self.problem(format!(
                "its peft_type is {}, where {peft_type} is wanted",
                luthier_core::text::clean_line(other)
            )),
            None => self.problem(format!("{CONFIG} names no peft_type")),
        }
        if let Some(task) = self.text("task_type").filter(|task| *task != "CAUSAL_LM") {
            let task = luthier_core::text::clean_line(task).into_owned();
            self.problem(format!("its task_type is {task}, where CAUSAL_LM is wanted"));
        }
        let unknown: Vec<String> = self
            .values
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| {
                !is_nothing(value) && ![known, &DESCRIPTIVE].concat().contains(&key.as_str())
            })
            .map(|(key, _)| luthier_core::text::clean_line(key).into_owned())
            .collect();
        for key in unknown {
            self.problem(format!("it uses {key}, which this version of Luthier cannot apply"));
        }
    }

    /// Something that is wrong with the adapter.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// `peft_type`.
    pub fn peft_type(&self) -> Option<&str> {
        self.text("peft_type")
    }

    /// A value; `None` where it is missing or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_str()
    }

    /// A flag; false where there is none.
    pub fn flag(&self, key: &str) -> bool {
        self.value(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A list of texts, or one; a list of anything else is a problem.
    pub fn names(&mut self, key: &str) -> Vec<String> {
        let read = match self.value(key) {
            None => Some(Vec::new()),
            Some(Value::String(name)) => Some(vec![name.clone()]),
            Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        read.unwrap_or_else(|| {
            self.problem(format!("{CONFIG} has no valid {key}"));
            Vec::new()
        })
    }

    /// A whole number within bounds; a missing or other one is a problem, and `least` stands for it.
    pub fn size(&mut self, key: &str, least: usize, most: usize) -> usize {
        let found = self.value(key).and_then(Value::as_u64).and_then(|value| usize::try_from(value).ok());
        found.filter(|value| (least..=most).contains(value)).unwrap_or_else(|| {
            self.problem(format!("{CONFIG} has no valid {key}"));
            least
        })
    }

    /// A finite number; a missing or other one is a problem, and 1 stands for it.
    pub fn number(&mut self, key: &str) -> f64 {
        let found = self.value(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        found.unwrap_or_else(|| {
            self.problem(format!("{CONFIG} has no valid {key}"));
            1.0
        })
    }

    /// `base_model_name_or_path`.
    pub fn base(&self) -> String {
        self.text("base_model_name_or_path").unwrap_or_default().to_owned()
    }
}

/// The values that switch an option of PEFT off.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(entries) => entries.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The weights of an adapter folder, taken out one by one.
pub(super) struct Weights {
    tensors: Parameters,
    pub problems: Vec<String>,
}

/// Reads the weights of an adapter folder.
pub(super) fn read_weights(folder: &Path) -> Result<Weights> {
    let path = folder.join(WEIGHTS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        let problem = "adapter_model.bin is a pickle file, which can run code when it is read; convert it to \
                       adapter_model.safetensors with PEFT";
        return Err(refusal(folder, vec![problem.into()]));
    }
    Ok(Weights { tensors: safetensors::read(&path)?, problems: Vec::new() })
}

impl Weights {
    /// Takes a tensor of this name, and says what is wrong with it where it is not of `shape`, of floats and finite.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        if tensor.size() != shape {
            self.problems.push(format!("{name} is {:?}, but needs {shape:?}", tensor.size()));
        } else if !matches!(tensor.kind(), Kind::Float | Kind::Half | Kind::BFloat16) {
            self.problems.push(format!("{name} has elements of type {:?}", tensor.kind()));
        } else if !ops::all_finite(&tensor)? {
            self.problems.push(format!("{name} holds numbers that are not finite"));
        }
        Ok(Some(tensor))
    }

    /// As [`Weights::take`], of a tensor that must be there.
    pub fn need(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        let found = self.take(name, shape)?;
        if found.is_none() {
            self.problems.push(format!("{name} is missing"));
        }
        Ok(found)
    }

    /// The shape of the tensor of this name.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Tensor::size)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All that is wrong, with the tensors that nobody took.
    pub fn finish(mut self, config: PeftConfig) -> Vec<String> {
        let mut problems = config.problems;
        problems.append(&mut self.problems);
        problems.extend(self.tensors.keys().map(|name| {
            format!("{} belongs to nothing that is trained here", luthier_core::text::clean_line(name))
        }));
        problems
    }
}
