//! Supervised fine-tuning: the likelihood of the tokens that are trained on.

use tch::Tensor;

use super::batch::Batch;
use super::step::{Loss, Objective};
use crate::error::Result;
use crate::models::{Active, Model, head};

/// Cross entropy, averaged over all trained tokens of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sft;

impl Objective for Sft {
    type Batch = Batch;

    /// Trained tokens.
    fn units(&self, batch: &Batch) -> u64 {
        batch.trained
    }

    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &Batch) -> Result<Loss> {
        Ok(Loss { sum: head::loss_sum(model, adapters, hidden, &batch.targets, false)?.sum, rewards: None })
    }
}
