//! Adapter folders as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`
//! (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use luthier_core::model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use luthier_core::model::safetensors::Dtype;
use luthier_core::model::{AdapterFiles, families};
use serde_json::{Map, Value};
use tch::Tensor;

use crate::error::{EngineError, Result};
use crate::layers::Parameters;
use crate::models::Model;
use crate::ops;
use crate::weights::safetensors::{self, Stored};

/// PEFT's prefix of module names.
pub(super) const PREFIX: &str = "base_model.model.";

/// Keys that do not affect what an adapter computes.
const DESCRIPTIVE: [&str; 7] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
];

/// Writes an adapter folder, which is created if it is missing.
pub(super) fn save(folder: &Path, config: &Value, parameters: &Parameters) -> Result<()> {
    let failed = |path: &Path, source| EngineError::File { action: "write", path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let path = folder.join(CONFIG_FILE);
    fs::write(&path, format!("{config:#}\n")).map_err(|source| failed(&path, source))?;
    let tensors = parameters.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.join(WEIGHTS_FILE), tensors)
}

/// An `adapter_config.json`, with the problems found in it.
pub(super) struct PeftConfig {
    values: Map<String, Value>,
    /// Older names that it may use for modules: [`families::older_names`].
    older: &'static [(&'static str, &'static str)],
    pub problems: Vec<String>,
}

/// Opens an adapter folder for `model`: its settings and its tensors, which are read only on request. Module
/// names are converted to those of `model`.
pub(super) fn open(folder: &Path, model: &Model) -> Result<(PeftConfig, Weights)> {
    let AdapterFiles { config, mut tensors, weights, .. } = AdapterFiles::open(folder)?;
    let older = families::older_names(model.architecture().family);
    for tensor in &mut tensors {
        let Some(name) = tensor.name.strip_prefix(PREFIX) else { continue };
        if let Some(newer) = newer_name(name, older) {
            tensor.name = format!("{PREFIX}{newer}");
        }
    }
    let stored = Stored::new(&folder.join(WEIGHTS_FILE), weights, tensors);
    let left = stored.names().map(str::to_owned).collect();
    let config = PeftConfig { values: config, older, problems: Vec::new() };
    Ok((config, Weights { stored, left, problems: Vec::new() }))
}

/// Converts the older name of a module, or of something in it; `None` if it is not an older one.
fn newer_name(name: &str, older: &[(&str, &str)]) -> Option<String> {
    older.iter().find_map(|(here, older)| families::under_name(name, older, here))
}

pub(super) fn peft_type(folder: &Path) -> Result<Option<String>> {
    let config = AdapterFiles::open(folder)?.config;
    Ok(config.get("peft_type").and_then(Value::as_str).map(str::to_owned))
}

/// The error for a folder that cannot be used.
pub(super) fn refusal(folder: &Path, problems: Vec<String>) -> EngineError {
    EngineError::Adapter { path: folder.to_owned(), problems }
}

impl PeftConfig {
    /// Adds a problem for everything that cannot be applied: a `peft_type` other than `peft_type`, a task
    /// other than language modelling, and every key that has a value and is not in `known`. PEFT adds keys
    /// with each version, and an adapter that needs one of them would compute something else without it.
    pub fn check(&mut self, peft_type: &str, known: &[&str]) {
        let found = self.peft_type().map(str::to_owned);
        match found.as_deref() {
            Some(found) if found == peft_type => {}
            Some(other) => self.problem(format!(
                "its peft_type is {}, but {peft_type} is needed",
                luthier_core::text::clean_line(other)
            )),
            None => self.problem(format!("{CONFIG_FILE} has no peft_type")),
        }
        if let Some(task) = self.text("task_type").filter(|task| *task != "CAUSAL_LM") {
            let task = luthier_core::text::clean_line(task).into_owned();
            self.problem(format!("its task_type is {task}, but CAUSAL_LM is needed"));
        }
        let unknown: Vec<String> = self
            .values
            .iter()
            .filter(|(key, value)| {
                !is_nothing(value) && ![known, &DESCRIPTIVE].concat().contains(&key.as_str())
            })
            .map(|(key, _)| luthier_core::text::clean_line(key).into_owned())
            .collect();
        for key in unknown {
            self.problem(format!("it uses {key}, which this version of Luthier cannot apply"));
        }
    }

    /// Adds a problem of the adapter.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    pub fn peft_type(&self) -> Option<&str> {
        self.text("peft_type")
    }

    /// A value; `None` if it is missing or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_str()
    }

    /// A flag; false if it is missing.
    pub fn flag(&self, key: &str) -> bool {
        self.value(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A list of strings, or a single string. Other elements are a problem.
    pub fn names(&mut self, key: &str) -> Vec<String> {
        let read = match self.value(key) {
            None => Some(Vec::new()),
            Some(Value::String(name)) => Some(vec![name.clone()]),
            Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        let newer = |name: String| newer_name(&name, self.older).unwrap_or(name);
        let read = read.map(|names| names.into_iter().map(newer).collect());
        read.unwrap_or_else(|| {
            self.problem(format!("{CONFIG_FILE} has no valid {key}"));
            Vec::new()
        })
    }

    /// An integer within bounds. If it is missing or invalid, that is a problem, and `least` is returned.
    pub fn size(&mut self, key: &str, least: usize, most: usize) -> usize {
        let found = self.value(key).and_then(Value::as_u64).and_then(|value| usize::try_from(value).ok());
        found.filter(|value| (least..=most).contains(value)).unwrap_or_else(|| {
            self.problem(format!("{CONFIG_FILE} has no valid {key}"));
            least
        })
    }

    /// A finite number. If it is missing or invalid, that is a problem, and 1 is returned.
    pub fn number(&mut self, key: &str) -> f64 {
        let found = self.value(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        found.unwrap_or_else(|| {
            self.problem(format!("{CONFIG_FILE} has no valid {key}"));
            1.0
        })
    }

    pub fn base(&self) -> String {
        self.text("base_model_name_or_path").unwrap_or_default().to_owned()
    }
}

/// Whether a value switches an option of PEFT off.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(entries) => entries.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The weights of an adapter folder, taken one by one.
pub(super) struct Weights {
    stored: Stored,
    /// Tensors that were not taken yet.
    left: BTreeSet<String>,
    pub problems: Vec<String>,
}

impl Weights {
    /// Takes the tensor of this name; `None` if it is missing. A wrong shape, a type that is not
    /// floating-point, or a value that is not finite adds a problem and gives `None`. Shape and type are
    /// checked before reading, because a file may claim any size.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        self.left.remove(name);
        let Some(entry) = self.stored.entry(name) else { return Ok(None) };
        let problem = if !same_shape(&entry.shape, shape) {
            format!("{name} is {:?}, but needs {shape:?}", entry.shape)
        } else if !matches!(entry.dtype, Dtype::Weight(_)) {
            format!("{name} has elements of type {}", entry.dtype.name())
        } else {
            let tensor = self.stored.read(name)?;
            if ops::all_finite(&tensor)? {
                return Ok(Some(tensor));
            }
            format!("{name} contains numbers that are not finite")
        };
        self.problems.push(problem);
        Ok(None)
    }

    /// As [`Weights::take`], for a tensor that must exist.
    pub fn need(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        if !self.has(name) {
            self.problems.push(format!("{name} is missing"));
        }
        self.take(name, shape)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.stored.entry(name).map(|entry| entry.shape.as_slice())
    }

    pub fn has(&self, name: &str) -> bool {
        self.stored.entry(name).is_some()
    }

    /// All problems, with the tensors that were not taken.
    pub fn finish(mut self, config: PeftConfig) -> Vec<String> {
        let mut problems = config.problems;
        problems.append(&mut self.problems);
        problems.extend(
            self.left.iter().map(|name| {
                format!("{} does not belong to this adapter", luthier_core::text::clean_line(name))
            }),
        );
        problems
    }
}

/// Whether a shape in a file equals the required one.
pub(super) fn same_shape(found: &[usize], wanted: &[i64]) -> bool {
    found.len() == wanted.len()
        && found.iter().zip(wanted).all(|(&found, &wanted)| i64::try_from(found) == Ok(wanted))
}
