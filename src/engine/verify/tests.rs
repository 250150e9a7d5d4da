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
fn a_model_that_differs_does_not_pass() {
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
fn an_unsuitable_reference_is_refused_with_all_its_problems() {
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
