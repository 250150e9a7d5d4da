//! Training held against transformers and PEFT, every method on every family that there are reference runs of: the same
//! batches, losses, gradient norms, final weights and logits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_core::config::{Config, Schedule, TrainSection, Warmup};
use luthier_core::data::EncodedRow;
use luthier_core::model::{ModelFiles, Quantisation};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::adamw::{AdamW, EPSILON};
use super::batch::{Batch, Beginnings, collate};
use super::schedule::learning_rate;
use super::sft::Sft;
use super::step::{Launch, Learner, Measured, Outcome, Settings};
use crate::csrc;
use crate::methods::{self, Adapter, Folded, Form, FullMethod, Method, Parameters};
use crate::models::{Active, Mask, Model, Pass};
use crate::ops;
use crate::weights::{Linear, safetensors};

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
    /// After full fine-tuning, by parameter.
    #[serde(default)]
    final_param_norm_and_sum: BTreeMap<String, [f64; 2]>,
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
    load("llama", kind, Quantisation::None)
}

/// The model that a reference run trains over.
fn base_of(name: &str) -> Model {
    let quantisation = if name.ends_with("qlora-nf4") { Quantisation::Nf4 } else { Quantisation::None };
    load(family_of(name), Kind::Float, quantisation)
}

fn load(family: &str, kind: Kind, quantisation: Quantisation) -> Model {
    let files = ModelFiles::open(&references(&format!("tiny/{family}"))).unwrap();
    Model::load(&files, Device::Cpu, kind, quantisation).unwrap()
}

/// The families that there are reference runs of.
const FAMILIES: [&str; 3] = ["llama", "phi", "falcon-40b"];

/// The family that a reference run is of: llama where its name does not begin with one.
fn family_of(name: &str) -> &str {
    let first = name.split('/').next().unwrap_or_default();
    if FAMILIES.contains(&first) { first } else { FAMILIES[0] }
}

fn run_folder(name: &str) -> String {
    let family = family_of(name);
    if name.starts_with(family) { format!("training/{name}") } else { format!("training/{family}/{name}") }
}

fn trajectory(name: &str) -> Trajectory {
    let text = std::fs::read(references(&format!("{}/trajectory.json", run_folder(name)))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// What a reference run starts from.
fn adapter(name: &str, model: &Model) -> Box<dyn Adapter> {
    let folder = references(&run_folder(name));
    if folder.ends_with("full/adapter-init") {
        return FullMethod.create(model, 0).unwrap();
    }
    methods::load(&folder, model).unwrap()
}

/// The reference's 40 micro-batches, padding taken off.
pub(super) fn micro_batches() -> Vec<Vec<EncodedRow>> {
    micro_batches_of("llama")
}

fn micro_batches_of(family: &str) -> Vec<Vec<EncodedRow>> {
    let tensors = safetensors::read(&references(&format!("training/{family}/batches.safetensors"))).unwrap();
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
    micro_batches
        .iter()
        .map(|rows| collate(rows, Beginnings::Once { worth: 16 }, Device::Cpu).unwrap())
        .collect()
}

fn make_step(
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &Settings,
) -> Measured {
    match settle(model, adapter, optimizer, batches, settings) {
        Outcome::Updated(measured) => measured,
        other @ Outcome::NotFinite(_) => panic!("{other:?}"),
    }
}

fn settle(
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &Settings,
) -> Outcome {
    let learner = Learner { model, adapter, optimizer };
    match learner.launch(&Sft, batches, settings, None, &|| false).unwrap() {
        Launch::Made(step) => step.settle(optimizer).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Makes all steps of a reference run.
fn run(name: &str, model: &Model, recompute: bool) -> (Box<dyn Adapter>, Vec<Measured>) {
    let reference = trajectory(name);
    let adapter = adapter(&format!("{name}/adapter-init"), model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let micro_batches = micro_batches_of(family_of(name));
    let measured = micro_batches
        .chunks(reference.accumulation)
        .take(reference.steps as usize)
        .enumerate()
        .map(|(index, rows)| {
            let settings = Settings { recompute, ..reference.settings(index as u64) };
            make_step(model, adapter.as_ref(), &mut optimizer, &on_cpu(rows), &settings)
        })
        .collect();
    (adapter, measured)
}

pub(super) fn relative(ours: f64, expected: f64) -> f64 {
    (ours - expected).abs() / expected.abs().max(1e-12)
}

pub(super) fn furthest(ours: &Parameters, expected: &Parameters) -> f64 {
    assert!(ours.keys().eq(expected.keys()));
    let distance = |(a, b): (&Tensor, &Tensor)| (a - b).abs().max().double_value(&[]);
    ours.values().zip(expected.values()).map(distance).fold(0.0, f64::max)
}

fn values(parameters: &Parameters) -> Vec<Vec<f32>> {
    parameters.values().map(|parameter| ops::to_floats(parameter).unwrap()).collect()
}

/// Follows a reference run, and gives back what was trained.
fn assert_trajectory(name: &str, recompute: bool) -> (Model, Box<dyn Adapter>) {
    let model = base_of(name);
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
    (model, adapter)
}

/// As [`assert_trajectory`], and holds the final adapter and the logits before and after against the reference.
fn assert_adapter(name: &str, recompute: bool) {
    let (model, trained) = assert_trajectory(name, recompute);
    let expected = adapter(&format!("{name}/adapter-final"), &model);
    let distance = furthest(trained.parameters(), expected.parameters());
    assert!(distance <= 1e-4, "{name}: the final adapter is {distance} away");
    let stored = safetensors::read(&references(&format!("{}/logits.safetensors", run_folder(name)))).unwrap();
    let initial = adapter(&format!("{name}/adapter-init"), &model);
    assert_logits(name, &model, initial.as_ref(), &stored["init_logits"]);
    assert_logits(name, &model, trained.as_ref(), &stored["final_logits"]);
    if let Some(merged) = stored.get("merged_logits") {
        assert_logits(name, &model, &Merged::of(trained.as_ref(), &model), merged);
    }
}

/// Logits of the first micro-batch, where there are tokens.
fn assert_logits(name: &str, model: &Model, adapter: &dyn Adapter, expected: &Tensor) {
    let family = family_of(name);
    let stored = safetensors::read(&references(&format!("training/{family}/batches.safetensors"))).unwrap();
    let (ids, counts) = (stored["input_ids"].get(0), stored["attention_mask"].get(0).to_kind(Kind::Bool));
    let (rows, width) = ids.size2().unwrap();
    let positions = Tensor::arange(width, (Kind::Int64, Device::Cpu)).repeat([rows, 1]);
    let adapters = Active::All(adapter);
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
    let logits = model.logits(&model.hidden(&ids, &pass, None).unwrap(), adapters).unwrap();
    let pick = |logits: &Tensor| logits.index(&[Some(&counts)]);
    let distance = (pick(&logits) - pick(expected)).abs().max().double_value(&[]);
    assert!(distance <= 1e-4, "{name}: logits are {distance} away");
}

/// The base model's linear layers with an adapter folded into them.
struct Merged {
    weights: Parameters,
    nothing: Parameters,
}

impl Merged {
    fn of(adapter: &dyn Adapter, model: &Model) -> Self {
        let mut weights = Parameters::new();
        for linear in model.linears() {
            let Folded { weight, bias } = linear.folded(Some(adapter), Kind::Float).unwrap();
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

    fn form(&self) -> Form<'_> {
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
    for family in FAMILIES {
        assert_adapter(&format!("{family}/lora"), false);
    }
}

#[test]
fn a_rank_4_adapter_on_two_modules_equals_peft() {
    assert_adapter("lora-qv-r4", false);
}

#[test]
fn a_fresh_adapter_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/lora-default-init"), false);
    }
}

#[test]
fn rank_stabilised_lora_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/rslora"), false);
    }
}

#[test]
fn dora_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/dora"), false);
    }
}

#[test]
fn a_head_trained_beside_lora_equals_peft() {
    assert_adapter("lora-modules-to-save", false);
}

#[test]
fn ia3_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/ia3"), false);
    }
}

#[test]
fn prefix_tuning_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/prefix"), false);
    }
}

#[test]
fn prompt_tuning_equals_peft() {
    for family in FAMILIES {
        assert_adapter(&format!("{family}/prompt"), false);
    }
}

#[test]
fn what_a_projected_prefix_became_is_read_as_peft_reads_it() {
    let model = tiny_llama(Kind::Float);
    let stored =
        safetensors::read(&references("training/llama/prefix-projection/logits.safetensors")).unwrap();
    for (folder, logits) in [("adapter-init", "init_logits"), ("adapter-final", "final_logits")] {
        let adapter = adapter(&format!("prefix-projection/{folder}"), &model);
        assert_logits("prefix-projection", &model, adapter.as_ref(), &stored[logits]);
    }
}

#[test]
fn full_fine_tuning_equals_transformers() {
    for family in FAMILIES {
        let name = format!("{family}/full");
        let (model, trained) = assert_trajectory(&name, false);
        let stored = safetensors::read(&references(&format!("training/{name}/final.safetensors"))).unwrap();
        assert_logits(&name, &model, trained.as_ref(), &stored["final_logits"]);
        let mut compared = 0;
        // Attention hardly sees what is added to all keys, so that AdamW follows rounding there.
        let is_noise = |name: &str| name.ends_with("k_proj.bias");
        for (name, ours) in trained.parameters() {
            if is_noise(name) {
                compared += usize::from(stored.contains_key(&format!("final.{name}")));
            } else if let Some(expected) = stored.get(&format!("final.{name}")) {
                let distance = (ours - expected).abs().max().double_value(&[]);
                assert!(distance <= 1e-4, "{family} {name}: {distance}");
                compared += 1;
            }
        }
        assert_eq!(compared, stored.len() - 1, "{family}");
        let reference = trajectory(&name).final_param_norm_and_sum;
        assert!(reference.keys().eq(trained.parameters().keys()), "{family}");
        for (name, [norm, _]) in reference.into_iter().filter(|(name, _)| !is_noise(name)) {
            let ours = trained.parameters()[&name].norm().double_value(&[]);
            assert!(relative(ours, norm) <= 1e-4, "{family} {name}: {ours} instead of {norm}");
        }
    }
}

#[test]
fn every_method_recomputed_equals_the_reference_too() {
    for name in ["lora", "dora", "ia3", "prefix", "prompt", "lora-modules-to-save"] {
        assert_adapter(name, true);
    }
    assert_trajectory("full", true);
}

/// The other ways to count that there are reference runs of are far enough away to be told from ours.
#[test]
fn other_normalisations_and_decays_would_be_noticed() {
    let apart = |ours: &str, other: &str| {
        let (ours, other) = (trajectory(ours), trajectory(other));
        let losses = ours.log.iter().zip(&other.log).map(|(ours, other)| relative(ours.loss, other.loss));
        losses.fold(0.0, f64::max)
    };
    for family in FAMILIES {
        let full = format!("{family}/full");
        assert!(apart(&full, &format!("{family}/full-micromean")) > 1e-3, "{family}");
        // Only the weights tell that norms and biases did not decay: the losses are nearly the same.
        assert!(apart(&full, &format!("{family}/full-hf-decay-groups")) < 1e-3, "{family}");
    }
    assert!(apart("lora", "lora-micromean") > 1e-3);
}

#[test]
fn twenty_steps_over_nf4_equal_peft_and_bitsandbytes() {
    assert_adapter("qlora-nf4", false);
    assert_adapter("qlora-nf4", true);
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
        let measured =
            make_step(&model, adapter.as_ref(), &mut optimizer, &on_cpu(&cut), &reference.settings(4));
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
        make_step(&model, adapter.as_ref(), &mut optimizer, &on_cpu(micro_batches), &settings).loss
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
    make_step(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);

    // One factor too large to multiply with makes every logit infinite or undefined.
    let mut factor = adapter.parameters().values().next().unwrap().shallow_clone();
    let before = ops::copy(&factor).unwrap();
    tch::no_grad(|| factor.fill_(f64::from(f32::MAX))).size();
    let state =
        |optimizer: &AdamW| (values(adapter.parameters()), values(&optimizer.tensors()), optimizer.updates());
    let untouched = state(&optimizer);
    let outcome = settle(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);
    assert!(matches!(outcome, Outcome::NotFinite(_)), "{outcome:?}");
    assert_eq!(state(&optimizer), untouched);

    // Nor does a step that was launched before anybody knew.
    let learner = Learner { model: &model, adapter: adapter.as_ref(), optimizer: &optimizer };
    let launch = |before| match learner.launch(&Sft, &batches, &settings, before, &|| false).unwrap() {
        Launch::Made(step) => step,
        other => panic!("{other:?}"),
    };
    let bad = launch(None);
    let damaged = ops::copy(&factor).unwrap();
    ops::copy_into(&mut factor, &before).unwrap();
    launch(Some(&bad));
    ops::copy_into(&mut factor, &damaged).unwrap();
    assert_eq!(state(&optimizer), untouched);

    // Nor does the bad gradient leak into the step after.
    ops::copy_into(&mut factor, &before).unwrap();
    let measured = make_step(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);
    assert!(measured.loss.is_finite() && measured.grad_norm.is_finite());
}

#[test]
fn steps_without_anything_to_learn_or_given_up_change_nothing() {
    let model = tiny_llama(Kind::Float);
    let adapter = adapter("lora/adapter-init", &model);
    let optimizer = AdamW::new(adapter.parameters()).unwrap();
    let settings = trajectory("lora").settings(4);
    let before = values(adapter.parameters());
    let mut rows = micro_batches().swap_remove(0);
    let learner = Learner { model: &model, adapter: adapter.as_ref(), optimizer: &optimizer };
    let given_up = learner.launch(&Sft, &on_cpu(&[rows.clone()]), &settings, None, &|| true).unwrap();
    assert!(matches!(given_up, Launch::Interrupted), "{given_up:?}");
    for row in &mut rows {
        row.trained.fill(false);
    }
    let nothing = learner.launch(&Sft, &on_cpu(&[rows]), &settings, None, &|| false).unwrap();
    assert!(matches!(nothing, Launch::NothingTrained), "{nothing:?}");
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
