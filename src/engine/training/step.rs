//! One optimiser update.

use tch::Tensor;

use super::adamw::AdamW;
use super::batch::Batch;
use crate::error::Result;
use crate::methods::{Adapter, Parameters};
use crate::models::{Active, Model, Noise, Pass, head};
use crate::random::derive;
use crate::{csrc, ops};

/// What one update is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean over the step's trained tokens.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens trained on.
    pub trained_tokens: u64,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The adapter was updated.
    Updated(Measured),
    /// Loss or gradient was not a finite number: nothing has changed.
    NotFinite(Measured),
    /// None of the step's tokens is trained on: nothing has changed.
    NothingTrained,
    /// It was given up half-way: nothing has changed.
    Interrupted,
}

/// Makes one update of `adapter` over all of `batches`.
///
/// The step's trained tokens are counted first, and each micro-batch adds its sum over that count, so that the gradient
/// is the same however the step is cut. Loss and gradient norm are read from the device once, before the update, which a
/// number that is not finite prevents. An error (out of memory, say) leaves adapter and optimizer as they were.
/// `interrupted` is asked before each micro-batch.
pub fn step(
    model: &Model,
    adapter: &dyn Adapter,
    optimizer: &mut AdamW,
    batches: &[Batch],
    settings: &Settings,
    interrupted: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let parameters = adapter.parameters();
    clear_gradients(parameters);
    let trained: u64 = batches.iter().map(|batch| batch.trained).sum();
    if trained == 0 {
        return Ok(Outcome::NothingTrained);
    }
    let share = ops::reshape(&ops::floats(&[1.0 / trained as f32], model.device())?, &[])?;
    let mut sums = Vec::with_capacity(batches.len());
    for (index, batch) in batches.iter().enumerate().filter(|(_, batch)| batch.trained > 0) {
        if interrupted() {
            clear_gradients(parameters);
            return Ok(Outcome::Interrupted);
        }
        let noise = Noise { seed: derive(settings.seed, index as u64) };
        sums.push(add_gradients(model, adapter, batch, noise, settings.recompute, &share)?);
    }
    let gradients = gradients(parameters)?;
    let norm = csrc::grad_norm(&gradients)?;
    let measured = measure(&sums, &norm, batches, trained)?;
    if !(measured.loss.is_finite() && measured.grad_norm.is_finite()) {
        clear_gradients(parameters);
        return Ok(Outcome::NotFinite(measured));
    }
    if settings.max_grad_norm > 0.0 {
        csrc::clip(&gradients, &norm, settings.max_grad_norm)?;
    }
    optimizer.update(parameters, &gradients, &settings.adamw)?;
    Ok(Outcome::Updated(measured))
}

/// Adds a micro-batch's part of the gradient to the parameters' gradients; returns the sum of its losses, on the device.
fn add_gradients(
    model: &Model,
    adapter: &dyn Adapter,
    batch: &Batch,
    noise: Noise,
    recompute: bool,
    share: &Tensor,
) -> Result<Tensor> {
    let pass = Pass {
        positions: &batch.positions,
        mask: batch.mask(),
        adapters: Active::All(adapter),
        noise: Some(noise),
    };
    if recompute {
        let trace = model.hidden_recomputed(&batch.ids, &pass)?;
        let loss = head::loss_sum(model, pass.adapters, &trace.hidden, &batch.targets, false)?;
        csrc::backward(&[&loss.sum], &[Some(share)])?;
        model.backward(trace, &batch.ids, &pass)?;
        return ops::detach(&loss.sum);
    }
    let hidden = model.hidden(&batch.ids, &pass, None)?;
    let loss = head::loss_sum(model, pass.adapters, &hidden, &batch.targets, false)?;
    csrc::backward(&[&loss.sum], &[Some(share)])?;
    ops::detach(&loss.sum)
}

/// Reads loss and gradient norm, in one transfer.
fn measure(sums: &[Tensor], norm: &Tensor, batches: &[Batch], trained: u64) -> Result<Measured> {
    let scalars = sums.iter().chain([norm]).map(|scalar| ops::reshape(scalar, &[1]));
    let values = ops::to_floats(&ops::concatenate(&scalars.collect::<Result<Vec<_>>>()?, 0)?)?;
    let (losses, norm) = values.split_at(sums.len());
    Ok(Measured {
        loss: losses.iter().map(|&sum| f64::from(sum)).sum::<f64>() / trained as f64,
        grad_norm: norm.first().copied().map_or(0.0, f64::from),
        tokens: batches.iter().map(|batch| batch.tokens).sum(),
        trained_tokens: trained,
    })
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
