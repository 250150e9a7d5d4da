//! Gradients of every family, through full fine-tuning, and what bf16 makes of each.

use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::csrc;
use luthier_engine::methods::{FullMethod, Method};
use luthier_engine::models::head::{Targets, loss_sum};
use luthier_engine::models::{Active, Mask, Model, Pass};
use tch::{Device, Kind, Tensor};

use crate::support::{columns, in_bf16, json, logits, reference, tensors};

/// The largest relative difference between the gradient norm of a parameter and transformers', and whose it is.
fn furthest(family: &str, recompute: bool) -> (f64, String) {
    let files = ModelFiles::open(&reference(&format!("tiny/{family}"))).unwrap();
    let model = Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap();
    let full = FullMethod.create(&model, 0).unwrap();
    let stored = tensors(&format!("tiny/{family}/ref.safetensors"));
    let (rows, width) = stored["input_ids"].size2().unwrap();
    let labels = Vec::<i64>::try_from(stored["labels"].flatten(0, -1)).unwrap();
    let targets = Targets::shifted(&labels, width as usize, Device::Cpu).unwrap();
    let positions = columns(rows, width);
    let adapters = Active::All(full.as_ref());
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
    let share = Tensor::from(1.0_f32 / targets.count as f32);
    let ids = &stored["input_ids"];
    if recompute {
        let trace = model.hidden_recomputed(ids, &pass).unwrap();
        let loss = loss_sum(&model, adapters, &trace.hidden, &targets, false).unwrap().sum;
        csrc::backward(&[&loss], &[Some(&share)]).unwrap();
        model.backward(trace, ids, &pass).unwrap();
    } else {
        let hidden = model.hidden(ids, &pass, None).unwrap();
        let loss = loss_sum(&model, adapters, &hidden, &targets, false).unwrap().sum;
        csrc::backward(&[&loss], &[Some(&share)]).unwrap();
    }
    let notes = json(&format!("tiny/{family}/ref.json"));
    let wanted = notes["grad_norms"].as_object().unwrap();
    assert_eq!(wanted.len(), full.parameters().len(), "{family}");
    let distance = |(name, norm): (&String, &serde_json::Value)| {
        let gradient = full.parameters()[name].grad();
        let (ours, theirs) = (gradient.norm().double_value(&[]), norm.as_f64().unwrap());
        ((ours - theirs).abs() / theirs.max(1e-6), name.clone())
    };
    wanted
        .iter()
        .map(distance)
        .fold((0.0, String::new()), |worst, other| if other.0 > worst.0 { other } else { worst })
}

/// All that there are references of.
pub const FAMILIES: [&str; 12] = [
    "falcon-40b",
    "falcon-7b",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
];

#[test]
fn gradients_of_every_parameter_of_every_family_equal_transformers() {
    for family in FAMILIES {
        for recompute in [false, true] {
            let (distance, parameter) = furthest(family, recompute);
            assert!(distance <= 1e-3, "{family}, recomputed {recompute}: {parameter} is {distance} away");
        }
    }
}

/// Distance of `a` from `b` where `mask` `[B, T]` is 1, as a share of `b`: root mean squares over `[B, T, V]`.
fn relative_distance(mask: &Tensor, a: &Tensor, b: &Tensor) -> f64 {
    let counts = mask.to_kind(Kind::Bool);
    let pick = |x: &Tensor| x.to_kind(Kind::Float).index(&[Some(&counts)]);
    ((pick(a) - pick(b)).norm() / pick(b).norm()).double_value(&[])
}

#[test]
fn computing_in_bf16_is_within_2e_2_of_computing_in_f32_over_the_same_weights() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(family);
        in_bf16(family, &path);
        let files = ModelFiles::open(&path).unwrap();
        let stored = tensors(&format!("tiny/{family}/ref.safetensors"));
        let (ids, mask) = (&stored["input_ids"], &stored["attention_mask"]);
        let [exact, rounded] = [Kind::Float, Kind::BFloat16].map(|kind| {
            let model = Model::load(&files, Device::Cpu, kind, Quantisation::None).unwrap();
            logits(&model, ids, Active::Base)
        });
        let distance = relative_distance(mask, &rounded, &exact);
        assert!(distance <= 2e-2, "{family}: {distance}");
    }
}
