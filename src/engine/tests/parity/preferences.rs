//! Compares runs over preference pairs with TRL: log-probabilities, losses, rewards, gradient norms and the
//! final adapter.

use luthier_core::data::{EncodedRow, EncodedSide};
use luthier_engine::algorithms::dpo::{Dpo, DpoLoss, LogProbs, Pairs};
use luthier_engine::algorithms::reference::{Key, Reference};
use luthier_engine::layers::{Active, Adapter, Parameters};
use luthier_engine::methods::lora::Lora;
use luthier_engine::models::Model;
use luthier_engine::ops;
use luthier_engine::step::Measured;
use luthier_engine::step::adamw::AdamW;
use luthier_engine::step::batch::Beginnings;
use serde::Deserialize;
use tch::{Device, Tensor};

use crate::references::{Run, preference_runs};
use crate::runs::{Cut, algorithm_step};
use crate::support::{furthest, relative, tensors};

#[derive(Deserialize)]
struct Known {
    beta: f64,
    first_step: First,
    log: Vec<Logged>,
}

#[derive(Deserialize)]
struct First {
    policy_logps_chosen: Vec<f64>,
    policy_logps_rejected: Vec<f64>,
    ref_logps_chosen: Vec<f64>,
    ref_logps_rejected: Vec<f64>,
    losses: Losses,
    rewards_chosen: Vec<f64>,
    rewards_rejected: Vec<f64>,
}

#[derive(Deserialize)]
struct Losses {
    sigmoid: f64,
    #[serde(rename = "sigmoid_label_smoothing_0.1(cDPO)")]
    conservative: f64,
}

#[derive(Deserialize)]
struct Logged {
    loss: f64,
    grad_norm: f64,
    lr: f64,
    reward_margin: f64,
    accuracy: f64,
}

fn known(run: &Run) -> Known {
    serde_json::from_value(run.json("dpo.json")).unwrap()
}

/// The pairs of a run without padding: all chosen sides, then all rejected ones.
fn rows(run: &Run) -> Vec<EncodedRow> {
    let tensors = tensors(&format!("{}/batch.safetensors", run.folder));
    let (sides, width) = tensors["input_ids"].size2().unwrap();
    let (pairs, width) = (sides as usize / 2, width as usize);
    let column = |name: &str| ops::to_integers(&tensors[name]).unwrap();
    let (ids, seen, answered) = (column("input_ids"), column("attention_mask"), column("completion_mask"));
    let side = |index: usize| {
        let start = index * width;
        let tokens = start..start + seen[start..start + width].iter().sum::<i64>() as usize;
        let trained = answered[tokens.clone()].iter().map(|&answered| answered == 1).collect();
        EncodedSide { ids: ids[tokens].iter().map(|&id| id as u32).collect(), trained, label: None }
    };
    (0..pairs).map(|row| EncodedRow { row, sides: vec![side(row), side(pairs + row)] }).collect()
}

fn adapter(run: &Run, name: &str, model: &Model) -> Lora {
    Lora::load(&run.path(name), model).unwrap()
}

fn doubles(values: &[f64]) -> Tensor {
    ops::doubles(values, Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    ops::to_doubles(tensor).unwrap()
}

fn nearly(ours: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= bound, "{what}: {ours} instead of {expected}");
    }
}

fn mean(values: &Tensor) -> f64 {
    numbers(values).iter().sum::<f64>() / values.numel() as f64
}

#[test]
fn losses_and_rewards_follow_from_four_log_probabilities() {
    for run in preference_runs() {
        let Known { beta, first_step: first, .. } = known(&run);
        let side = |chosen: &[f64], rejected: &[f64]| LogProbs {
            chosen: doubles(chosen),
            rejected: doubles(rejected),
        };
        let policy = side(&first.policy_logps_chosen, &first.policy_logps_rejected);
        let reference = side(&first.ref_logps_chosen, &first.ref_logps_rejected);
        let plain = DpoLoss { beta, label_smoothing: 0.0 }.compare(&policy, &reference).unwrap();
        assert!(relative(mean(&plain.losses), first.losses.sigmoid) <= 1e-6);
        nearly(&numbers(&plain.chosen), &first.rewards_chosen, 1e-7, "chosen");
        nearly(&numbers(&plain.rejected), &first.rewards_rejected, 1e-7, "rejected");
        let smoothed = DpoLoss { beta, label_smoothing: 0.1 }.compare(&policy, &reference).unwrap();
        assert!(relative(mean(&smoothed.losses), first.losses.conservative) <= 1e-6);
        assert_eq!(numbers(&smoothed.chosen), numbers(&plain.chosen));
    }
}

#[test]
fn log_probabilities_equal_those_of_trl() {
    for run in preference_runs() {
        let model = run.base();
        let first = known(&run).first_step;
        let rows = rows(&run);
        let adapter = adapter(&run, "adapter-init", &model);
        let pairs = Pairs::new(&rows.iter().collect::<Vec<_>>(), ONCE, Device::Cpu).unwrap();
        for (adapters, chosen, rejected) in [
            (Active::All(&adapter), &first.policy_logps_chosen, &first.policy_logps_rejected),
            (Active::Base, &first.ref_logps_chosen, &first.ref_logps_rejected),
        ] {
            let found = pairs.ask(&model, adapters).unwrap();
            nearly(&numbers(&found.chosen), chosen, 5e-5, "chosen");
            nearly(&numbers(&found.rejected), rejected, 5e-5, "rejected");
        }
    }
}

const ONCE: Beginnings = Beginnings::Once { worth: 16 };

/// Steps over the pairs of a reference run, each split into micro-batches of `size`.
struct Steps<'a> {
    model: &'a Model,
    rows: Vec<EncodedRow>,
    adapter: Lora,
    optimizer: AdamW,
    dpo: Dpo,
    size: usize,
    recompute: bool,
}

impl<'a> Steps<'a> {
    fn new(run: &Run, model: &'a Model, size: usize, recompute: bool) -> Self {
        let adapter = adapter(run, "adapter-init", model);
        let optimizer = AdamW::new(adapter.parameters()).unwrap();
        // Nothing is stored, so the folder need not exist.
        let reference = Reference::open("nowhere".as_ref(), Key::default());
        let dpo = Dpo::new(DpoLoss { beta: known(run).beta, label_smoothing: 0.0 }, reference);
        Self { model, rows: rows(run), adapter, optimizer, dpo, size, recompute }
    }

    fn step(&mut self, learning_rate: f64) -> Measured {
        let cut = Cut { size: self.size, recompute: self.recompute };
        algorithm_step(
            &mut self.dpo,
            self.model,
            &self.adapter,
            &mut self.optimizer,
            &self.rows,
            cut,
            learning_rate,
        )
    }

    fn parameters(&self) -> &Parameters {
        self.adapter.parameters()
    }
}

#[test]
fn every_step_equals_the_reference() {
    for run in preference_runs() {
        let model = run.base();
        let (known, pairs) = (known(&run), rows(&run).len());
        let expected = adapter(&run, "adapter-final", &model);
        for (size, recompute) in [(pairs, false), (pairs, true), (1, false), (3, true)] {
            let mut steps = Steps::new(&run, &model, size, recompute);
            let place = format!("{}, {size} pairs at once, recompute {recompute}", run.folder);
            for (index, logged) in known.log.iter().enumerate() {
                let ours = steps.step(logged.lr);
                let metric = |name: &str| ours.metrics[name].get();
                // Rounding errors accumulate from step to step.
                let bound = if index == 0 { 1e-5 } else { 1e-4 };
                assert!(relative(ours.loss, logged.loss) <= bound, "{place}, step {index}: {ours:?}");
                let norm = relative(ours.grad_norm, logged.grad_norm);
                assert!(norm <= bound, "{place}, step {index}: {ours:?}");
                nearly(&[metric("reward_margin")], &[logged.reward_margin], 1e-4, &place);
                nearly(&[metric("reward_accuracy")], &[logged.accuracy], 1e-9, &place);
            }
            let distance = furthest(steps.parameters(), expected.parameters());
            assert!(distance <= 1e-4, "{place}: the final adapter is {distance} away");
        }
    }
}

#[test]
fn a_step_does_not_depend_on_how_it_is_split() {
    for run in preference_runs() {
        let model = run.base();
        let mut results = [rows(&run).len(), 1, 2, 3].map(|size| {
            let mut steps = Steps::new(&run, &model, size, false);
            (steps.step(1e-3), steps)
        });
        let (first, others) = results.split_first_mut().unwrap();
        for (measured, other) in others {
            assert!(relative(measured.loss, first.0.loss) <= 1e-6, "{measured:?} {:?}", first.0);
            assert!(relative(measured.grad_norm, first.0.grad_norm) <= 1e-5, "{measured:?} {:?}", first.0);
            assert_eq!((measured.tokens, measured.trained_tokens), (first.0.tokens, first.0.trained_tokens));
            assert!(furthest(other.parameters(), first.1.parameters()) <= 1e-5);
        }
    }
}
