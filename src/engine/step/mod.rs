//! One optimiser update, whatever its loss is: how rows become a batch, and what AdamW does with the gradient.

pub mod adamw;
pub mod batch;
pub mod phases;

use luthier_core::random::derive;
use luthier_core::runs::Metrics;
use tch::Tensor;

use adamw::AdamW;
use batch::Batch;
use phases::{Marks, Phases};

use crate::error::Result;
use crate::layers::{Active, Adapter, Noise, Parameters, Pass};
use crate::models::Model;
use crate::{csrc, ops};

/// What a step's loss is. Units are counted before any forward, so that each micro-batch can add its own sum over the
/// count of the whole step.
pub trait Objective {
    /// A micro-batch as this objective takes it.
    type Batch: AsRef<Batch>;

    /// Units in a micro-batch: what the step's loss is the mean over.
    fn units(&self, batch: &Self::Batch) -> u64;

    /// The loss of a micro-batch, from the final hidden states `[B, T, H]` of its tokens under the model with `adapters`.
    fn loss(&self, model: &Model, adapters: Active, hidden: &Tensor, batch: &Self::Batch) -> Result<Loss>;

    /// The metrics of a step, from its [`Loss::sums`] and its number of units.
    fn metrics(_sums: &[f64], _units: u64) -> Metrics {
        Metrics::new()
    }
}

/// Sums over the units of a micro-batch.
#[derive(Debug)]
pub struct Loss {
    /// f32, 0-dimensional; carries the gradient of the hidden states.
    pub sum: Tensor,
    /// What [`Objective::metrics`] is made from, `[k]` f32 without gradient.
    pub sums: Option<Tensor>,
}

/// What one update is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// Learning rate and the like.
    pub adamw: csrc::AdamW,
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// Whether blocks are computed again in the backward pass instead of keeping their activations.
    pub recompute: bool,
    /// Seed of this step's dropout.
    pub seed: u64,
}

/// What a step measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean over the step's units.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens trained on.
    pub trained_tokens: u64,
    /// What else the objective reports.
    pub metrics: Metrics,
    /// How long the device was at it.
    pub phases: Phases,
}

/// What became of a step that was asked for.
#[derive(Debug)]
pub enum Launch {
    /// Everything was handed to the device, the update included.
    Made(Launched),
    /// None of the step's tokens is trained on: nothing has changed.
    NothingTrained,
    /// It was given up half-way: nothing has changed.
    Interrupted,
}

/// A step whose numbers nobody has read yet: the device may still be at work on it.
#[derive(Debug)]
pub struct Launched {
    /// `[n]` f32: gradient norm, then each micro-batch's loss and sums; in this process's memory once `marks` are passed.
    values: Tensor,
    /// 0-dimensional f32: 1 where the update was left out.
    left_out: Tensor,
    /// How many sums follow the loss of each micro-batch.
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
    /// Loss or gradient was not a finite number: nothing has changed.
    NotFinite(Measured),
}

/// What steps change, and through which model.
#[derive(Clone, Copy)]
pub struct Learner<'a> {
    /// The base model.
    pub model: &'a Model,
    /// What is trained.
    pub adapter: &'a dyn Adapter,
    /// Of the adapter's parameters.
    pub optimizer: &'a AdamW,
}

impl Learner<'_> {
    /// Makes one update of the adapter over all of `batches`, and waits for nothing on the device.
    ///
    /// The step's units (trained tokens, pairs) are counted first, and each micro-batch adds its sum over that count, so
    /// that the gradient is the same however the step is cut. The device itself leaves the update out where loss or gradient
    /// is not finite, and where it left out that of `before`, a step whose numbers were not read yet: a step after one that
    /// failed changes nothing. An error (out of memory, say) leaves adapter and optimizer as they were. `interrupted` is
    /// asked before each micro-batch.
    pub fn launch<O: Objective>(
        &self,
        objective: &O,
        batches: &[O::Batch],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let Self { model, adapter, optimizer } = *self;
        let parameters = adapter.parameters();
        clear_gradients(parameters);
        let units: u64 = batches.iter().map(|batch| objective.units(batch)).sum();
        if units == 0 {
            return Ok(Launch::NothingTrained);
        }
        let share = ops::reshape(&ops::floats(&[1.0 / units as f32], model.device())?, &[])?;
        let mut losses = Vec::with_capacity(batches.len());
        let mut marks = Marks::new(model.device())?;
        for (index, batch) in batches.iter().enumerate().filter(|(_, batch)| objective.units(batch) > 0) {
            if interrupted() {
                clear_gradients(parameters);
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
            let backward = Backward { recompute: settings.recompute, share: &share };
            losses.push(add_gradients(model, &tokens.ids, &pass, backward, &mut marks, &loss)?);
        }
        let gradients = gradients(parameters)?;
        let norm = csrc::grad_norm(&gradients)?;
        let values = values(&losses, &norm)?;
        let own = ops::any_not_finite(&values)?;
        let left_out = match before {
            Some(before) => ops::maximum(&own, &before.left_out)?,
            None => own,
        };
        if settings.max_grad_norm > 0.0 {
            csrc::clip(&gradients, &norm, settings.max_grad_norm)?;
        }
        optimizer.update(parameters, &gradients, &settings.adamw, &left_out)?;
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
    /// Waits for the step, but not for one that was launched after it, and reads its numbers. A step launched after one that was not finite changed
    /// nothing and is dropped unread.
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

/// How a micro-batch's gradient is made.
#[derive(Clone, Copy)]
struct Backward<'a> {
    /// As in [`StepSettings::recompute`].
    recompute: bool,
    /// What its loss counts by.
    share: &'a Tensor,
}

/// Adds a micro-batch's part of the gradient to the parameters' gradients; returns its losses, on the device, without
/// gradient.
fn add_gradients(
    model: &Model,
    ids: &Tensor,
    pass: &Pass,
    Backward { recompute, share }: Backward,
    marks: &mut Marks,
    loss: &dyn Fn(&Tensor) -> Result<Loss>,
) -> Result<Loss> {
    let loss = if recompute {
        let trace = model.hidden_recomputed(ids, pass)?;
        let loss = loss(&trace.hidden)?;
        marks.next()?;
        csrc::backward(&[&loss.sum], &[Some(share)])?;
        model.backward(trace, ids, pass)?;
        loss
    } else {
        let loss = loss(&model.hidden(ids, pass, None)?)?;
        marks.next()?;
        csrc::backward(&[&loss.sum], &[Some(share)])?;
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

/// Every parameter's gradient, zeros for one that no loss reached.
fn gradients(parameters: &Parameters) -> Result<Vec<Tensor>> {
    let gradient = |parameter: &Tensor| match ops::gradient(parameter)? {
        Some(gradient) => Ok(gradient),
        None => ops::zeros(&parameter.size(), parameter.kind(), parameter.device()),
    };
    parameters.values().map(gradient).collect()
}

fn clear_gradients(parameters: &Parameters) {
    for parameter in parameters.values() {
        parameter.shallow_clone().zero_grad();
    }
}
