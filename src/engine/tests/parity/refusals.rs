//! Adapters that must be refused, each with an error message, without reading tensors that do not fit.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use luthier_engine::error::EngineError;
use luthier_engine::methods::lora::Lora;
use luthier_engine::weights::safetensors;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{json as reference_json, reference, tensors, tiny};

const ADAPTER: &str = "training/llama/lora/adapter-init";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

fn copy(adapter: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [CONFIG, WEIGHTS] {
        fs::copy(reference(adapter).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn refusal(folder: &Path) -> String {
    let error = Lora::load(folder, &tiny(Kind::Float)).map(|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::Adapter { .. } | EngineError::Files(_)), "{error:?}");
    error.to_string()
}

fn name(module: &str, factor: &str) -> String {
    format!("base_model.model.model.layers.{module}.{factor}.weight")
}

/// A copy with changed tensors.
fn with_tensors(change: impl FnOnce(&mut std::collections::BTreeMap<String, Tensor>)) -> tempfile::TempDir {
    let folder = copy(ADAPTER);
    let mut weights = tensors(&format!("{ADAPTER}/{WEIGHTS}"));
    change(&mut weights);
    let pairs = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.path().join(WEIGHTS), pairs).unwrap();
    folder
}

fn with_setting(key: &str, value: Value) -> tempfile::TempDir {
    let folder = copy(ADAPTER);
    let mut config = reference_json(&format!("{ADAPTER}/{CONFIG}"));
    config[key] = value;
    fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
    folder
}

#[test]
fn an_adapter_of_another_base_is_refused_with_both_shapes() {
    let error = refusal(&reference("smollm2/lora-init"));
    let query = name("0.self_attn.q_proj", "lora_A");
    assert!(error.contains(&format!("{query} is [4, 576], but needs [4, 64]")), "{error}");
    assert!(error.contains("more") && error.len() < 20_000, "{error}");
}

#[test]
fn a_rank_that_differs_from_the_settings_is_refused() {
    let error = refusal(with_setting("r", json!(4)).path());
    let (a, b) = (name("2.mlp.down_proj", "lora_A"), name("2.mlp.down_proj", "lora_B"));
    assert!(error.contains("is [8, 64], but needs [4, 64]"), "{error}");
    for rank in [json!(0), json!(-8), json!(8.5), json!("8"), json!(u64::MAX), Value::Null] {
        let error = refusal(with_setting("r", rank).path());
        assert!(error.contains("adapter_config.json has no valid r"), "{error}");
    }
    let error = refusal(with_setting("r", json!(60_000)).path());
    assert!(error.contains("is [8, 64], but needs [60000, 64]") && error.contains("and 22 more"), "{error}");
    let folder = with_tensors(|weights| {
        weights.insert(a.clone(), Tensor::zeros([4, 128], (Kind::Float, Device::Cpu)));
        weights.insert(b.clone(), Tensor::zeros([64, 4], (Kind::Float, Device::Cpu)));
    });
    let error = refusal(folder.path());
    assert!(error.contains(&format!("{a} is [4, 128], but needs [8, 128]")), "{error}");
    assert!(error.contains(&format!("{b} is [64, 4], but needs [64, 8]")), "{error}");
}

#[test]
fn a_target_that_the_model_does_not_have_is_refused() {
    for module in ["7.self_attn.q_proj", "0.self_attn.qkv_proj", "0.input_layernorm"] {
        let folder = with_tensors(|weights| {
            for (factor, shape) in [("lora_A", [8, 64]), ("lora_B", [64, 8])] {
                weights.insert(name(module, factor), Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
            }
        });
        let error = refusal(folder.path());
        let words = format!("{} does not belong to this adapter", name(module, "lora_A"));
        assert!(error.contains(&words), "{error}");
    }
}

#[test]
fn nan_and_integer_tensors_are_refused() {
    let query = name("1.self_attn.q_proj", "lora_A");
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let folder = with_tensors(|weights| {
            let mut row = weights[&query].get(3);
            let _ = row.fill_(value);
        });
        let error = refusal(folder.path());
        assert!(error.contains(&format!("{query} contains numbers that are not finite")), "{error}");
    }
    let folder = with_tensors(|weights| {
        weights.insert(query.clone(), Tensor::zeros([8, 64], (Kind::Int64, Device::Cpu)));
    });
    assert!(refusal(folder.path()).contains(&format!("{query} has elements of type I64")));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let folder = copy(ADAPTER);
    let path = folder.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains("adapter_model.safetensors is damaged or was not downloaded"), "{error}");
    }
    let folder = copy(ADAPTER);
    let path = folder.path().join(CONFIG);
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains("adapter_config.json: not a JSON object"), "{error}");
    }
}

#[test]
fn pickles_are_refused_with_the_remedy() {
    let folder = copy(ADAPTER);
    fs::rename(folder.path().join(WEIGHTS), folder.path().join("adapter_model.bin")).unwrap();
    let error = refusal(folder.path());
    for words in ["adapter_model.bin is a pickle file", "weights_only=True", "save_file"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn pipes_and_folders_in_place_of_files_do_not_block() {
    for file in [CONFIG, WEIGHTS] {
        let folder = copy(ADAPTER);
        let path = folder.path().join(file);
        fs::remove_file(&path).unwrap();
        mkfifoat(CWD, &path, Mode::RUSR).unwrap();
        assert!(refusal(folder.path()).contains("a pipe, socket or device"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal(folder.path()).contains("it is a folder"));
    }
    let folder = copy(ADAPTER);
    File::create(folder.path().join(CONFIG)).unwrap().set_len(1 << 30).unwrap();
    assert!(refusal(folder.path()).contains("larger than"));
}

#[test]
fn tensors_that_do_not_fit_are_not_read() {
    let folder = copy(ADAPTER);
    let (a, b) = (name("0.self_attn.q_proj", "lora_A"), name("0.self_attn.q_proj", "lora_B"));
    // Eight tebibytes of zeros that take no space on the disk: a program that read them would never finish.
    let (columns, bytes) = (1_u64 << 38, 8_u64 << 40);
    let header = json!({
        a.as_str(): {"dtype": "F32", "shape": [8, columns], "data_offsets": [0, bytes]},
        b.as_str(): {"dtype": "F32", "shape": [64, 8], "data_offsets": [bytes, bytes + 2048]},
    });
    let header = header.to_string();
    let mut file = File::create(folder.path().join(WEIGHTS)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + bytes + 2048).unwrap();
    let error = refusal(folder.path());
    assert!(error.contains(&format!("{a} is [8, {columns}], but needs [8, 64]")), "{error}");
}

#[test]
fn random_settings_are_refused_or_give_a_usable_adapter() {
    let model = tiny(Kind::Float);
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1e308),
        json!("\u{1b}[2J"),
        json!([[[]]]),
        json!({"": {"": 1}}),
    ];
    let config = reference_json(&format!("{ADAPTER}/{CONFIG}"));
    let known = config.as_object().unwrap().keys().map(String::as_str);
    for key in known.chain(["use_qalora", "lora_bias", "layer_replication", "target_parameters"]) {
        for value in &values {
            let folder = with_setting(key, value.clone());
            match Lora::load(folder.path(), &model) {
                Ok(adapter) => drop(adapter),
                Err(EngineError::Adapter { problems, .. }) => {
                    assert!(problems.iter().all(|problem| !problem.contains('\u{1b}')), "{problems:?}");
                }
                Err(other) => panic!("{key} = {value}: {other}"),
            }
        }
    }
}
