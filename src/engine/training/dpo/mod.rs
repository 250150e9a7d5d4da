//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): the chosen answer of each pair is to gain on the
//! rejected one, measured against the base model, without a reward model.
//!
//! With `π` the model that is trained, `ref` its base, and log-probabilities summed over an answer's tokens, a side's reward
//! is `β · (log π(answer) − log ref(answer))` (equation 5, up to a term that both sides share), and a pair's loss is
//! `−log σ(reward of chosen − reward of rejected)` (equation 7). Label smoothing ε takes a share of the pairs to be labelled
//! the wrong way round: `−(1 − ε) · log σ(margin) − ε · log σ(−margin)` ("conservative" DPO, Mitchell 2023,
//! <https://ericmitchell.ai/cdpo.pdf>; what TRL computes for `loss_type = "sigmoid"`).

use luthier_core::config::TrainSection;
use luthier_core::data::EncodedRow;
use tch::{Device, Tensor};

use super::batch::{Batch, Beginnings, Sequence, lay_out};
use super::step::{Loss, Objective};
use crate::error::{EngineError, Result};
use crate::models::{Active, Model, head};
use crate::ops;

/// The loss of preference pairs, averaged over all pairs of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
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

impl Dpo {
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

impl Compared {
    /// Sum of the losses, f32, and sums over pairs as [`Loss::rewards`] has them.
    pub fn sums(&self) -> Result<Loss> {
        let sums = [
            ops::sum(&self.chosen)?,
            ops::sum(&self.rejected)?,
            ops::count_above(&self.chosen, &self.rejected)?,
        ];
        let sums = sums.iter().map(|sum| ops::reshape(sum, &[1])).collect::<Result<Vec<_>>>()?;
        Ok(Loss { sum: ops::sum(&self.losses)?, rewards: Some(ops::concatenate(&sums, 0)?) })
    }
}

/// P preference pairs laid out for one forward pass: all chosen sides, then all rejected ones.
#[derive(Debug)]
pub struct Pairs {
    batch: Batch,
    /// `[M]` int64, of the batch's M targets: the sequence each belongs to. Pair p is sequences p and P + p.
    sequences: Tensor,
    /// P
    count: i64,
}

impl Pairs {
    /// Lays pairs out on `device`.
    pub fn new(rows: &[&EncodedRow], beginnings: Beginnings, device: Device) -> Result<Self> {
        if let Some(wrong) = rows.iter().find(|row| row.sides.len() != 2) {
            return Err(EngineError::Data(format!("row {} is no preference pair", wrong.row)));
        }
        let side = |side| rows.iter().filter_map(move |row| Sequence::of(row).nth(side));
        let sequences: Vec<Sequence> = side(0).chain(side(1)).collect();
        let (batch, owners) = lay_out(&sequences, beginnings, device)?;
        Ok(Self { batch, sequences: ops::integers(&owners, device)?, count: rows.len() as i64 })
    }

    /// The tokens.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// What the model with `adapters`, whose final hidden states these are, makes of the answers; carries their gradient.
    pub fn log_probs(&self, model: &Model, adapters: Active, hidden: &Tensor) -> Result<LogProbs> {
        let losses = head::losses(model, adapters, hidden, &self.batch.targets)?;
        let sums = ops::grouped_sums(&losses, &self.sequences, 2 * self.count)?;
        let all = ops::scale(&sums, -1.0)?;
        Ok(LogProbs {
            chosen: ops::narrow(&all, 0, 0, self.count)?,
            rejected: ops::narrow(&all, 0, self.count, self.count)?,
        })
    }
}

/// Pairs with what the base model makes of them.
#[derive(Debug)]
pub struct PairBatch {
    /// The pairs.
    pub pairs: Pairs,
    /// Their reference.
    pub reference: LogProbs,
}

impl AsRef<Batch> for PairBatch {
    fn as_ref(&self) -> &Batch {
        self.pairs.batch()
    }
}

impl Objective for Dpo {
    type Batch = PairBatch;

    /// Pairs.
    fn units(&self, batch: &PairBatch) -> u64 {
        batch.pairs.count as u64
    }

    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &PairBatch) -> Result<Loss> {
        let policy = batch.pairs.log_probs(model, adapters, hidden)?;
        self.compare(&policy, &batch.reference)?.sums()
    }
}

#[cfg(test)]
mod tests;
