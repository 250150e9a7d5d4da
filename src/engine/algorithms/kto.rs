//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): each answer is by itself, labelled good or
//! bad, and is to become likelier or less likely than it is to the base model.
//!
//! With `π` the model that is trained, `ref` its base, and log-probabilities summed over an answer's tokens, the answer's
//! ratio is `r = log π(answer) − log ref(answer)`. A good answer's loss is `w_d · (1 − σ(β · (r − KL)))`, a bad one's
//! `w_u · (1 − σ(β · (KL − r)))` (equation 7), and a step's loss is their mean. `KL` estimates how far the model is from its
//! base: the mean of `r` over the step's prompts, each with the answer of the row before it in the step (the first with that
//! of the last), at least 0, without gradient. This is TRL's `loss_type = "kto"`; TRL takes the answers of a micro-batch,
//! this takes those of the whole step, so that the loss is the same however a step is cut. With a single row in a step, whose
//! only answer is its own, KL is 0. The forward passes for KL are without dropout. A prompt with another row's answer is cut
//! at `data.max_length` at its end.

use std::ops::ControlFlow;

use luthier_core::config::{Config, MethodKind, TrainSection};
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::runs::{Metrics, RunDir};
use tch::{Device, Kind, Tensor};

use super::answers::Answers;
use super::reference::{Key, Reference};
use super::{Algorithm, HeldOut, Progress, TOKENS_AT_ONCE, metrics, parts, parts_of};
use crate::base::Base;
use crate::error::{EngineError, Result};
use crate::in_halves::in_halves;
use crate::layers::Active;
use crate::models::Model;
use crate::ops;
use crate::step::batch::{Batch, Beginnings, Sequence};
use crate::step::{Launch, Launched, Learner, Loss, Objective, StepSettings};

/// The algorithm: its loss, and the log-probabilities under the base model.
#[derive(Debug)]
pub struct Kto {
    loss: KtoLoss,
    reference: Reference,
    /// Most tokens of a prompt with another row's answer.
    max_length: usize,
}

/// The loss of labelled answers, averaged over all rows of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KtoLoss {
    /// β: how strongly the model is held to its base.
    pub beta: f64,
    /// What a good answer's loss counts.
    pub desirable_weight: f64,
    /// What a bad answer's loss counts.
    pub undesirable_weight: f64,
}

/// What R labelled answers come to, `[R]` f64 each.
#[derive(Debug)]
pub struct Judged {
    /// Losses; carry the gradient of the ratios.
    pub losses: Tensor,
    /// `β · r`, without gradient.
    pub rewards: Tensor,
}

/// The labels of R rows as the loss counts with them, `[R]` f64 each.
#[derive(Debug)]
pub struct Labels {
    /// 1 of a good answer, 0 of a bad one.
    good: Tensor,
    /// 1 of a good answer, -1 of a bad one.
    signs: Tensor,
    weights: Tensor,
}

impl KtoLoss {
    /// As configured.
    pub fn new(train: &TrainSection) -> Self {
        Self {
            beta: train.kto_beta,
            desirable_weight: train.kto_desirable_weight,
            undesirable_weight: train.kto_undesirable_weight,
        }
    }

    /// Labels, `true` for good, on `device`.
    pub fn labels(&self, labels: &[bool], device: Device) -> Result<Labels> {
        let each = |good: f64, bad: f64| {
            let values: Vec<f64> = labels.iter().map(|&label| if label { good } else { bad }).collect();
            ops::doubles(&values, device)
        };
        Ok(Labels {
            good: each(1.0, 0.0)?,
            signs: each(1.0, -1.0)?,
            weights: each(self.desirable_weight, self.undesirable_weight)?,
        })
    }

    /// Losses and rewards of answers, from their ratios `[R]` f64 and the 0-dimensional f64 KL.
    pub fn judge(&self, ratios: &Tensor, labels: &Labels, kl: &Tensor) -> Result<Judged> {
        // 1 − σ(x) is σ(−x).
        let below = ops::multiply(&labels.signs, &ops::scale(&ops::subtract(kl, ratios)?, self.beta)?)?;
        let losses = ops::multiply(&labels.weights, &ops::sigmoid(&below)?)?;
        Ok(Judged { losses, rewards: ops::scale(&ops::detach(ratios)?, self.beta)? })
    }
}

impl Judged {
    /// Rewards of the good answers, rewards of all answers, number of good answers, R times the KL: `[4]` f32, sums over
    /// the rows.
    fn sums(&self, labels: &Labels, kl: &Tensor) -> Result<Tensor> {
        let rows = self.losses.numel() as f64;
        let sums = [
            ops::sum(&ops::multiply(&self.rewards, &labels.good)?)?,
            ops::sum(&self.rewards)?,
            ops::sum(&labels.good)?,
            ops::to_kind(&ops::scale(kl, rows)?, Kind::Float)?,
        ];
        ops::join(&sums)
    }
}

/// R labelled answers with their log-probabilities under the base model.
#[derive(Debug)]
pub struct LabelledBatch {
    answers: Answers,
    /// Log-probabilities under the base model, `[R]` f64.
    reference: Tensor,
    labels: Labels,
}

impl AsRef<Batch> for LabelledBatch {
    fn as_ref(&self) -> &Batch {
        self.answers.as_ref()
    }
}

/// The loss of one step, whose KL is known.
struct OfStep {
    loss: KtoLoss,
    /// 0-dimensional f64.
    kl: Tensor,
}

impl Objective for OfStep {
    type Batch = LabelledBatch;

    /// Rows.
    fn units(&self, batch: &LabelledBatch) -> u64 {
        batch.reference.numel() as u64
    }

    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &LabelledBatch) -> Result<Loss> {
        let policy = batch.answers.log_probs(model, adapters, hidden)?;
        let judged = self.loss.judge(&ops::subtract(&policy, &batch.reference)?, &batch.labels, &self.kl)?;
        Ok(Loss { sum: ops::sum(&judged.losses)?, sums: Some(judged.sums(&batch.labels, &self.kl)?) })
    }

    /// Without a good or a bad answer in the step, its mean reward is missing.
    fn metrics(sums: &[f64], units: u64) -> Metrics {
        let [of_good, of_all, good, kl] =
            [0, 1, 2, 3].map(|place: usize| sums.get(place).copied().unwrap_or_default());
        let bad = units as f64 - good;
        let desirable = (good > 0.0).then(|| of_good / good);
        let undesirable = (bad > 0.0).then(|| (of_all - of_good) / bad);
        metrics([
            ("reward_desirable", desirable),
            ("reward_undesirable", undesirable),
            ("reward_margin", desirable.zip(undesirable).map(|(good, bad)| good - bad)),
            ("kl", Some(kl / units as f64)),
        ])
    }
}

impl Kto {
    /// With a loss and a reference. A prompt with another row's answer is cut at `max_length` tokens.
    pub fn new(loss: KtoLoss, reference: Reference, max_length: usize) -> Self {
        Self { loss, reference, max_length }
    }

    /// As configured, with what the run computed before.
    pub fn of_run(run: &RunDir, base: &Base, config: &Config, prepared: &Prepared) -> Self {
        let key = Key::new(base, config, prepared, prepared.train.iter().chain(&prepared.eval));
        let has_virtual_tokens = matches!(config.method.kind, MethodKind::Prefix | MethodKind::Prompt);
        let virtual_tokens = if has_virtual_tokens { config.method.virtual_tokens } else { 0 };
        let positions = base.files.architecture.learned_positions.unwrap_or(usize::MAX);
        let max_length = config.data.max_length.min(positions.saturating_sub(virtual_tokens));
        Self::new(KtoLoss::new(&config.train), Reference::open(run.path(), key), max_length)
    }

    /// The log-probabilities of R rows under the base model, `[R]` f64.
    fn reference(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<Tensor> {
        let sides = self.reference.of(model, rows, beginnings)?;
        match sides.as_slice() {
            [only] => Ok(only.shallow_clone()),
            _ => Err(EngineError::Data("a labelled answer must have exactly one side".into())),
        }
    }

    /// The mean ratio of mismatched answers, 0-dimensional f64 without gradient, at least 0. `None` if cancelled.
    fn kl(
        &self,
        model: &Model,
        adapters: Active,
        rows: &[&EncodedRow],
        tokens_at_once: usize,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<Tensor>> {
        let _guard = tch::no_grad_guard();
        let nothing = ops::reshape(&ops::doubles(&[0.0], model.device())?, &[])?;
        if rows.len() < 2 {
            return Ok(Some(nothing));
        }
        let mismatched = mismatched(rows, self.max_length);
        let mut sum = nothing.shallow_clone();
        for part in parts_of(&mismatched, tokens_at_once) {
            if go_on().is_break() {
                return Ok(None);
            }
            let sequences: Vec<Sequence> = part.into_iter().flat_map(Sequence::of).collect();
            let answers = Answers::new(&sequences, Beginnings::of(model), model.device())?;
            let ratios = ops::subtract(&answers.ask(model, adapters)?, &answers.ask(model, Active::Base)?)?;
            sum = ops::add(&sum, &ops::to_kind(&ops::sum(&ratios)?, Kind::Double)?)?;
        }
        ops::maximum(&ops::scale(&sum, 1.0 / rows.len() as f64)?, &nothing).map(Some)
    }
}

/// Each row's prompt with the answer of the row before it, the first with that of the last, cut at `max_length` tokens.
fn mismatched(rows: &[&EncodedRow], max_length: usize) -> Vec<EncodedRow> {
    let halves = |row: &'_ EncodedRow| {
        let side = row.sides.first().cloned();
        let (mut ids, mut trained) = side.map_or_else(Default::default, |side| (side.ids, side.trained));
        let start = trained.iter().position(|&trained| trained).unwrap_or(ids.len());
        let answer = (ids.split_off(start), trained.split_off(start));
        ((ids, trained), answer)
    };
    let mut last = rows.last().map(|row| halves(row).1).unwrap_or_default();
    let mut pair = |row: &&EncodedRow| {
        let ((mut ids, mut trained), own) = halves(row);
        let (other_ids, other_trained) = std::mem::replace(&mut last, own);
        ids.extend(other_ids);
        trained.extend(other_trained);
        ids.truncate(max_length);
        trained.truncate(max_length);
        EncodedRow::of_one_side(row.row, ids, trained)
    };
    rows.iter().map(&mut pair).collect()
}

/// Whether each row's answer is a good one.
fn labels(rows: &[&EncodedRow]) -> Result<Vec<bool>> {
    let label = |row: &&EncodedRow| {
        let label = row.sides.first().and_then(|side| side.label);
        label.ok_or_else(|| EngineError::Data(format!("row {} has no label", row.row)))
    };
    rows.iter().map(label).collect()
}

impl Algorithm for Kto {
    fn launch(
        &mut self,
        learner: &Learner,
        micro_batches: &[Vec<&EncodedRow>],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let (model, device) = (learner.model, learner.model.device());
        let beginnings = Beginnings::under(model, learner.adapter);
        let mut batches = Vec::with_capacity(micro_batches.len());
        for rows in micro_batches {
            if interrupted() {
                return Ok(Launch::Interrupted);
            }
            let sequences: Vec<Sequence> = rows.iter().copied().flat_map(Sequence::of).collect();
            batches.push(LabelledBatch {
                answers: Answers::new(&sequences, beginnings, device)?,
                reference: self.reference(model, rows, beginnings)?,
                labels: self.loss.labels(&labels(rows)?, device)?,
            });
        }
        // No more at once than the step itself takes, which is cut where memory runs out.
        let tokens = micro_batches.iter().map(|rows| rows.iter().map(|row| row.tokens()).sum());
        let tokens_at_once = tokens.max().unwrap_or(0);
        let rows = micro_batches.concat();
        let go_on = &mut || if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let Some(kl) = self.kl(model, Active::All(learner.adapter), &rows, tokens_at_once, go_on)? else {
            return Ok(Launch::Interrupted);
        };
        learner.launch(&OfStep { loss: self.loss, kl }, &batches, settings, before, interrupted)
    }

    fn held_out(
        &mut self,
        model: &Model,
        adapters: Active,
        rows: &[EncodedRow],
        progress: &mut Progress,
    ) -> Result<Option<HeldOut>> {
        let _guard = tch::no_grad_guard();
        let (mut ratios, mut trained_tokens, mut done) = (Vec::new(), 0, 0);
        for part in parts(rows) {
            let measured = in_halves(model.device(), &part, &mut |part| {
                let sequences: Vec<Sequence> = part.iter().copied().flat_map(Sequence::of).collect();
                let answers = Answers::new(&sequences, Beginnings::of(model), model.device())?;
                let reference = self.reference(model, part, Beginnings::of(model))?;
                let found = ops::to_doubles(&ops::subtract(&answers.ask(model, adapters)?, &reference)?)?;
                Ok((found, answers.as_ref().trained))
            })?;
            for (found, trained) in measured {
                ratios.extend(found);
                trained_tokens += trained;
            }
            done += part.len();
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let rows: Vec<&EncodedRow> = rows.iter().collect();
        let Some(kl) = self.kl(model, adapters, &rows, TOKENS_AT_ONCE, &mut || progress(done))? else {
            return Ok(None);
        };
        let kl = ops::to_device(&kl, Device::Cpu)?;
        let labels = self.loss.labels(&labels(&rows)?, Device::Cpu)?;
        let judged = self.loss.judge(&ops::doubles(&ratios, Device::Cpu)?, &labels, &kl)?;
        let sums: Vec<f64> =
            ops::to_floats(&judged.sums(&labels, &kl)?)?.into_iter().map(f64::from).collect();
        Ok(Some(HeldOut {
            loss: ops::to_doubles(&judged.losses)?.iter().sum::<f64>() / rows.len() as f64,
            rows: rows.len() as u64,
            trained_tokens,
            metrics: OfStep::metrics(&sums, rows.len() as u64),
        }))
    }

    fn save(&mut self) -> Result<()> {
        self.reference.save()
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::data::EncodedSide;

    use super::*;

    fn row(row: usize, prompt: &[u32], answer: &[u32]) -> EncodedRow {
        let ids = [prompt, answer].concat();
        let trained = (0..ids.len()).map(|place| place >= prompt.len()).collect();
        EncodedRow { row, sides: vec![EncodedSide { ids, trained, label: Some(row.is_multiple_of(2)) }] }
    }

    #[test]
    fn prompts_meet_the_answers_of_the_rows_before_them() {
        let rows = [row(0, &[1, 2], &[3]), row(1, &[4], &[5, 6]), row(2, &[7, 8, 9], &[10])];
        let found = mismatched(&rows.iter().collect::<Vec<_>>(), 3);
        let side = |row: usize| (found[row].sides[0].ids.clone(), found[row].sides[0].trained.clone());
        assert_eq!(side(0), (vec![1, 2, 10], vec![false, false, true]));
        assert_eq!(side(1), (vec![4, 3], vec![false, true]));
        assert_eq!(side(2), (vec![7, 8, 9], vec![false; 3]), "cut at the longest");
    }

    #[test]
    fn rows_without_an_answer_or_with_several_turns_are_mixed_too() {
        let mut turns = row(0, &[1, 2], &[3, 4, 5]);
        turns.sides[0].trained = vec![false, true, false, true, true];
        let rows = [turns, row(1, &[6, 7], &[])];
        let found = mismatched(&rows.iter().collect::<Vec<_>>(), 9);
        // From its first trained token on, a row is answer.
        assert_eq!(
            (found[0].sides[0].ids.as_slice(), found[0].sides[0].trained.as_slice()),
            (&[1][..], &[false][..])
        );
        assert_eq!(found[1].sides[0].ids, [6, 7, 2, 3, 4, 5]);
        assert_eq!(found[1].sides[0].trained, [false, false, true, false, true, true]);
    }

    #[test]
    fn losses_pull_good_answers_up_and_bad_ones_down() {
        let loss = KtoLoss { beta: 0.5, desirable_weight: 2.0, undesirable_weight: 1.0 };
        let labels = loss.labels(&[true, false], Device::Cpu).unwrap();
        let ratios = ops::doubles(&[1.0, 1.0], Device::Cpu).unwrap().set_requires_grad(true);
        let kl = ops::doubles(&[0.4], Device::Cpu).unwrap().reshape([]);
        let judged = loss.judge(&ratios, &labels, &kl).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expected = [2.0 * (1.0 - sigmoid(0.5 * 0.6)), 1.0 - sigmoid(0.5 * -0.6)];
        for (ours, expected) in ops::to_doubles(&judged.losses).unwrap().iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-12, "{ours} {expected}");
        }
        judged.losses.sum(Kind::Double).backward();
        let slopes = ops::to_doubles(&ratios.grad()).unwrap();
        assert!(slopes[0] < 0.0 && slopes[1] > 0.0, "{slopes:?}");
        // Ratios beyond all bounds have finite losses.
        let far = ops::doubles(&[-1e6, 1e6], Device::Cpu).unwrap();
        let losses = ops::to_doubles(&loss.judge(&far, &labels, &kl).unwrap().losses).unwrap();
        assert_eq!(losses, [2.0, 1.0]);
    }

    #[test]
    fn means_of_labels_that_a_step_lacks_are_missing() {
        let names = |sums: &[f64]| OfStep::metrics(sums, 2).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&[1.0, 1.0, 2.0, 0.0]), ["reward_desirable", "kl"]);
        assert_eq!(names(&[0.0, 1.0, 0.0, 0.0]), ["reward_undesirable", "kl"]);
        let both = OfStep::metrics(&[0.5, 0.25, 1.0, 0.2], 2);
        assert_eq!((both["reward_margin"].get(), both["kl"].get()), (0.75, 0.1));
    }

    #[test]
    fn a_row_without_a_label_is_refused() {
        let row = EncodedRow::of_one_side(7, vec![1, 2], vec![false, true]);
        assert!(labels(&[&row]).unwrap_err().to_string().contains("row 7 has no label"));
    }
}
