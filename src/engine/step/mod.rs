//! One optimiser update for any loss: rows become a batch, and AdamW applies the gradient.

pub mod adamw;
pub mod batch;
mod gradients;
pub mod phases;

use luthier_core::random::derive;
use luthier_core::runs::Metrics;
use tch::Tensor;

use adamw::AdamW;
use batch::Batch;
use gradients::Gradients;
use phases::{Marks, Phases};

use crate::error::Result;
use crate::layers::{Active, Adapter, Noise, Pass};
use crate::models::Model;
use crate::{csrc, ops};

/// The loss of a step. Units are counted before any forward pass, so that each micro-batch can add its own
/// sum divided by the count of the whole step.
pub trait Objective {
    /// A micro-batch in this objective's form.
    type Batch: AsRef<Batch>;

    /// Units in a micro-batch; the step's loss is the mean over them.
    fn units(&self, batch: &Self::Batch) -> u64;

    /// The loss of a micro-batch, from the final hidden states `[B, T, H]` of its tokens under the model with
    /// `adapters`.
    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &Self::Batch) -> Result<Loss>;

    /// The metrics of a step, from its [`Loss::sums`] and its number of units.
    fn metrics(_sums: &[f64], _units: u64) -> Metrics {
        Metrics::new()
    }
}

/// Sums over the units of a micro-batch.
#[derive(Debug)]
pub struct Loss {
    /// f32, 0-dimensional, with the gradient of the hidden states.
    pub sum: Tensor,
    /// Input of [`Objective::metrics`], `[k]` f32 without gradient.
    pub sums: Option<Tensor>,
}

/// Settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    pub adamw: csrc::AdamW,
    /// Gradients are scaled down to this norm; 0 leaves them unchanged.
    pub max_grad_norm: f64,
    /// Whether blocks are computed again in the backward pass instead of keeping their activations.
    pub recompute: bool,
    /// Seed of this step's dropout.
    pub seed: u64,
}

/// Measurements of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean over the step's units.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    pub tokens: u64,
    pub trained_tokens: u64,
    /// The objective's other metrics.
    pub metrics: Metrics,
    /// Time on the device.
    pub phases: Phases,
}

/// Result of launching a step.
#[derive(Debug)]
pub enum Launch {
    /// All work was launched on the device, including the update.
    Made(Launched),
    /// The step has no trained token: nothing has changed.
    NothingTrained,
    /// Cancelled part-way: nothing has changed.
    Interrupted,
}

/// A step whose numbers are not read yet. The device may still be working on it.
#[derive(Debug)]
pub struct Launched {
    /// `[n]` f32: gradient norm, then each micro-batch's loss and sums. In host memory once `marks` are
    /// passed.
    values: Tensor,
    /// 0-dimensional f32: 1 if the update was left out.
    left_out: Tensor,
    /// Number of sums after the loss of each micro-batch.
    sums: Vec<usize>,
    metrics: fn(&[f64], u64) -> Metrics,
    marks: Marks,
    units: u64,
    tokens: u64,
    trained_tokens: u64,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The adapter was updated.
    Updated(Measured),
    /// Loss or gradient was not finite: nothing has changed.
    NotFinite(Measured),
}

/// What a step changes, and the model that it runs.
#[derive(Clone, Copy)]
pub struct Learner<'a> {
    pub model: &'a Model,
    pub adapter: &'a dyn Adapter,
    pub optimizer: &'a AdamW,
}

impl Learner<'_> {
    /// Makes one update of the adapter over all of `batches`, without waiting for the device.
    ///
    /// The step's units (trained tokens, pairs) are counted first, and each micro-batch adds its sum divided
    /// by that count, so that the gradient does not depend on how the step is split. The device leaves the
    /// update out if the loss or gradient is not finite, or if it left out the update of `before`, a step
    /// whose numbers are not read yet: a step after a failed one changes nothing. An error, such as out of
    /// memory, leaves adapter and optimizer unchanged. `interrupted` is called before each micro-batch.
    pub fn launch<O: Objective>(
        &self,
        objective: &O,
        batches: &[O::Batch],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let Self { model, adapter, optimizer } = *self;
        let mut gradients = Gradients::new(adapter)?;
        let units: u64 = batches.iter().map(|batch| objective.units(batch)).sum();
        if units == 0 {
            return Ok(Launch::NothingTrained);
        }
        let share = ops::reshape(&ops::floats(&[1.0 / units as f32], model.device())?, &[])?;
        let mut losses = Vec::with_capacity(batches.len());
        let mut marks = Marks::new(model.device())?;
        for (index, batch) in batches.iter().enumerate().filter(|(_, batch)| objective.units(batch) > 0) {
            if interrupted() {
                return Ok(Launch::Interrupted);
            }
            let tokens = batch.as_ref();
            let noise = Noise { seed: derive(settings.seed, index as u64) };
            let pass = Pass {
                positions: &tokens.positions,
                mask: tokens.mask(),
                adapters: Active::All(adapter),
                noise: Some(noise),
            };
            let loss = |hidden: &Tensor| objective.loss(model, pass.adapters, hidden, batch);
            let backward =
                Backward { recompute: settings.recompute, share: &share, gradients: &mut gradients };
            losses.push(add_gradients(model, &tokens.ids, &pass, backward, &mut marks, &loss)?);
        }
        let gradients = gradients.finish()?;
        let norm = csrc::grad_norm(&gradients)?;
        let values = values(&losses, &norm)?;
        let own = ops::any_not_finite(&values)?;
        let left_out = match before {
            Some(before) => ops::maximum(&own, &before.left_out)?,
            None => own,
        };
        let limit = settings.max_grad_norm;
        let clipping = (limit > 0.0).then_some(csrc::Clipping { norm: &norm, limit });
        let (parameters, working) = (adapter.parameters(), adapter.working());
        optimizer.update(parameters, working, &gradients, &settings.adamw, clipping, &left_out)?;
        let values = csrc::download(&values)?;
        marks.end()?;
        Ok(Launch::Made(Launched {
            values,
            left_out,
            marks,
            sums: losses.iter().map(|loss| loss.sums.as_ref().map_or(0, Tensor::numel)).collect(),
            metrics: O::metrics,
            units,
            tokens: batches.iter().map(|batch| batch.as_ref().tokens).sum(),
            trained_tokens: batches.iter().map(|batch| batch.as_ref().trained).sum(),
        }))
    }
}

impl Launched {
    /// Waits for this step, but not for a later one, and reads its numbers. A step launched after one that
    /// was not finite changed nothing and is dropped unread.
    pub fn settle(self, optimizer: &mut AdamW) -> Result<Outcome> {
        self.marks.wait()?;
        let values = ops::to_floats(&self.values)?;
        // As the device saw it when it decided about the update.
        let is_finite = values.iter().all(|value| value.is_finite());
        let mut values = values.into_iter().map(f64::from);
        let mut next = || values.next().unwrap_or_default();
        let grad_norm = next();
        let mut loss = 0.0;
        let mut sums = vec![0.0; self.sums.iter().copied().max().unwrap_or(0)];
        for count in self.sums {
            loss += next();
            sums.iter_mut().take(count).for_each(|sum| *sum += next());
        }
        let measured = Measured {
            loss: loss / self.units as f64,
            grad_norm,
            tokens: self.tokens,
            trained_tokens: self.trained_tokens,
            metrics: (self.metrics)(&sums, self.units),
            phases: self.marks.phases()?,
        };
        if !is_finite {
            return Ok(Outcome::NotFinite(measured));
        }
        optimizer.count_update();
        Ok(Outcome::Updated(measured))
    }
}

/// Settings for a micro-batch's gradient.
struct Backward<'a, 'b> {
    /// As in [`StepSettings::recompute`].
    recompute: bool,
    /// Factor of its loss.
    share: &'a Tensor,
    /// What it is added to.
    gradients: &'a mut Gradients<'b>,
}

/// Adds a micro-batch's part of the gradient. Returns its losses, on the device, without gradient.
fn add_gradients(
    model: &Model,
    ids: &Tensor,
    pass: &Pass,
    Backward { recompute, share, gradients }: Backward,
    marks: &mut Marks,
    loss: &dyn Fn(&Tensor) -> Result<Loss>,
) -> Result<Loss> {
    let loss = if recompute {
        let trace = model.hidden_recomputed(ids, pass)?;
        let loss = loss(&trace.hidden)?;
        marks.next()?;
        csrc::backward(&[&loss.sum], &[Some(share)])?;
        gradients.take()?;
        model.backward(trace, ids, pass, &mut || gradients.take())?;
        loss
    } else {
        let loss = loss(&model.hidden(ids, pass, None)?)?;
        marks.next()?;
        csrc::backward(&[&loss.sum], &[Some(share)])?;
        gradients.take()?;
        loss
    };
    marks.next()?;
    Ok(Loss { sum: ops::detach(&loss.sum)?, ..loss })
}

/// Gradient norm, losses and sums as one tensor, so that one transfer reads them.
fn values(losses: &[Loss], norm: &Tensor) -> Result<Tensor> {
    let mut parts = vec![ops::reshape(norm, &[1])?];
    for loss in losses {
        parts.push(ops::reshape(&loss.sum, &[1])?);
        parts.extend(loss.sums.as_ref().map(Tensor::shallow_clone));
    }
    ops::concatenate(&parts, 0)
}
