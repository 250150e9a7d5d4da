use std::fs;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::weights::safetensors;

fn request(folder: &Path, kind: Kind, tolerance: f64) -> Request {
    Request { model: folder.to_owned(), reference: folder.to_owned(), device: Device::Cpu, kind, tolerance }
}

fn references(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references")).join(path)
}

/// Every tiny model with its reference.
fn families() -> Vec<PathBuf> {
    let entries = fs::read_dir(references("tiny")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| file(path).exists()).collect();
    folders.sort();
    folders
}

#[test]
fn every_family_equals_transformers_padded_packed_and_cached() {
    let folders = families();
    assert!(folders.len() >= 12, "{folders:?}");
    for folder in folders {
        let report = verify(&request(&folder, Kind::Float, 1e-4)).unwrap();
        assert!(report.pass, "{}: {report:?}", folder.display());
        let Errors { logits, hidden, loss } = report.max_abs_error;
        assert!(logits <= 1e-4 && hidden <= 1e-4 && loss <= 1e-5, "{}: {report:?}", folder.display());
        assert!(report.greedy.len() == 2 && report.greedy.iter().all(|greedy| greedy.tokens == 24));
        assert_eq!(report.ways.len(), 3);
    }
}

#[test]
fn the_hubs_older_spelling_of_a_configuration_gives_the_same_model() {
    for folder in families() {
        let old = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = match name {
                "config.json" => continue,
                "config_v4.json" => "config.json",
                other => other,
            };
            fs::copy(&path, old.path().join(name)).unwrap();
        }
        let report = verify(&request(old.path(), Kind::Float, 1e-4)).unwrap();
        assert!(report.pass, "{}: {report:?}", folder.display());
    }
}

/// A variant with the tokenizer that every model folder needs.
fn with_tokenizer(variant: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in [variant.to_owned(), references("tiny/_tokenizers/bytelevel")] {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

#[test]
fn every_option_of_a_family_equals_transformers() {
    let entries = fs::read_dir(references("variants")).unwrap().map(|entry| entry.unwrap().path());
    let variants: Vec<PathBuf> = entries.collect();
    assert!(variants.len() >= 15, "{variants:?}");
    for variant in variants {
        let folder = with_tokenizer(&variant);
        let report = verify(&request(folder.path(), Kind::Float, 1e-4)).unwrap();
        let name = variant.file_name().unwrap().to_str().unwrap();
        assert!(report.pass && report.greedy.len() == 1, "{name}: {report:?}");
    }
}

#[test]
fn bf16_stays_as_near_to_f32_as_transformers_own() {
    for folder in families() {
        let notes: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("ref.json")).unwrap()).unwrap();
        let theirs = notes["bf16_maxdiff"].as_f64().unwrap();
        let report = verify(&request(&folder, Kind::BFloat16, usual_tolerance(Kind::BFloat16))).unwrap();
        assert!(report.max_abs_error.loss <= 2e-2, "{}: {report:?}", folder.display());
        assert!(report.max_abs_error.logits <= 2.0 * theirs, "{}: {theirs} {report:?}", folder.display());
    }
}

fn copy(
    folder: &Path,
    change: impl FnOnce(&mut std::collections::BTreeMap<String, Tensor>),
) -> tempfile::TempDir {
    let changed = tempfile::tempdir().unwrap();
    let mut tensors = safetensors::read(&file(folder)).unwrap();
    change(&mut tensors);
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&file(changed.path()), named).unwrap();
    changed
}

#[test]
fn what_differs_does_not_pass() {
    let folder = references("tiny/llama");
    let check = |change: fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let reference = copy(&folder, change).keep();
        let request = Request { reference: reference.clone(), ..request(&folder, Kind::Float, 1e-4) };
        let report = verify(&request).unwrap();
        fs::remove_dir_all(reference).unwrap();
        report
    };
    assert!(check(|_| {}).pass);
    let report = check(|tensors| {
        let logits = &tensors["logits"] + 1e-3;
        tensors.insert("logits".into(), logits);
    });
    assert!(!report.pass && report.max_abs_error.logits > 9e-4 && report.max_abs_error.hidden < 1e-4);
    let report = check(|tensors| {
        let loss = &tensors["loss"] * f64::NAN;
        tensors.insert("loss".into(), loss);
    });
    assert!(!report.pass && report.max_abs_error.loss.is_nan());
    let report = check(|tensors| {
        let tokens = tensors["gen0.tokens"].copy();
        let other = (tokens.int64_value(&[3]) + 1) % 500;
        let _ = tokens.get(3).fill_(other);
        tensors.insert("gen0.tokens".into(), tokens);
    });
    assert!(!report.pass && !report.greedy_equal && report.greedy[0].with_cache == 3);
}

#[test]
fn what_is_no_reference_for_the_model_is_refused_with_all_that_is_wrong() {
    let folder = references("tiny/llama");
    let refused = |change: fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let reference = copy(&folder, change);
        let request = Request { reference: reference.path().into(), ..request(&folder, Kind::Float, 1e-4) };
        verify(&request).unwrap_err().to_string()
    };
    let text = refused(|tensors| {
        tensors.remove("labels");
        let narrow = tensors["logits"].narrow(2, 0, 100).contiguous();
        tensors.insert("logits".into(), narrow);
    });
    assert!(text.contains("labels is missing") && text.contains("logits is [3, 27, 100]"), "{text}");
    let text = refused(|tensors| {
        let left = tensors["attention_mask"].flip([1]);
        tensors.insert("attention_mask".into(), left.contiguous());
    });
    assert!(text.contains("attention_mask must be 1 from each row's start"), "{text}");
    let text = refused(|tensors| {
        let far = &tensors["input_ids"] + 100_000;
        tensors.insert("input_ids".into(), far);
    });
    assert!(text.contains("beyond the model's vocabulary"), "{text}");
    let missing = Request { reference: "/nowhere".into(), ..request(&folder, Kind::Float, 1e-4) };
    assert!(verify(&missing).unwrap_err().to_string().contains("ref.safetensors"));
}
