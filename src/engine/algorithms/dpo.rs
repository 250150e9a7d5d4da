//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): the chosen answer of each pair is to gain on the
//! rejected one, measured against the base model, without a reward model.
//!
//! With `π` the model that is trained, `ref` its base, and log-probabilities summed over an answer's tokens, a side's reward
//! is `β · (log π(answer) − log ref(answer))` (equation 5, up to a term that both sides share), and a pair's loss is
//! `−log σ(reward of chosen − reward of rejected)` (equation 7). Label smoothing ε takes a share of the pairs to be labelled
//! the wrong way round: `−(1 − ε) · log σ(margin) − ε · log σ(−margin)` ("conservative" DPO, Mitchell 2023,
//! <https://ericmitchell.ai/cdpo.pdf>; what TRL computes for `loss_type = "sigmoid"`).

use luthier_core::config::{Config, MethodKind, TrainSection};
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::runs::{Metrics, RunDir};
use tch::{Device, Tensor};

use super::answers::{Answers, by_side, split_sides};
use super::reference::{Key, Reference};
use super::{Algorithm, HeldOut, Progress, metrics, parts};
use crate::base::Base;
use crate::error::{EngineError, Result};
use crate::in_halves::in_halves;
use crate::layers::Active;
use crate::models::Model;
use crate::ops;
use crate::step::batch::{Batch, Beginnings};
use crate::step::{Launch, Launched, Learner, Loss, Objective, StepSettings};

/// The algorithm: its loss, and the log-probabilities under the base model.
#[derive(Debug)]
pub struct Dpo {
    loss: DpoLoss,
    reference: Reference,
}

/// The loss of preference pairs, averaged over all pairs of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoLoss {
    /// β: how strongly the model is held to its base.
    pub beta: f64,
    /// ε: share of pairs taken to be labelled the wrong way round, below 0.5.
    pub label_smoothing: f64,
}

/// Log-probabilities of both answers of P pairs, `[P]` f64 each, natural logarithm, summed over the answer's tokens.
#[derive(Debug)]
pub struct LogProbs {
    /// Of the chosen answers.
    pub chosen: Tensor,
    /// Of the rejected answers.
    pub rejected: Tensor,
}

/// How P pairs compare, `[P]` f64 each.
#[derive(Debug)]
pub struct Compared {
    /// Losses; carry the gradient of the policy's log-probabilities.
    pub losses: Tensor,
    /// Rewards of the chosen answers, without gradient.
    pub chosen: Tensor,
    /// Rewards of the rejected answers, without gradient.
    pub rejected: Tensor,
}

impl DpoLoss {
    /// As configured.
    pub fn new(train: &TrainSection) -> Self {
        Self { beta: train.dpo_beta, label_smoothing: train.dpo_label_smoothing }
    }

    /// Losses and rewards of pairs, from what the model in training and its base make of their answers.
    pub fn compare(&self, policy: &LogProbs, reference: &LogProbs) -> Result<Compared> {
        let reward =
            |policy: &Tensor, reference: &Tensor| ops::scale(&ops::subtract(policy, reference)?, self.beta);
        let chosen = reward(&policy.chosen, &reference.chosen)?;
        let rejected = reward(&policy.rejected, &reference.rejected)?;
        let margin = ops::subtract(&chosen, &rejected)?;
        let right = ops::scale(&ops::log_sigmoid(&margin)?, self.label_smoothing - 1.0)?;
        let losses = if self.label_smoothing > 0.0 {
            let wrong = ops::log_sigmoid(&ops::scale(&margin, -1.0)?)?;
            ops::add(&right, &ops::scale(&wrong, -self.label_smoothing)?)?
        } else {
            right
        };
        Ok(Compared { losses, chosen: ops::detach(&chosen)?, rejected: ops::detach(&rejected)? })
    }
}

impl LogProbs {
    /// From the log-probabilities of the sides of pairs.
    fn of(sides: &[Tensor]) -> Result<Self> {
        match sides {
            [chosen, rejected] => {
                Ok(Self { chosen: chosen.shallow_clone(), rejected: rejected.shallow_clone() })
            }
            _ => Err(EngineError::Data("a preference pair must have exactly two sides".into())),
        }
    }
}

impl Compared {
    /// Rewards of the chosen answers, rewards of the rejected ones, and pairs whose chosen answer has the higher reward:
    /// `[3]` f32, sums over the pairs.
    fn sums(&self) -> Result<Tensor> {
        let sums = [
            ops::sum(&self.chosen)?,
            ops::sum(&self.rejected)?,
            ops::count_above(&self.chosen, &self.rejected)?,
        ];
        ops::join(&sums)
    }
}

/// P preference pairs laid out for one forward pass: all chosen sides, then all rejected ones.
#[derive(Debug)]
pub struct Pairs {
    answers: Answers,
    /// P
    count: u64,
}

impl Pairs {
    /// Lays pairs out on `device`.
    pub fn new(rows: &[&EncodedRow], beginnings: Beginnings, device: Device) -> Result<Self> {
        if let Some(wrong) = rows.iter().find(|row| row.sides.len() != 2) {
            return Err(EngineError::Data(format!("row {} is no preference pair", wrong.row)));
        }
        let (_, sequences) = by_side(rows)?;
        Ok(Self { answers: Answers::new(&sequences, beginnings, device)?, count: rows.len() as u64 })
    }

    /// Log-probabilities of the answers from the final hidden states of the model with `adapters`. They carry the gradient.
    fn log_probs(&self, model: &Model, adapters: Active, hidden: &Tensor) -> Result<LogProbs> {
        LogProbs::of(&split_sides(&self.answers.log_probs(model, adapters, hidden)?, 2)?)
    }

    /// The same without the noise of training, by a forward pass of its own.
    pub fn ask(&self, model: &Model, adapters: Active) -> Result<LogProbs> {
        LogProbs::of(&split_sides(&self.answers.ask(model, adapters)?, 2)?)
    }
}

/// Pairs with their log-probabilities under the base model.
#[derive(Debug)]
pub struct PairBatch {
    pairs: Pairs,
    reference: LogProbs,
}

impl AsRef<Batch> for PairBatch {
    fn as_ref(&self) -> &Batch {
        self.pairs.answers.as_ref()
    }
}

impl Objective for DpoLoss {
    type Batch = PairBatch;

    /// Pairs.
    fn units(&self, batch: &PairBatch) -> u64 {
        batch.pairs.count
    }

    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &PairBatch) -> Result<Loss> {
        let policy = batch.pairs.log_probs(model, adapters, hidden)?;
        let compared = self.compare(&policy, &batch.reference)?;
        Ok(Loss { sum: ops::sum(&compared.losses)?, sums: Some(compared.sums()?) })
    }

    fn metrics(sums: &[f64], units: u64) -> Metrics {
        let [chosen, rejected, right] = [0, 1, 2].map(|place| {
            let sum = sums.get(place).copied().unwrap_or_default();
            sum / units as f64
        });
        metrics([
            ("reward_chosen", Some(chosen)),
            ("reward_rejected", Some(rejected)),
            ("reward_margin", Some(chosen - rejected)),
            ("reward_accuracy", Some(right)),
        ])
    }
}

impl Dpo {
    /// With a loss and a reference.
    pub fn new(loss: DpoLoss, reference: Reference) -> Self {
        Self { loss, reference }
    }

    /// As configured, with what the run computed before.
    pub fn of_run(run: &RunDir, base: &Base, config: &Config, prepared: &Prepared) -> Self {
        let key = Key::new(base, config, prepared, prepared.train.iter().chain(&prepared.eval));
        Self::new(DpoLoss::new(&config.train), Reference::open(run.path(), key))
    }

    fn batch(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<PairBatch> {
        let pairs = Pairs::new(rows, beginnings, model.device())?;
        let reference = LogProbs::of(&self.reference.of(model, rows, beginnings)?)?;
        Ok(PairBatch { pairs, reference })
    }
}

impl Algorithm for Dpo {
    fn begin(
        &mut self,
        model: &Model,
        method: MethodKind,
        prepared: &Prepared,
        progress: &mut Progress,
    ) -> Result<()> {
        self.reference.begin(model, method, prepared.train.iter().chain(&prepared.eval), progress)
    }

    fn launch(
        &mut self,
        learner: &Learner,
        micro_batches: &[Vec<&EncodedRow>],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let beginnings = Beginnings::under(learner.model, learner.adapter);
        let mut batches = Vec::with_capacity(micro_batches.len());
        for rows in micro_batches {
            if interrupted() {
                return Ok(Launch::Interrupted);
            }
            batches.push(self.batch(learner.model, rows, beginnings)?);
        }
        learner.launch(&self.loss, &batches, settings, before, interrupted)
    }

    fn held_out(
        &mut self,
        model: &Model,
        adapters: Active,
        rows: &[EncodedRow],
        progress: &mut Progress,
    ) -> Result<Option<HeldOut>> {
        let _guard = tch::no_grad_guard();
        let (mut loss, mut sums, mut trained_tokens, mut done) = (0.0, [0.0; 3], 0, 0);
        for part in parts(rows) {
            let measured = in_halves(model.device(), &part, &mut |part| {
                let batch = self.batch(model, part, Beginnings::of(model))?;
                let compared = self.loss.compare(&batch.pairs.ask(model, adapters)?, &batch.reference)?;
                let of = |numbers| ops::to_doubles(numbers);
                let (losses, chosen, rejected) =
                    (of(&compared.losses)?, of(&compared.chosen)?, of(&compared.rejected)?);
                Ok((losses, chosen, rejected, batch.as_ref().trained))
            })?;
            for (losses, chosen, rejected, trained) in measured {
                loss += losses.iter().sum::<f64>();
                for (chosen, rejected) in chosen.into_iter().zip(rejected) {
                    let [all_chosen, all_rejected, right] = &mut sums;
                    *all_chosen += chosen;
                    *all_rejected += rejected;
                    *right += f64::from(u8::from(chosen > rejected));
                }
                trained_tokens += trained;
            }
            done += part.len();
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        let rows = done as u64;
        Ok((rows > 0).then(|| HeldOut {
            loss: loss / rows as f64,
            rows,
            trained_tokens,
            metrics: DpoLoss::metrics(&sums, rows),
        }))
    }

    fn save(&mut self) -> Result<()> {
        self.reference.save()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

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

    #[test]
    fn gradients_of_the_loss_are_its_slopes_and_margins_beyond_bounds_stay_finite() {
        let reference =
            LogProbs { chosen: doubles(&[-10.0, -3.0, -7.0]), rejected: doubles(&[-9.0, -4.0, -7.0]) };
        let at = [-11.0, -2.5, -7.0, -9.5, -5.0, -7.0];
        for label_smoothing in [0.0, 0.2] {
            let dpo = DpoLoss { beta: 0.7, label_smoothing };
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
    fn a_row_with_one_side_is_no_pair() {
        let row = EncodedRow::of_one_side(0, vec![1, 2], vec![false, true]);
        let error = Pairs::new(&[&row], Beginnings::Each, Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("row 0 is no preference pair"), "{error}");
    }
}
