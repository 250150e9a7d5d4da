//! Compares a model with stored outputs of another implementation, such as transformers, for `luthier model
//! verify`.

mod reference;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use luthier_core::model::{ModelFiles, Quantisation};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::base::dtype_name;
use crate::device;
use crate::error::{EngineError, Result};
use crate::generation::{Row, Sampling, generate};
use crate::layers::{Active, Mask, Pass};
use crate::models::Model;
use crate::models::head::{IGNORED, Targets, loss_sum};
use crate::ops;
use reference::{Continuation, Reference};

#[derive(Debug, Clone)]
pub struct Request {
    /// Model folder or GGUF file.
    pub model: PathBuf,
    /// Folder with `ref.safetensors`.
    pub reference: PathBuf,
    pub device: Device,
    /// Number format.
    pub kind: Kind,
    /// Largest accepted difference of a logit or hidden state, if the reference's values are within ±1. Otherwise
    /// it grows with the reference's largest value. For the loss, a tenth of it.
    pub tolerance: f64,
}

/// Differences between the model and the reference.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The family whose code runs the model.
    pub family: &'static str,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `f32`, `bf16`.
    pub dtype: &'static str,
    /// The largest differences, over all [`Report::ways`].
    pub max_abs_error: Errors,
    /// Every way of computing the same batch.
    pub ways: Vec<Way>,
    /// Continuations of the reference's prompts, token by token.
    pub greedy: Vec<Greedy>,
    /// Whether all continuations are equal, with and without cache.
    pub greedy_equal: bool,
    /// The accepted differences.
    pub allowed: Errors,
    /// Whether all differences are accepted and `greedy_equal` is true.
    pub pass: bool,
}

/// Largest absolute differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Of any logit of a token that is not padding.
    pub logits: f64,
    /// Of any element of the final hidden states.
    pub hidden: f64,
    /// Of the mean loss.
    pub loss: f64,
}

/// One way of computing the reference's batch.
#[derive(Debug, Clone, Serialize)]
pub struct Way {
    /// `padded`: rows side by side; `packed`: end to end without padding; `cached`: one row at a time, in
    /// parts, through a cache.
    pub name: &'static str,
    /// Its largest differences.
    #[serde(flatten)]
    pub errors: Errors,
}

/// One greedy continuation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Greedy {
    /// Number of compared tokens.
    pub tokens: usize,
    /// Equal tokens from the start, with a cache.
    pub with_cache: usize,
    /// Equal tokens from the start, if each token is computed from the whole sequence.
    pub without_cache: usize,
}

/// Differences that a different order of sums can explain, in this number format.
pub fn usual_tolerance(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 3e-2 } else { 1e-4 }
}

pub fn verify(request: &Request) -> Result<Report> {
    let _guard = tch::no_grad_guard();
    let files = ModelFiles::find(&request.model, Path::new(""))
        .map_err(|error| EngineError::Config(error.to_string()))?;
    let reference = Reference::read(&request.reference, &files.architecture, request.device)?;
    let model = Model::load(&files, request.device, request.kind, Quantisation::None)?;
    compare(&model, &reference, request.tolerance)
}

fn compare(model: &Model, reference: &Reference, tolerance: f64) -> Result<Report> {
    let ways = vec![
        Way { name: "padded", errors: reference.errors(model, &padded(model, reference)?)? },
        Way { name: "packed", errors: reference.errors(model, &packed(model, reference)?)? },
        Way { name: "cached", errors: reference.errors(model, &cached(model, reference)?)? },
    ];
    let greedy: Vec<Greedy> = reference
        .continuations
        .iter()
        .map(|continuation| continue_greedily(model, continuation))
        .collect::<Result<_>>()?;
    let most = |pick: fn(&Errors) -> f64| {
        // A NaN must not be hidden by a finite difference.
        let worse = |worst: f64, error: f64| if error.is_nan() || error > worst { error } else { worst };
        ways.iter().map(|way| pick(&way.errors)).fold(0.0, worse)
    };
    let errors = Errors {
        logits: most(|errors| errors.logits),
        hidden: most(|errors| errors.hidden),
        loss: most(|errors| errors.loss),
    };
    let greedy_equal =
        greedy.iter().all(|found| found.with_cache == found.tokens && found.without_cache == found.tokens);
    let scaled = |largest: f64| tolerance * largest.max(1.0);
    let allowed = Errors {
        logits: scaled(ops::largest_magnitude(&reference.counted(&reference.logits)?)?),
        hidden: scaled(ops::largest_magnitude(&reference.counted(&reference.hidden)?)?),
        loss: scaled(reference.loss.abs()) / 10.0,
    };
    let within =
        errors.logits <= allowed.logits && errors.hidden <= allowed.hidden && errors.loss <= allowed.loss;
    Ok(Report {
        family: model.architecture().family,
        device: device::name(model.device()),
        dtype: dtype_name(model.kind()),
        max_abs_error: errors,
        ways,
        greedy,
        greedy_equal,
        allowed,
        pass: within && greedy_equal,
    })
}

/// Final hidden states of the tokens that are not padding, `[N, H]`, row after row.
fn padded(model: &Model, reference: &Reference) -> Result<Tensor> {
    let positions = reference.columns(model.device())?;
    let counts = ops::to_kind(&reference.mask, Kind::Bool)?;
    let mask = Mask::Columns(&counts);
    let pass = Pass { positions: &positions, mask, adapters: Active::Base, noise: None };
    reference.counted(&model.hidden(&reference.ids, &pass, None)?)
}

fn packed(model: &Model, reference: &Reference) -> Result<Tensor> {
    let ids = ops::reshape(&reference.counted(&reference.ids)?, &[1, -1])?;
    let positions = ops::reshape(&reference.counted(&reference.columns(model.device())?)?, &[1, -1])?;
    let mask = Mask::Documents(&reference.lengths);
    let pass = Pass { positions: &positions, mask, adapters: Active::Base, noise: None };
    let hidden = model.hidden(&ids, &pass, None)?;
    ops::reshape(&hidden, &[-1, model.architecture().hidden as i64])
}

/// Each row separately: its first half at once, then token by token. Keys are rotated as in the reference's
/// batch, for the length of its longest row.
fn cached(model: &Model, reference: &Reference) -> Result<Tensor> {
    let columns = reference.columns(model.device())?;
    let longest = reference.lengths.iter().copied().max().unwrap_or_default();
    let mut parts = Vec::new();
    for (row, &length) in reference.lengths.iter().enumerate() {
        let mut cache = model.cache(1);
        cache.expect(&[longest]);
        let half = (length / 2).max(1);
        let pieces = std::iter::once((0, half)).chain((half..length).map(|start| (start, 1)));
        for (start, width) in pieces {
            let piece = |x: &Tensor| ops::narrow(&ops::narrow(x, 0, row as i64, 1)?, 1, start, width);
            let (ids, positions) = (piece(&reference.ids)?, piece(&columns)?);
            let pass =
                Pass { positions: &positions, mask: Mask::Causal, adapters: Active::Base, noise: None };
            let hidden = model.hidden(&ids, &pass, Some(&mut cache))?;
            parts.push(ops::reshape(&hidden, &[width, -1])?);
        }
    }
    ops::concatenate(&parts, 0)
}

fn continue_greedily(model: &Model, continuation: &Continuation) -> Result<Greedy> {
    let Continuation { prompt, tokens } = continuation;
    let row = Row {
        prompt,
        adapter: None,
        sampling: Sampling::GREEDY,
        seed: 0,
        stop: &[],
        max_new_tokens: tokens.len(),
    };
    let found = generate(model, &[row], &mut |_, _| ControlFlow::Continue(()))?;
    let with_cache = found.first().map_or(&[][..], |completion| &completion.tokens);
    let without_cache = without_cache(model, prompt, tokens.len())?;
    let agree =
        |found: &[u32]| found.iter().zip(tokens).take_while(|(found, wanted)| found == wanted).count();
    Ok(Greedy { tokens: tokens.len(), with_cache: agree(with_cache), without_cache: agree(&without_cache) })
}

fn without_cache(model: &Model, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut text: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    for _ in 0..count {
        let shape = [1, text.len() as i64];
        let ids = ops::reshape(&ops::integers(&text, model.device())?, &shape)?;
        let places: Vec<i64> = (0..shape[1]).collect();
        let positions = ops::reshape(&ops::integers(&places, model.device())?, &shape)?;
        let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: Active::Base, noise: None };
        let hidden = model.hidden(&ids, &pass, None)?;
        let last = ops::reshape(&ops::narrow(&hidden, 1, shape[1] - 1, 1)?, &[1, -1])?;
        text.extend(ops::to_integers(&ops::argmax(&model.logits(&last, Active::Base)?)?)?);
    }
    Ok(text.split_off(prompt.len()).into_iter().map(|id| id as u32).collect())
}

impl Reference {
    /// Differences of hidden states `[N, H]` and their logits from the reference, for the tokens that are not
    /// padding.
    fn errors(&self, model: &Model, hidden: &Tensor) -> Result<Errors> {
        let logits = model.logits(hidden, Active::Base)?;
        let targets = Targets::new(&self.wanted, model.device())?;
        let width = hidden.size().last().copied().unwrap_or_default();
        let rows = ops::reshape(hidden, &[1, -1, width])?;
        let loss = if targets.count == 0 {
            0.0
        } else {
            let sum = loss_sum(model, Active::Base, &rows, &targets, false)?.sum;
            (ops::value(&sum)? / targets.count as f64 - self.loss).abs()
        };
        Ok(Errors {
            logits: ops::distance(&logits, &self.counted(&self.logits)?)?,
            hidden: ops::distance(hidden, &self.counted(&self.hidden)?)?,
            loss,
        })
    }
}

/// The labels of each row's next token, for the tokens that are not padding: the targets of their
/// predictions.
fn wanted(labels: &[i64], lengths: &[i64], width: usize) -> Vec<i64> {
    let rows = labels.chunks(width.max(1)).zip(lengths);
    let row = |(labels, &length): (&[i64], &i64)| {
        let own = labels.get(..length as usize).unwrap_or_default();
        own.iter().skip(1).copied().chain([IGNORED]).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

/// The file with a reference's tensors.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("ref.safetensors")
}
