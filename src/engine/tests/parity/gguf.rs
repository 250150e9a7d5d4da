//! Compares GGUF files that llama.cpp's converter made from the tiny models with the folders of these models.

use std::fs;
use std::path::Path;

use luthier_core::model::safetensors::Header;
use luthier_core::model::{ModelFiles, Quantisation, Storage};
use luthier_engine::layers::Active;
use luthier_engine::models::Model;
use luthier_engine::weights::safetensors;
use tch::{Device, Kind};

use crate::references::gguf_files;
use crate::support::{copy_files, distance, json, logits, reference, tensors};

fn load(files: &ModelFiles) -> Model {
    Model::load(files, Device::Cpu, Kind::Float, Quantisation::None).unwrap()
}

/// A copy of the folder with its weights rounded as in the GGUF file.
fn rounded(family: &str, gguf: &ModelFiles, to: &Path) -> ModelFiles {
    copy_files(&reference(&format!("tiny/{family}")), to);
    if family.starts_with("gemma") {
        // llama.cpp divides scores by the root of the head size and ignores `query_pre_attn_scalar`.
        let mut config = json(&format!("tiny/{family}/config.json"));
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
        fs::write(to.join("config.json"), config.to_string()).unwrap();
    }
    let files = ModelFiles::open(to).unwrap();
    let path = to.join("model.safetensors");
    let (_, header) = Header::open(&path).unwrap();
    let mut weights = safetensors::read(&path).unwrap();
    for (name, entry) in &files.tensors {
        if gguf.tensors[name].storage == Storage::F16 {
            let stored = header.tensors.iter().find(|tensor| tensor.offset == entry.offset).unwrap();
            let exact = weights.remove(&stored.name).unwrap();
            weights.insert(stored.name.clone(), exact.to_kind(Kind::Half).to_kind(Kind::Float));
        }
    }
    safetensors::write(&path, weights.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    ModelFiles::open(to).unwrap()
}

#[test]
fn logits_equal_those_of_the_folder() {
    for family in &gguf_files() {
        let path = reference(&format!("gguf/{family}.gguf"));
        let folder = tempfile::tempdir().unwrap();
        let gguf = ModelFiles::open(&path).unwrap();
        let plain = rounded(family, &gguf, folder.path());
        let ids = &tensors(&format!("tiny/{family}/ref.safetensors"))["input_ids"];
        let [ours, wanted] = [&gguf, &plain].map(|files| logits(&load(files), ids, Active::Base));
        let furthest = distance(&ours, &wanted);
        // Q8_0 keeps about two digits of each weight.
        let lossy = gguf.tensors.values().any(|entry| entry.storage == Storage::Q8_0);
        let allowed = if lossy { 0.1 * wanted.abs().max().double_value(&[]) } else { 1e-4 };
        assert!(furthest <= allowed, "{family}: {furthest} where {allowed} is allowed");
    }
}
