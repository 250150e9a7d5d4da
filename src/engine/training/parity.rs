//! Training held against transformers and PEFT: the same batches, losses, gradient norms and final adapter.

use std::path::{Path, PathBuf};

use luthier_core::config::{Config, Schedule, TrainSection, Warmup};
use luthier_core::data::EncodedRow;
use luthier_core::model::ModelFiles;
use serde::Deserialize;
use tch::{Device, Kind};

use super::adamw::{AdamW, EPSILON};
use super::batch::{Batch, collate};
use super::schedule::learning_rate;
use super::sft::Sft;
use super::step::{Measured, Outcome, Settings, step};
use crate::csrc;
use crate::methods::lora::Lora;
use crate::methods::{Adapter, Parameters};
use crate::models::Model;
use crate::ops;
use crate::weights::safetensors;

#[derive(Deserialize)]
struct Trajectory {
    lr: f64,
    steps: u64,
    accumulation: usize,
    warmup: u64,
    clip: f64,
    weight_decay: f64,
    betas: [f64; 2],
    log: Vec<Logged>,
}

#[derive(Deserialize)]
struct Logged {
    loss: f64,
    target_tokens: u64,
    grad_norm: f64,
    lr: f64,
}

impl Trajectory {
    fn train(&self) -> TrainSection {
        TrainSection {
            learning_rate: self.lr,
            schedule: Schedule::Cosine,
            warmup: Warmup::Steps(self.warmup),
            min_learning_rate: 0.0,
            ..Config::default().train
        }
    }

    fn settings(&self, step: u64) -> Settings {
        let learning_rate = learning_rate(&self.train(), step, self.steps);
        let (betas, weight_decay) = (self.betas, self.weight_decay);
        Settings {
            adamw: csrc::AdamW { learning_rate, betas, weight_decay, epsilon: EPSILON },
            max_grad_norm: self.clip,
            recompute: false,
            seed: step,
        }
    }
}

pub(super) fn references(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references")).join(path)
}

pub(super) fn tiny_llama(kind: Kind) -> Model {
    let files = ModelFiles::open(&references("tiny/llama")).unwrap();
    Model::load(&files, Device::Cpu, kind).unwrap()
}

fn trajectory(name: &str) -> Trajectory {
    let text = std::fs::read(references(&format!("training/llama/{name}/trajectory.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn adapter(name: &str, model: &Model) -> Lora {
    Lora::load(&references(&format!("training/llama/{name}")), model).unwrap()
}

/// The reference's 40 micro-batches, padding taken off.
pub(super) fn micro_batches() -> Vec<Vec<EncodedRow>> {
    let tensors = safetensors::read(&references("training/llama/batches.safetensors")).unwrap();
    let [count, rows, width] = tensors["input_ids"].size()[..] else { panic!("three dimensions") };
    let column = |name: &str| ops::to_integers(&tensors[name]).unwrap();
    let (ids, masks, labels) = (column("input_ids"), column("attention_mask"), column("labels"));
    let row = |index: usize| {
        let tokens = index * width as usize..(index + 1) * width as usize;
        let length = masks[tokens.clone()].iter().sum::<i64>() as usize;
        let tokens = tokens.start..tokens.start + length;
        EncodedRow {
            row: index,
            ids: ids[tokens.clone()].iter().map(|&id| id as u32).collect(),
            trained: labels[tokens].iter().map(|&label| label != -100).collect(),
            rejected: None,
        }
    };
    (0..count as usize)
        .map(|batch| (0..rows as usize).map(|place| row(batch * rows as usize + place)).collect())
        .collect()
}

fn on_cpu(micro_batches: &[Vec<EncodedRow>]) -> Vec<Batch> {
    micro_batches.iter().map(|rows| collate(rows, Device::Cpu).unwrap()).collect()
}

fn make_step(
    model: &Model,
    adapter: &Lora,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &Settings,
) -> Measured {
    match step(model, adapter, optimizer, &Sft, batches, settings, &|| false).unwrap() {
        Outcome::Updated(measured) => measured,
        other => panic!("{other:?}"),
    }
}

/// Makes all steps of a reference run.
fn run(name: &str, model: &Model, recompute: bool) -> (Lora, Vec<Measured>) {
    let reference = trajectory(name);
    let adapter = adapter(&format!("{name}/adapter-init"), model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let micro_batches = micro_batches();
    let measured = micro_batches
        .chunks(reference.accumulation)
        .take(reference.steps as usize)
        .enumerate()
        .map(|(index, rows)| {
            let settings = Settings { recompute, ..reference.settings(index as u64) };
            make_step(model, &adapter, &mut optimizer, &on_cpu(rows), &settings)
        })
        .collect();
    (adapter, measured)
}

pub(super) fn relative(ours: f64, expected: f64) -> f64 {
    (ours - expected).abs() / expected.abs().max(1e-12)
}

pub(super) fn furthest(ours: &Parameters, expected: &Parameters) -> f64 {
    assert!(ours.keys().eq(expected.keys()));
    let distance = |(a, b): (&tch::Tensor, &tch::Tensor)| (a - b).abs().max().double_value(&[]);
    ours.values().zip(expected.values()).map(distance).fold(0.0, f64::max)
}

fn values(parameters: &Parameters) -> Vec<Vec<f32>> {
    parameters.values().map(|parameter| ops::to_floats(parameter).unwrap()).collect()
}

fn assert_trajectory(name: &str, recompute: bool) {
    let model = tiny_llama(Kind::Float);
    let (adapter, measured) = run(name, &model, recompute);
    let reference = trajectory(name);
    assert_eq!(measured.len(), reference.log.len());
    for (index, (ours, expected)) in measured.iter().zip(&reference.log).enumerate() {
        assert_eq!(ours.trained_tokens, expected.target_tokens, "{name} step {index}");
        let (loss, norm) = (relative(ours.loss, expected.loss), relative(ours.grad_norm, expected.grad_norm));
        assert!(loss <= 1e-4, "{name} step {index}: loss {} instead of {}", ours.loss, expected.loss);
        assert!(
            norm <= 1e-3,
            "{name} step {index}: norm {} instead of {}",
            ours.grad_norm,
            expected.grad_norm
        );
    }
    let expected = self::adapter(&format!("{name}/adapter-final"), &model);
    let distance = furthest(adapter.parameters(), expected.parameters());
    assert!(distance <= 1e-4, "{name}: the final adapter is {distance} away");
}

#[test]
fn learning_rates_are_those_of_the_reference() {
    let reference = trajectory("lora");
    for (step, logged) in reference.log.iter().enumerate() {
        let ours = learning_rate(&reference.train(), step as u64, reference.steps);
        assert!((ours - logged.lr).abs() <= 1e-9, "step {step}: {ours} instead of {}", logged.lr);
    }
}

#[test]
fn twenty_steps_of_lora_equal_peft() {
    assert_trajectory("lora", false);
}

#[test]
fn twenty_recomputed_steps_equal_peft_too() {
    assert_trajectory("lora", true);
}

#[test]
fn a_rank_4_adapter_on_two_modules_equals_peft() {
    assert_trajectory("lora-qv-r4", false);
}

#[test]
fn a_fresh_adapter_equals_peft() {
    assert_trajectory("lora-default-init", false);
}

#[test]
fn the_gradient_does_not_depend_on_how_a_step_is_cut() {
    let model = tiny_llama(Kind::Float);
    let rows: Vec<EncodedRow> = micro_batches().into_iter().take(3).flatten().collect();
    let reference = trajectory("lora");
    let mut results = [1, 2, 6].iter().map(|&size| {
        let adapter = adapter("lora/adapter-init", &model);
        let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
        let cut: Vec<Vec<EncodedRow>> = rows.chunks(size).map(<[_]>::to_vec).collect();
        let measured = make_step(&model, &adapter, &mut optimizer, &on_cpu(&cut), &reference.settings(4));
        (measured, adapter)
    });
    let (first, adapter) = results.next().unwrap();
    for (measured, other) in results {
        assert!(relative(measured.loss, first.loss) <= 1e-6, "{measured:?} {first:?}");
        assert!(relative(measured.grad_norm, first.grad_norm) <= 1e-5, "{measured:?} {first:?}");
        assert!(furthest(other.parameters(), adapter.parameters()) <= 1e-5);
    }
}

#[test]
fn rows_end_to_end_have_the_loss_they_have_alone() {
    let model = tiny_llama(Kind::Float);
    let rows: Vec<EncodedRow> = micro_batches().into_iter().take(4).flatten().collect();
    let loss = |micro_batches: &[Vec<EncodedRow>]| {
        let adapter = adapter("lora/adapter-init", &model);
        let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
        let settings = trajectory("lora").settings(0);
        make_step(&model, &adapter, &mut optimizer, &on_cpu(micro_batches), &settings).loss
    };
    let together = loss(std::slice::from_ref(&rows));
    let alone = loss(&rows.iter().map(|row| vec![row.clone()]).collect::<Vec<_>>());
    assert!((together - alone).abs() <= 1e-5, "{together} {alone}");
}

#[test]
fn a_loss_that_is_not_a_number_changes_nothing() {
    let model = tiny_llama(Kind::Float);
    let adapter = adapter("lora/adapter-init", &model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let batches = on_cpu(&micro_batches()[..2]);
    let settings = trajectory("lora").settings(4);
    make_step(&model, &adapter, &mut optimizer, &batches, &settings);

    // One factor too large to multiply with makes every logit infinite or undefined.
    let mut factor = adapter.parameters().values().next().unwrap().shallow_clone();
    let before = ops::copy(&factor).unwrap();
    tch::no_grad(|| factor.fill_(f64::from(f32::MAX))).size();
    let state =
        |optimizer: &AdamW| (values(adapter.parameters()), values(&optimizer.tensors()), optimizer.updates());
    let untouched = state(&optimizer);
    let outcome = step(&model, &adapter, &mut optimizer, &Sft, &batches, &settings, &|| false).unwrap();
    assert!(matches!(outcome, Outcome::NotFinite(_)), "{outcome:?}");
    assert_eq!(state(&optimizer), untouched);

    // Nor does the bad gradient leak into the step after.
    ops::copy_into(&mut factor, &before).unwrap();
    let measured = make_step(&model, &adapter, &mut optimizer, &batches, &settings);
    assert!(measured.loss.is_finite() && measured.grad_norm.is_finite());
}

#[test]
fn steps_without_anything_to_learn_or_given_up_change_nothing() {
    let model = tiny_llama(Kind::Float);
    let adapter = adapter("lora/adapter-init", &model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let settings = trajectory("lora").settings(4);
    let before = values(adapter.parameters());
    let mut rows = micro_batches().swap_remove(0);
    let given_up =
        step(&model, &adapter, &mut optimizer, &Sft, &on_cpu(&[rows.clone()]), &settings, &|| true).unwrap();
    assert_eq!(given_up, Outcome::Interrupted);
    for row in &mut rows {
        row.trained.fill(false);
    }
    let nothing =
        step(&model, &adapter, &mut optimizer, &Sft, &on_cpu(&[rows]), &settings, &|| false).unwrap();
    assert_eq!(nothing, Outcome::NothingTrained);
    assert_eq!((values(adapter.parameters()), optimizer.updates()), (before, 0));
}

#[test]
fn bf16_weights_train_an_f32_adapter_that_stays_near() {
    let model = tiny_llama(Kind::BFloat16);
    let (adapter, measured) = run("lora", &model, false);
    assert!(adapter.parameters().values().all(|parameter| parameter.kind() == Kind::Float));
    for (ours, expected) in measured.iter().zip(&trajectory("lora").log) {
        assert!(relative(ours.loss, expected.loss) <= 0.02, "{} instead of {}", ours.loss, expected.loss);
    }
}
