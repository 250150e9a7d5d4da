//! The loss held against TRL: log-probabilities, losses, rewards, gradient norms and the adapter they lead to.

use luthier_core::data::EncodedSide;
use serde::Deserialize;
use tch::Kind;

use super::*;
use crate::csrc;
use crate::methods::lora::Lora;
use crate::methods::{Adapter, Parameters};
use crate::training::adamw::{AdamW, EPSILON};
use crate::training::parity::{furthest, references, relative, tiny_llama};
use crate::training::reference::{Key, Reference, log_probs};
use crate::training::step::{Launch, Learner, Measured, Outcome, Settings};
use crate::weights::safetensors;

const PAIRS: usize = 4;

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

fn known() -> Known {
    let text = std::fs::read(references("training/llama/dpo/dpo.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The pairs of the reference, padding taken off.
fn rows() -> Vec<EncodedRow> {
    let tensors = safetensors::read(&references("training/llama/dpo/batch.safetensors")).unwrap();
    let width = tensors["input_ids"].size()[1] as usize;
    let column = |name: &str| ops::to_integers(&tensors[name]).unwrap();
    let (ids, seen, answered) = (column("input_ids"), column("attention_mask"), column("completion_mask"));
    let side = |index: usize| {
        let start = index * width;
        let tokens = start..start + seen[start..start + width].iter().sum::<i64>() as usize;
        let trained = answered[tokens.clone()].iter().map(|&answered| answered == 1).collect();
        EncodedSide { ids: ids[tokens].iter().map(|&id| id as u32).collect(), trained }
    };
    (0..PAIRS)
        .map(|row| {
            let EncodedSide { ids, trained } = side(row);
            EncodedRow { row, ids, trained, rejected: Some(side(PAIRS + row)) }
        })
        .collect()
}

fn adapter(name: &str, model: &Model) -> Lora {
    Lora::load(&references(&format!("training/llama/dpo/{name}")), model).unwrap()
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
fn losses_and_rewards_are_a_function_of_four_log_probabilities() {
    let Known { beta, first_step: first, .. } = known();
    let side =
        |chosen: &[f64], rejected: &[f64]| LogProbs { chosen: doubles(chosen), rejected: doubles(rejected) };
    let policy = side(&first.policy_logps_chosen, &first.policy_logps_rejected);
    let reference = side(&first.ref_logps_chosen, &first.ref_logps_rejected);
    let plain = Dpo { beta, label_smoothing: 0.0 }.compare(&policy, &reference).unwrap();
    assert!(relative(mean(&plain.losses), first.losses.sigmoid) <= 1e-6);
    nearly(&numbers(&plain.chosen), &first.rewards_chosen, 1e-7, "chosen");
    nearly(&numbers(&plain.rejected), &first.rewards_rejected, 1e-7, "rejected");
    let smoothed = Dpo { beta, label_smoothing: 0.1 }.compare(&policy, &reference).unwrap();
    assert!(relative(mean(&smoothed.losses), first.losses.conservative) <= 1e-6);
    assert_eq!(numbers(&smoothed.chosen), numbers(&plain.chosen));
}

#[test]
fn gradients_of_the_loss_are_its_slopes_and_margins_beyond_bounds_stay_finite() {
    let reference =
        LogProbs { chosen: doubles(&[-10.0, -3.0, -7.0]), rejected: doubles(&[-9.0, -4.0, -7.0]) };
    let at = [-11.0, -2.5, -7.0, -9.5, -5.0, -7.0];
    for label_smoothing in [0.0, 0.2] {
        let dpo = Dpo { beta: 0.7, label_smoothing };
        let sum = |values: &[f64]| {
            let all = doubles(values).set_requires_grad(true);
            let policy = LogProbs { chosen: all.narrow(0, 0, 3), rejected: all.narrow(0, 3, 3) };
            (dpo.compare(&policy, &reference).unwrap().losses.sum(Kind::Double), all)
        };
        let (loss, all) = sum(&at);
        loss.backward();
        let width = 1e-5;
        let slopes: Vec<f64> = (0..at.len())
            .map(|index| {
                let moved = |by: f64| {
                    let mut values = at;
                    values[index] += by;
                    sum(&values).0.double_value(&[])
                };
                (moved(width) - moved(-width)) / (2.0 * width)
            })
            .collect();
        nearly(&numbers(&all.grad()), &slopes, 1e-8, "slope");

        let far = LogProbs { chosen: doubles(&[-1e6, 0.0]), rejected: doubles(&[0.0, -1e6]) };
        let none = LogProbs { chosen: doubles(&[0.0, 0.0]), rejected: doubles(&[0.0, 0.0]) };
        let losses = numbers(&dpo.compare(&far, &none).unwrap().losses);
        nearly(&losses, &[7e5 * (1.0 - label_smoothing), 7e5 * label_smoothing], 1e-6, "loss");
    }
}

#[test]
fn answers_are_as_likely_as_they_are_to_trl() {
    let model = tiny_llama(Kind::Float);
    let First { policy_logps_chosen, policy_logps_rejected, ref_logps_chosen, ref_logps_rejected, .. } =
        known().first_step;
    let rows = rows();
    let adapter = adapter("adapter-init", &model);
    let pairs = Pairs::new(&rows.iter().collect::<Vec<_>>(), ONCE, Device::Cpu).unwrap();
    for (adapters, chosen, rejected) in [
        (Active::All(&adapter), &policy_logps_chosen, &policy_logps_rejected),
        (Active::Base, &ref_logps_chosen, &ref_logps_rejected),
    ] {
        let found = log_probs(&model, adapters, &pairs).unwrap();
        nearly(&numbers(&found.chosen), chosen, 5e-5, "chosen");
        nearly(&numbers(&found.rejected), rejected, 5e-5, "rejected");
    }
}

/// Steps over the reference's pairs, each step cut into micro-batches of `size`.
const ONCE: Beginnings = Beginnings::Once { worth: 16 };

struct Run<'a> {
    model: &'a Model,
    adapter: Lora,
    optimizer: AdamW,
    reference: Reference,
    dpo: Dpo,
    size: usize,
    recompute: bool,
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, size: usize, recompute: bool) -> Self {
        let adapter = adapter("adapter-init", model);
        let optimizer = AdamW::new(adapter.parameters()).unwrap();
        // Nothing is kept, so the folder need not be there.
        let reference = Reference::open("nowhere".as_ref(), Key::default());
        let dpo = Dpo { beta: known().beta, label_smoothing: 0.0 };
        Self { model, adapter, optimizer, reference, dpo, size, recompute }
    }

    fn step(&mut self, learning_rate: f64) -> Measured {
        let rows = rows();
        let rows: Vec<&EncodedRow> = rows.iter().collect();
        let batches: Vec<PairBatch> = rows
            .chunks(self.size)
            .map(|part| self.reference.batch(self.model, part, ONCE).unwrap())
            .collect();
        let settings = Settings {
            adamw: csrc::AdamW { learning_rate, betas: [0.9, 0.999], weight_decay: 0.01, epsilon: EPSILON },
            max_grad_norm: 0.0,
            recompute: self.recompute,
            seed: 1,
        };
        let learner = Learner { model: self.model, adapter: &self.adapter, optimizer: &self.optimizer };
        let launch = learner.launch(&self.dpo, &batches, &settings, None, &|| false).unwrap();
        let Launch::Made(step) = launch else { panic!("{launch:?}") };
        match step.settle(&mut self.optimizer).unwrap() {
            Outcome::Updated(measured) => measured,
            other @ Outcome::NotFinite(_) => panic!("{other:?}"),
        }
    }

    fn parameters(&self) -> &Parameters {
        self.adapter.parameters()
    }
}

#[test]
fn ten_steps_equal_the_reference() {
    let model = tiny_llama(Kind::Float);
    let expected = adapter("adapter-final", &model);
    for (size, recompute) in [(PAIRS, false), (PAIRS, true), (1, false), (3, true)] {
        let mut run = Run::new(&model, size, recompute);
        let place = format!("{size} pairs at once, recompute {recompute}");
        for (index, logged) in known().log.iter().enumerate() {
            let ours = run.step(logged.lr);
            let rewards = ours.rewards.unwrap();
            // Later steps gather the rounding of those before.
            let bound = if index == 0 { 1e-5 } else { 1e-4 };
            assert!(relative(ours.loss, logged.loss) <= bound, "{place}, step {index}: {ours:?}");
            assert!(relative(ours.grad_norm, logged.grad_norm) <= bound, "{place}, step {index}: {ours:?}");
            nearly(&[rewards.reward_margin.get()], &[logged.reward_margin], 1e-4, &place);
            nearly(&[rewards.reward_accuracy.get()], &[logged.accuracy], 1e-9, &place);
        }
        let distance = furthest(run.parameters(), expected.parameters());
        assert!(distance <= 1e-4, "{place}: the final adapter is {distance} away");
    }
}

#[test]
fn a_step_does_not_depend_on_how_it_is_cut() {
    let model = tiny_llama(Kind::Float);
    let mut results = [PAIRS, 1, 2, 3].map(|size| {
        let mut run = Run::new(&model, size, false);
        (run.step(1e-3), run)
    });
    let (first, others) = results.split_first_mut().unwrap();
    for (measured, other) in others {
        assert!(relative(measured.loss, first.0.loss) <= 1e-6, "{measured:?} {:?}", first.0);
        assert!(relative(measured.grad_norm, first.0.grad_norm) <= 1e-5, "{measured:?} {:?}", first.0);
        assert_eq!((measured.tokens, measured.trained_tokens), (first.0.tokens, first.0.trained_tokens));
        assert!(furthest(other.parameters(), first.1.parameters()) <= 1e-5);
    }
}

#[test]
fn a_row_with_one_side_is_no_pair() {
    let mut row = rows().remove(0);
    row.rejected = None;
    let error = Pairs::new(&[&row], ONCE, Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("row 0 is no preference pair"), "{error}");
}
