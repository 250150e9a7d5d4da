//! Compares every family, and every option of a family, with transformers: logits, hidden states, losses,
//! greedy continuations and gradients.

use std::path::Path;

use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::csrc;
use luthier_engine::layers::{Active, Mask, Pass};
use luthier_engine::methods::{FullMethod, Method};
use luthier_engine::models::Model;
use luthier_engine::models::head::{Targets, loss_sum};
use luthier_engine::verify::{Report, Request, usual_tolerance, verify};
use tch::{Device, Kind, Tensor};

use crate::references::{families, open, variants};
use crate::support::{
    columns, copy_files, distance_where, in_bf16, json, logits, reference, tensors, with_tokenizer,
};

fn compare(model: &Path, reference: &Path, kind: Kind) -> Report {
    let tolerance = usual_tolerance(kind);
    let (model, reference) = (model.to_owned(), reference.to_owned());
    verify(&Request { model, reference, device: Device::Cpu, kind, tolerance }).unwrap()
}

fn compare_family(family: &str, kind: Kind) -> Report {
    let folder = reference(&format!("tiny/{family}"));
    compare(&folder, &folder, kind)
}

#[test]
fn every_family_equals_transformers_padded_packed_and_cached() {
    for family in families() {
        let report = compare_family(&family, Kind::Float);
        assert!(report.pass, "{family}: {report:?}");
        for way in &report.ways {
            // With a cache, every layer takes its sums in another order than transformers.
            let bound = if way.name == "cached" { 1e-4 } else { 1e-5 };
            let errors = way.errors;
            assert!(errors.logits <= bound && errors.hidden <= bound, "{family}: {report:?}");
            assert!(errors.loss <= 1e-5, "{family}: {report:?}");
        }
        assert!(report.greedy.len() == 2 && report.greedy.iter().all(|greedy| greedy.tokens == 24));
        assert_eq!(report.ways.len(), 3);
    }
}

#[test]
fn hidden_states_of_every_layer_equal_transformers() {
    for family in families() {
        let model = open(&family, Kind::Float, Quantisation::None);
        let stored = tensors(&format!("tiny/{family}/ref.safetensors"));
        let (rows, width) = stored["input_ids"].size2().unwrap();
        let positions = columns(rows, width);
        let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: Active::Base, noise: None };
        let states = model.hidden_states(&stored["input_ids"], &pass).unwrap();
        assert_eq!(states.len(), model.architecture().layers.len() + 1);
        for (layer, state) in states.iter().enumerate() {
            let wanted = &stored[&format!("hidden_{layer}")];
            let error = distance_where(&stored["attention_mask"], state, wanted);
            assert!(error <= 1e-5, "{family}, hidden state {layer}: {error}");
        }
    }
}

#[test]
fn an_older_spelling_of_the_configuration_gives_the_same_model() {
    for family in families() {
        let (folder, old) = (reference(&format!("tiny/{family}")), tempfile::tempdir().unwrap());
        copy_files(&folder, old.path());
        std::fs::rename(old.path().join("config_v4.json"), old.path().join("config.json")).unwrap();
        let (old, new) = (compare(old.path(), &folder, Kind::Float), compare(&folder, &folder, Kind::Float));
        assert_eq!(old.max_abs_error, new.max_abs_error, "{family}");
        assert!(old.pass, "{family}: {old:?}");
    }
}

#[test]
fn every_option_of_a_family_equals_transformers() {
    for name in variants() {
        let (folder, stored) = (with_tokenizer(&name), reference(&format!("variants/{name}")));
        let report = compare(folder.path(), &stored, Kind::Float);
        assert!(report.pass && report.greedy.len() == 1, "{name}: {report:?}");
    }
}

#[test]
fn bf16_is_as_close_to_f32_as_that_of_transformers() {
    for family in families() {
        let notes = json(&format!("tiny/{family}/ref.json"));
        let theirs = notes["bf16_maxdiff"].as_f64().unwrap();
        let report = compare_family(&family, Kind::BFloat16);
        assert!(report.max_abs_error.loss <= 2e-2, "{family}: {report:?}");
        assert!(report.max_abs_error.logits <= 1.5 * theirs, "{family}: {theirs} {report:?}");
    }
}

/// Relative distance of `a` from `b` where `mask` `[B, T]` is 1: root mean squares over `[B, T, V]`.
fn relative_distance(mask: &Tensor, a: &Tensor, b: &Tensor) -> f64 {
    let counts = mask.to_kind(Kind::Bool);
    let pick = |x: &Tensor| x.to_kind(Kind::Float).index(&[Some(&counts)]);
    ((pick(a) - pick(b)).norm() / pick(b).norm()).double_value(&[])
}

#[test]
fn bf16_is_within_2e_2_of_f32_with_the_same_weights() {
    for family in families() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(&family);
        in_bf16(&family, &path);
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

/// The largest relative difference from transformers in the gradient norm of a parameter, and the parameter's
/// name.
fn furthest_gradient(family: &str, recompute: bool) -> (f64, String) {
    let model = open(family, Kind::Float, Quantisation::None);
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
        model.backward(trace, ids, &pass, &mut || Ok(())).unwrap();
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

#[test]
fn gradients_of_every_parameter_of_every_family_equal_transformers() {
    for family in families() {
        for recompute in [false, true] {
            let (distance, parameter) = furthest_gradient(&family, recompute);
            assert!(distance <= 1e-3, "{family}, recomputed {recompute}: {parameter} is {distance} away");
        }
    }
}
