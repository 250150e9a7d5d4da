//! Repeats training runs of transformers and PEFT with the engine's own step: the same batches, losses,
//! gradient norms, final weights and logits.

use std::collections::BTreeMap;

use luthier_core::config::{Config, Schedule, TrainSection, Warmup};
use luthier_core::data::EncodedRow;
use luthier_engine::algorithms::Algorithm;
use luthier_engine::algorithms::sft::Sft;
use luthier_engine::layers::{Active, Adapter};
use luthier_engine::methods::{self, FullMethod, Method};
use luthier_engine::models::Model;
use luthier_engine::step::adamw::{AdamW, EPSILON};
use luthier_engine::step::batch::{Batch, Beginnings, collate};
use luthier_engine::step::{Launch, Learner, Measured, Outcome, StepSettings};
use luthier_engine::training::schedule::learning_rate;
use luthier_engine::{csrc, ops};
use serde::Deserialize;
use tch::{Device, Tensor};

use crate::references::{Run, runs};
use crate::support::{Merged, distance, distance_where, furthest, logits, relative, tensors};

#[derive(Deserialize)]
pub struct Trajectory {
    lr: f64,
    pub steps: u64,
    pub accumulation: usize,
    warmup: u64,
    clip: f64,
    weight_decay: f64,
    betas: [f64; 2],
    pub log: Vec<Logged>,
    /// `mean` if every micro-batch's mean has the same weight.
    normalisation: String,
    /// Parameters without weight decay.
    #[serde(default)]
    no_decay: Vec<String>,
    /// After full fine-tuning, by parameter.
    #[serde(default)]
    final_param_norm_and_sum: BTreeMap<String, [f64; 2]>,
}

#[derive(Deserialize)]
pub struct Logged {
    pub loss: f64,
    target_tokens: u64,
    grad_norm: f64,
    lr: f64,
}

impl Trajectory {
    pub fn of(run: &Run) -> Self {
        serde_json::from_value(run.json("trajectory.json")).unwrap()
    }

    /// Whether the run normalises its loss and decays its weights as the engine does.
    fn counts_as_we_do(&self) -> bool {
        self.normalisation == "tokens" && self.no_decay.is_empty()
    }

    fn train(&self) -> TrainSection {
        TrainSection {
            learning_rate: self.lr,
            schedule: Schedule::Cosine,
            warmup: Warmup::Steps(self.warmup),
            min_learning_rate: 0.0,
            ..Config::default().train
        }
    }

    pub fn settings(&self, step: u64) -> StepSettings {
        let learning_rate = learning_rate(&self.train(), step, self.steps);
        let (betas, weight_decay) = (self.betas, self.weight_decay);
        StepSettings {
            adamw: csrc::AdamW { learning_rate, betas, weight_decay, epsilon: EPSILON },
            max_grad_norm: self.clip,
            recompute: false,
            seed: step,
        }
    }
}

/// A run's initial or final adapter.
pub fn adapter(run: &Run, name: &str, model: &Model) -> Box<dyn Adapter> {
    if run.has(name) {
        return methods::load(&run.path(name), model).unwrap();
    }
    FullMethod.create(model, 0).unwrap()
}

/// The 40 micro-batches of a family's runs, without padding.
pub fn micro_batches(family: &str) -> Vec<Vec<EncodedRow>> {
    let tensors = tensors(&format!("training/{family}/batches.safetensors"));
    let [count, rows, width] = tensors["input_ids"].size()[..] else { panic!("three dimensions") };
    let column = |name: &str| ops::to_integers(&tensors[name]).unwrap();
    let (ids, masks, labels) = (column("input_ids"), column("attention_mask"), column("labels"));
    let row = |index: usize| {
        let tokens = index * width as usize..(index + 1) * width as usize;
        let length = masks[tokens.clone()].iter().sum::<i64>() as usize;
        let tokens = tokens.start..tokens.start + length;
        EncodedRow::of_one_side(
            index,
            ids[tokens.clone()].iter().map(|&id| id as u32).collect(),
            labels[tokens].iter().map(|&label| label != -100).collect(),
        )
    };
    (0..count as usize)
        .map(|batch| (0..rows as usize).map(|place| row(batch * rows as usize + place)).collect())
        .collect()
}

pub fn on_cpu(micro_batches: &[Vec<EncodedRow>]) -> Vec<Batch> {
    micro_batches
        .iter()
        .map(|rows| collate(rows, Beginnings::Once { worth: 16 }, Device::Cpu).unwrap())
        .collect()
}

pub fn make_step(
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &StepSettings,
) -> Measured {
    match settle(model, adapter, optimizer, batches, settings) {
        Outcome::Updated(measured) => measured,
        other @ Outcome::NotFinite(_) => panic!("{other:?}"),
    }
}

pub fn settle(
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &StepSettings,
) -> Outcome {
    let learner = Learner { model, adapter, optimizer };
    match learner.launch(&Sft, batches, settings, None, &|| false).unwrap() {
        Launch::Made(step) => step.settle(optimizer).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Makes all steps of a run.
pub fn follow(run: &Run, model: &Model, recompute: bool) -> (Box<dyn Adapter>, Vec<Measured>) {
    let reference = Trajectory::of(run);
    let adapter = adapter(run, "adapter-init", model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let micro_batches = micro_batches(&run.family);
    let measured = micro_batches
        .chunks(reference.accumulation)
        .take(reference.steps as usize)
        .enumerate()
        .map(|(index, rows)| {
            let settings = StepSettings { recompute, ..reference.settings(index as u64) };
            make_step(model, adapter.as_ref(), &mut optimizer, &on_cpu(rows), &settings)
        })
        .collect();
    (adapter, measured)
}

/// Repeats a run, and compares every step and every stored output.
fn assert_run(run: &Run, recompute: bool) {
    let name = &run.folder;
    let model = run.base();
    let (trained, measured) = follow(run, &model, recompute);
    let reference = Trajectory::of(run);
    assert_eq!(measured.len(), reference.log.len(), "{name}");
    for (index, (ours, expected)) in measured.iter().zip(&reference.log).enumerate() {
        assert_eq!(ours.trained_tokens, expected.target_tokens, "{name} step {index}");
        let (loss, norm) = ((ours.loss - expected.loss).abs(), relative(ours.grad_norm, expected.grad_norm));
        assert!(loss <= 2e-5, "{name} step {index}: loss {} instead of {}", ours.loss, expected.loss);
        let wanted = expected.grad_norm;
        assert!(norm <= 1e-4, "{name} step {index}: norm {} instead of {wanted}", ours.grad_norm);
    }
    if run.has("adapter-init") {
        let expected = adapter(run, "adapter-final", &model);
        let distance = furthest(trained.parameters(), expected.parameters());
        assert!(distance <= 1e-4, "{name}: the final adapter is {distance} away");
        assert_stored_logits(run, &model);
        let stored = tensors(&format!("{name}/logits.safetensors"));
        assert_logits(run, &model, trained.as_ref(), &stored["final_logits"]);
        if let Some(merged) = stored.get("merged_logits") {
            assert_logits(run, &model, &Merged::of(Some(trained.as_ref()), &model), merged);
        }
    } else {
        assert_weights(run, &model, trained.as_ref());
    }
}

/// Compares the logits of a run's stored adapters.
fn assert_stored_logits(run: &Run, model: &Model) {
    let stored = tensors(&format!("{}/logits.safetensors", run.folder));
    for (folder, logits) in [("adapter-init", "init_logits"), ("adapter-final", "final_logits")] {
        assert_logits(run, model, adapter(run, folder, model).as_ref(), &stored[logits]);
    }
}

/// Logits of the first micro-batch, without padding.
fn assert_logits(run: &Run, model: &Model, adapter: &dyn Adapter, expected: &Tensor) {
    let stored = tensors(&format!("training/{}/batches.safetensors", run.family));
    let (ids, counts) = (stored["input_ids"].get(0), stored["attention_mask"].get(0));
    let distance = distance_where(&counts, &logits(model, &ids, Active::All(adapter)), expected);
    assert!(distance <= 1e-4, "{}: logits are {distance} away", run.folder);
}

/// Compares the weights after full fine-tuning: some elementwise, all by their norm.
fn assert_weights(run: &Run, model: &Model, trained: &dyn Adapter) {
    let name = &run.folder;
    let stored = tensors(&format!("{name}/final.safetensors"));
    assert_logits(run, model, trained, &stored["final_logits"]);
    let mut compared = 0;
    // A constant added to all keys hardly affects attention, so AdamW follows rounding errors there.
    let is_noise = |name: &str| name.ends_with("k_proj.bias");
    for (parameter, ours) in trained.parameters() {
        let Some(expected) = stored.get(&format!("final.{parameter}")) else { continue };
        compared += 1;
        let distance = distance(ours, expected);
        assert!(is_noise(parameter) || distance <= 1e-4, "{name} {parameter}: {distance}");
    }
    assert_eq!(compared, stored.len() - 1, "{name}");
    let reference = Trajectory::of(run).final_param_norm_and_sum;
    assert!(reference.keys().eq(trained.parameters().keys()), "{name}");
    for (parameter, [norm, _]) in reference.into_iter().filter(|(parameter, _)| !is_noise(parameter)) {
        let ours = trained.parameters()[&parameter].norm().double_value(&[]);
        assert!(relative(ours, norm) <= 1e-4, "{name} {parameter}: {ours} instead of {norm}");
    }
}

/// Runs that normalise and decay as the engine does.
fn runs_like_ours() -> Vec<Run> {
    let mut found = runs();
    found.retain(|run| !run.is_projected() && Trajectory::of(run).counts_as_we_do());
    assert!(found.len() >= 26, "references are missing: {found:?}");
    found
}

#[test]
fn every_run_equals_the_reference() {
    for run in runs_like_ours() {
        assert_run(&run, false);
    }
}

#[test]
fn every_run_with_recomputed_activations_equals_the_reference() {
    for run in runs_like_ours() {
        assert_run(&run, true);
    }
}

#[test]
fn learning_rates_equal_the_reference() {
    for run in runs() {
        let reference = Trajectory::of(&run);
        for (step, logged) in reference.log.iter().enumerate() {
            let ours = learning_rate(&reference.train(), step as u64, reference.steps);
            let error = (ours - logged.lr).abs();
            assert!(error <= 1e-9, "{} step {step}: {ours} instead of {}", run.folder, logged.lr);
        }
    }
}

#[test]
fn a_stored_projected_prefix_gives_pefts_logits() {
    let projected: Vec<Run> = runs().into_iter().filter(Run::is_projected).collect();
    assert!(!projected.is_empty());
    for run in projected {
        assert_stored_logits(&run, &run.base());
    }
}

/// Runs with another normalisation differ enough for a test to detect it.
#[test]
fn other_normalisations_and_decays_would_be_detected() {
    let mut compared = 0;
    for other in runs() {
        let trajectory = Trajectory::of(&other);
        if trajectory.counts_as_we_do() {
            continue;
        }
        let name = other.folder.rsplit('/').next().unwrap();
        let ours = Trajectory::of(&Run::named(&other.family, name.split('-').next().unwrap()));
        let losses =
            ours.log.iter().zip(&trajectory.log).map(|(ours, other)| relative(ours.loss, other.loss));
        let apart = losses.fold(0.0, f64::max);
        // Only the weights show that norms and biases did not decay: the losses are nearly the same.
        assert_eq!(apart > 1e-3, trajectory.normalisation == "mean", "{}: {apart}", other.folder);
        compared += 1;
    }
    assert!(compared >= 7, "references are missing: {compared}");
}

/// How a step is computed, which must not change its result.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Rows in a micro-batch.
    pub size: usize,
    pub recompute: bool,
}

/// One update by an algorithm over whole answers, with the optimizer's settings of the references of TRL.
pub fn algorithm_step(
    algorithm: &mut dyn Algorithm,
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    rows: &[EncodedRow],
    cut: Cut,
    learning_rate: f64,
) -> Measured {
    let rows: Vec<&EncodedRow> = rows.iter().collect();
    let micro_batches: Vec<Vec<&EncodedRow>> = rows.chunks(cut.size).map(<[_]>::to_vec).collect();
    let settings = StepSettings {
        adamw: csrc::AdamW { learning_rate, betas: [0.9, 0.999], weight_decay: 0.01, epsilon: EPSILON },
        max_grad_norm: 0.0,
        recompute: cut.recompute,
        seed: 1,
    };
    let learner = Learner { model, adapter, optimizer: &*optimizer };
    let launch = algorithm.launch(&learner, &micro_batches, &settings, None, &|| false).unwrap();
    let Launch::Made(step) = launch else { panic!("{launch:?}") };
    match step.settle(optimizer).unwrap() {
        Outcome::Updated(measured) => measured,
        other @ Outcome::NotFinite(_) => panic!("{other:?}"),
    }
}
