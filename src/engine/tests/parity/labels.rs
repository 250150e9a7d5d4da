//! Compares runs over labelled answers with TRL's KTOTrainer: losses, gradient norms, rewards, KL and the
//! final adapter.

use std::collections::BTreeMap;

use luthier_core::data::{EncodedRow, EncodedSide};
use luthier_engine::algorithms::Algorithm;
use luthier_engine::algorithms::kto::{Kto, KtoLoss};
use luthier_engine::algorithms::reference::{Key, Reference};
use luthier_engine::layers::{Active, Adapter};
use luthier_engine::methods::lora::Lora;
use luthier_engine::models::Model;
use luthier_engine::ops;
use luthier_engine::step::Measured;
use luthier_engine::step::adamw::AdamW;
use serde::Deserialize;
use tch::Tensor;

use crate::references::{Run, label_runs};
use crate::runs::{Cut, algorithm_step};
use crate::support::{furthest, relative, tensors};

#[derive(Deserialize)]
struct Known {
    beta: f64,
    desirable_weight: f64,
    undesirable_weight: f64,
    log: Vec<Logged>,
}

#[derive(Deserialize)]
struct Logged {
    loss: f64,
    grad_norm: f64,
    lr: f64,
    /// Metrics by our names.
    #[serde(flatten)]
    others: BTreeMap<String, f64>,
}

fn known(run: &Run) -> Known {
    serde_json::from_value(run.json("kto.json")).unwrap()
}

fn adapter(run: &Run, name: &str, model: &Model) -> Lora {
    Lora::load(&run.path(name), model).unwrap()
}

/// TRL's batches in order, without padding.
fn batches(run: &Run) -> Vec<Vec<EncodedRow>> {
    let tensors = tensors(&format!("{}/batches.safetensors", run.folder));
    let batch = |place: usize| {
        let column = |name: &str| {
            tensors.get(&format!("{place}.{name}")).map(|x: &Tensor| ops::to_integers(x).unwrap())
        };
        let (ids, seen, answered) =
            (column("input_ids")?, column("attention_mask")?, column("completion_mask")?);
        let labels = column("label")?;
        let width = ids.len() / labels.len();
        let row = |(row, &label): (usize, &i64)| {
            let all = row * width..(row + 1) * width;
            let tokens = all.start..all.start + seen[all].iter().sum::<i64>() as usize;
            let side = EncodedSide {
                ids: ids[tokens.clone()].iter().map(|&id| id as u32).collect(),
                trained: answered[tokens].iter().map(|&answered| answered == 1).collect(),
                label: Some(label == 1),
            };
            EncodedRow { row: place * labels.len() + row, sides: vec![side] }
        };
        Some(labels.iter().enumerate().map(row).collect())
    };
    (0..).map_while(batch).collect()
}

/// A run's model and adapter, for making its steps, each split into micro-batches of `size`.
struct Steps<'a> {
    model: &'a Model,
    adapter: Lora,
    optimizer: AdamW,
    kto: Kto,
    size: usize,
    recompute: bool,
}

impl<'a> Steps<'a> {
    fn new(run: &Run, model: &'a Model, size: usize, recompute: bool) -> Self {
        let adapter = adapter(run, "adapter-init", model);
        let optimizer = AdamW::new(adapter.parameters()).unwrap();
        let Known { beta, desirable_weight, undesirable_weight, .. } = known(run);
        // Nothing is stored, so the folder need not exist.
        let reference = Reference::open("nowhere".as_ref(), Key::default());
        let kto = Kto::new(KtoLoss { beta, desirable_weight, undesirable_weight }, reference, 128);
        Self { model, adapter, optimizer, kto, size, recompute }
    }

    fn step(&mut self, rows: &[EncodedRow], learning_rate: f64) -> Measured {
        let cut = Cut { size: self.size, recompute: self.recompute };
        algorithm_step(
            &mut self.kto,
            self.model,
            &self.adapter,
            &mut self.optimizer,
            rows,
            cut,
            learning_rate,
        )
    }
}

#[test]
fn every_step_equals_the_reference() {
    for run in label_runs() {
        let model = run.base();
        let (known, batches) = (known(&run), batches(&run));
        let rows = batches[0].len();
        let expected = adapter(&run, "adapter-final", &model);
        for (size, recompute) in [(rows, false), (rows, true), (1, false), (3, true)] {
            let mut steps = Steps::new(&run, &model, size, recompute);
            let place = format!("{}, {size} rows at once, recompute {recompute}", run.folder);
            for (index, (logged, rows)) in known.log.iter().zip(batches.iter().cycle()).enumerate() {
                let ours = steps.step(rows, logged.lr);
                let place = format!("{place}, step {}: {ours:?}", index + 1);
                assert!(relative(ours.loss, logged.loss) <= 1e-4, "{place}");
                assert!(relative(ours.grad_norm, logged.grad_norm) <= 1e-3, "{place}");
                assert!(logged.others.contains_key("kl") && logged.others.contains_key("reward_desirable"));
                for (name, expected) in logged.others.iter().filter(|(name, _)| *name != "step") {
                    let found = ours.metrics[name.as_str()].get();
                    assert!((found - expected).abs() <= 2e-4, "{name} is {found}, not {expected}; {place}");
                }
            }
            let distance = furthest(steps.adapter.parameters(), expected.parameters());
            assert!(distance <= 1e-4, "{place}: the final adapter is {distance} away");
        }
    }
}

#[test]
fn held_out_rows_give_the_metrics_of_a_step() {
    for run in label_runs() {
        let model = run.base();
        let (known, batches) = (known(&run), batches(&run));
        let mut steps = Steps::new(&run, &model, 4, false);
        let before = adapter(&run, "adapter-init", &model);
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let found = steps.kto.held_out(&model, Active::All(&before), &batches[0], go_on).unwrap().unwrap();
        assert!(relative(found.loss, known.log[0].loss) <= 1e-4, "{found:?}");
        let kl = found.metrics["kl"].get();
        assert!((kl - known.log[0].others["kl"]).abs() <= 2e-4, "{found:?}");
        let base = steps.kto.held_out(&model, Active::Base, &batches[0], go_on).unwrap().unwrap();
        assert!(
            base.metrics["kl"].get().abs() <= 1e-12 && base.metrics["reward_margin"].get().abs() <= 1e-12
        );
    }
}
