//! Supervised fine-tuning: the likelihood of the tokens that are trained on.

use luthier_core::data::EncodedRow;
use tch::Tensor;

use super::{Algorithm, HeldOut, Progress, metrics, parts};
use crate::error::Result;
use crate::in_halves::in_halves;
use crate::layers::{Active, Pass};
use crate::models::{Model, head};
use crate::ops;
use crate::step::batch::{Batch, Beginnings, collate};
use crate::step::{Launch, Launched, Learner, Loss, Objective, StepSettings};

/// Cross entropy, averaged over all trained tokens of a step, natural logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sft;

impl Objective for Sft {
    type Batch = Batch;

    /// Trained tokens.
    fn units(&self, batch: &Batch) -> u64 {
        batch.trained
    }

    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &Batch) -> Result<Loss> {
        Ok(Loss { sum: head::loss_sum(model, adapters, hidden, &batch.targets, false)?.sum, sums: None })
    }
}

impl Algorithm for Sft {
    fn launch(
        &mut self,
        learner: &Learner,
        micro_batches: &[Vec<&EncodedRow>],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let beginnings = Beginnings::under(learner.model, learner.adapter);
        let batch =
            |rows: &Vec<&EncodedRow>| collate(rows.iter().copied(), beginnings, learner.model.device());
        let batches = micro_batches.iter().map(batch).collect::<Result<Vec<_>>>()?;
        learner.launch(self, &batches, settings, before, interrupted)
    }

    fn held_out(
        &mut self,
        model: &Model,
        adapters: Active,
        rows: &[EncodedRow],
        progress: &mut Progress,
    ) -> Result<Option<HeldOut>> {
        let _guard = tch::no_grad_guard();
        let (mut sum, mut correct, mut trained, mut done) = (0.0, 0.0, 0, 0);
        let mut measure = |part: &[&EncodedRow]| {
            let batch = collate(part.iter().copied(), Beginnings::of(model), model.device())?;
            if batch.trained == 0 {
                return Ok((0.0, 0.0, 0));
            }
            let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
            let hidden = model.hidden(&batch.ids, &pass, None)?;
            let losses = head::loss_sum(model, pass.adapters, &hidden, &batch.targets, true)?;
            Ok((ops::value(&losses.sum)?, ops::value(&losses.correct)?, batch.trained))
        };
        for part in parts(rows) {
            for (its_sum, its_correct, its_trained) in in_halves(model.device(), &part, &mut measure)? {
                sum += its_sum;
                correct += its_correct;
                trained += its_trained;
            }
            done += part.len();
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        let mean = |sum: f64| sum / trained as f64;
        Ok((trained > 0).then(|| HeldOut {
            loss: mean(sum),
            rows: rows.len() as u64,
            trained_tokens: trained,
            metrics: metrics([
                ("perplexity", Some(mean(sum).exp())),
                ("token_accuracy", Some(mean(correct))),
            ]),
        }))
    }
}
