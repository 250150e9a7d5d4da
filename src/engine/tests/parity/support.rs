//! Stored references, and forward passes over them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_core::config::{Config, MethodSection, Targets};
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::layers::{Active, Adapter, Folded, Form, Linear, Mask, Parameters, Pass};
use luthier_engine::methods::LoraMethod;
use luthier_engine::models::Model;
use luthier_engine::weights::safetensors;
use tch::{Device, Kind, Tensor};

use crate::references::open;

/// A folder below `tests/references`.
pub fn reference(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references")).join(path)
}

/// The tensors of a reference file.
pub fn tensors(path: &str) -> BTreeMap<String, Tensor> {
    safetensors::read(&reference(path)).unwrap()
}

/// A reference JSON file.
pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(reference(path)).unwrap()).unwrap()
}

/// The tiny model in a given type.
pub fn tiny(kind: Kind) -> Model {
    open("llama", kind, Quantisation::None)
}

/// Writes a copy of a tiny model to a new folder, with its weights rounded to bf16.
pub fn in_bf16(family: &str, folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(reference(&format!("tiny/{family}/{name}")), folder.join(name)).unwrap();
    }
    let rounded: BTreeMap<String, Tensor> = tensors(&format!("tiny/{family}/model.safetensors"))
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_kind(Kind::BFloat16)))
        .collect();
    let named = rounded.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.join("model.safetensors"), named).unwrap();
}

/// Copies the files of one folder into another.
pub fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A folder of `tests/references/variants` with the tokenizer that every model folder needs.
pub fn with_tokenizer(variant: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_files(&reference("tiny/_tokenizers/bytelevel"), folder.path());
    copy_files(&reference(&format!("variants/{variant}")), folder.path());
    folder
}

/// A model of `tests/references/variants`. Its files are deleted with the returned folder.
pub fn variant(name: &str) -> (Model, tempfile::TempDir) {
    let folder = with_tokenizer(name);
    let files = ModelFiles::open(folder.path()).unwrap();
    (Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap(), folder)
}

/// Plain LoRA on the layers with these names; on all layers if there are none.
pub fn lora(rank: usize, targets: &[&str]) -> LoraMethod {
    let targets = match targets {
        [] => Targets::AllLinear,
        names => Targets::Names(names.iter().map(|&name| name.to_owned()).collect()),
    };
    let method = MethodSection { rank, alpha: 16.0, targets, ..Config::default().method };
    LoraMethod::from_config(&method, "llama".as_ref())
}

/// The `adapter_config.json` of a stored adapter.
pub fn peft_config(adapter: &dyn Adapter) -> serde_json::Value {
    match adapter.form() {
        Form::Peft(config) => config,
        Form::Model(files) => panic!("a model as {}", files.root.display()),
    }
}

/// The base model's linear layers in dense form, with an adapter folded into them if there is one.
pub struct Merged {
    weights: Parameters,
    nothing: Parameters,
}

impl Merged {
    pub fn of(adapter: Option<&dyn Adapter>, model: &Model) -> Self {
        let mut weights = Parameters::new();
        for linear in model.linears() {
            let Folded { weight, bias } = linear.folded(adapter, Kind::Float).unwrap();
            weights.insert(format!("{}.weight", linear.name), weight);
            weights.extend(bias.map(|bias| (format!("{}.bias", linear.name), bias)));
        }
        Self { weights, nothing: Parameters::new() }
    }
}

impl Adapter for Merged {
    fn parameters(&self) -> &Parameters {
        &self.nothing
    }

    fn form(&self) -> Form {
        Form::Peft(serde_json::Value::Null)
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.weights.get(tensor)
    }

    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        self.weights.get(&format!("{}.weight", linear.name))
    }

    fn shares_product(&self, _: &Linear) -> bool {
        false
    }
}

/// `[rows, width]` with each column's index.
pub fn columns(rows: i64, width: i64) -> Tensor {
    Tensor::arange(width, (Kind::Int64, Device::Cpu)).unsqueeze(0).repeat([rows, 1])
}

/// Hidden states of rows that are documents, or are padded on the right.
pub fn hidden(model: &Model, ids: &Tensor, adapters: Active) -> Tensor {
    let (rows, width) = ids.size2().unwrap();
    let positions = columns(rows, width);
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
    model.hidden(ids, &pass, None).unwrap()
}

/// Logits for the same input as [`hidden`].
pub fn logits(model: &Model, ids: &Tensor, adapters: Active) -> Tensor {
    model.logits(&hidden(model, ids, adapters), adapters).unwrap()
}

/// Largest difference in f32.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
}

/// Largest difference where `mask` `[B, T]` is 1, over `[B, T, …]`.
pub fn distance_where(mask: &Tensor, a: &Tensor, b: &Tensor) -> f64 {
    let counts = mask.to_kind(Kind::Bool);
    let pick = |x: &Tensor| x.index(&[Some(&counts)]);
    distance(&pick(a), &pick(b))
}

/// The most likely tokens after `prompt`, each computed from the whole sequence.
pub fn greedy_without_cache(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let _guard = tch::no_grad_guard();
    let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    for _ in 0..count {
        let all = logits(model, &Tensor::from_slice(&ids).unsqueeze(0), Active::Base);
        ids.push(all.get(0).get(-1).argmax(-1, false).int64_value(&[]));
    }
    ids[prompt.len()..].iter().map(|&id| id as u32).collect()
}

/// Logits of `ids` `[B, T]`, computed in parts through a cache.
pub fn logits_in_pieces(model: &Model, ids: &Tensor, pieces: &[i64]) -> Tensor {
    let _guard = tch::no_grad_guard();
    let (rows, width) = ids.size2().unwrap();
    let positions = columns(rows, width);
    let mut cache = model.cache(rows as usize);
    let mut start = 0;
    let parts: Vec<Tensor> = pieces
        .iter()
        .map(|&length| {
            let here = positions.narrow(1, start, length);
            let pass = Pass { positions: &here, mask: Mask::Causal, adapters: Active::Base, noise: None };
            let part = model.hidden(&ids.narrow(1, start, length), &pass, Some(&mut cache)).unwrap();
            start += length;
            model.logits(&part, Active::Base).unwrap()
        })
        .collect();
    assert_eq!(cache.lengths(), vec![width; rows as usize]);
    Tensor::cat(&parts, 1)
}

/// Relative difference from the expected number.
pub fn relative(ours: f64, expected: f64) -> f64 {
    (ours - expected).abs() / expected.abs().max(1e-12)
}

/// The largest difference between parameters of the same names.
pub fn furthest(ours: &Parameters, expected: &Parameters) -> f64 {
    assert!(ours.keys().eq(expected.keys()));
    ours.values().zip(expected.values()).map(|(a, b)| distance(a, b)).fold(0.0, f64::max)
}

/// A tensor of ids in the form that generation takes.
pub fn ids(tensor: &Tensor) -> Vec<u32> {
    Vec::<i64>::try_from(tensor).unwrap().into_iter().map(|id| u32::try_from(id).unwrap()).collect()
}
