//! Lists the contents of `tests/references`. Tests iterate over these lists, so that a new folder is compared
//! without an edit here.

use std::path::PathBuf;

use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::models::Model;
use serde_json::Value;
use tch::{Device, Kind};

use crate::support::{json, reference};

/// Names of the folders below `path`, sorted. `_tokenizers` and others with an underscore contain no model.
fn folders(path: &str) -> Vec<String> {
    let entries = std::fs::read_dir(reference(path)).unwrap().map(Result::unwrap);
    let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let mut names: Vec<String> =
        names.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('_')).collect();
    names.sort();
    names
}

/// Folders of `tiny`: a model of each family, with outputs of transformers.
pub fn families() -> Vec<String> {
    let found = folders("tiny");
    assert!(found.len() >= 12, "references are missing: {found:?}");
    found
}

/// Folders of `variants`: models with options that no model of `tiny` has.
pub fn variants() -> Vec<String> {
    let found = folders("variants");
    assert!(found.len() >= 15, "references are missing: {found:?}");
    found
}

/// Names of the GGUF files that llama.cpp's converter made from [`families`].
pub fn gguf_files() -> Vec<String> {
    let files = std::fs::read_dir(reference("gguf")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    found.sort();
    assert!(found.len() >= 10, "references are missing: {found:?}");
    found
}

/// A folder of `training/<family>`.
#[derive(Debug, Clone)]
pub struct Run {
    pub family: String,
    /// Relative to `tests/references`.
    pub folder: String,
}

/// Every training run whose loss is that of its own tokens, by transformers or PEFT.
pub fn runs() -> Vec<Run> {
    let found = runs_with("trajectory.json");
    assert!(found.len() >= 34, "references are missing: {found:?}");
    found
}

/// Every training run on preference pairs, by TRL.
pub fn preference_runs() -> Vec<Run> {
    let found = runs_with("dpo.json");
    assert!(!found.is_empty(), "references are missing");
    found
}

/// Every training run on labelled answers, by TRL.
pub fn label_runs() -> Vec<Run> {
    let found = runs_with("kto.json");
    assert!(!found.is_empty(), "references are missing");
    found
}

/// Every folder of `training/<family>` with a file of this name.
fn runs_with(file: &str) -> Vec<Run> {
    let mut found = Vec::new();
    for family in folders("training") {
        for name in folders(&format!("training/{family}")) {
            let run = Run::named(&family, &name);
            if run.has(file) {
                found.push(run);
            }
        }
    }
    found
}

impl Run {
    /// One particular run.
    pub fn named(family: &str, name: &str) -> Self {
        Self { family: family.to_owned(), folder: format!("training/{family}/{name}") }
    }

    /// A file or folder of the run.
    pub fn path(&self, name: &str) -> PathBuf {
        reference(&self.folder).join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub fn json(&self, name: &str) -> Value {
        json(&format!("{}/{name}", self.folder))
    }

    /// Whether PEFT computed the prefix with a trained network, which a stored adapter does not contain.
    pub fn is_projected(&self) -> bool {
        self.has("adapter-init") && self.json("adapter-init/adapter_config.json")["prefix_projection"] == true
    }

    /// The base model of the run.
    pub fn base(&self) -> Model {
        let quantised = self.has("dequant_layer0.safetensors");
        let quantisation = if quantised { Quantisation::Nf4 } else { Quantisation::None };
        open(&self.family, Kind::Float, quantisation)
    }
}

/// A model of `tiny`.
pub fn open(family: &str, kind: Kind, quantisation: Quantisation) -> Model {
    let files = ModelFiles::open(&reference(&format!("tiny/{family}"))).unwrap();
    Model::load(&files, Device::Cpu, kind, quantisation).unwrap()
}
