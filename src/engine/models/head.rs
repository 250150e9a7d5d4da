//! Computes losses and log-probabilities from final hidden states, without storing all logits.

use luthier_core::plan::logits_at_once;
use tch::{Device, Tensor};

use super::Model;
use crate::csrc::{self, CrossEntropy, Through};
use crate::error::{EngineError, Result};
use crate::layers::{Active, Folded};
use crate::ops;

/// Label of a token that is not trained on, as in transformers.
pub const IGNORED: i64 = -100;

/// Which hidden states predict which tokens. Built on the host, like batches, so that nothing waits for the
/// device.
#[derive(Debug)]
pub struct Targets {
    /// `[n]` int64: rows of the hidden states seen as `[B × T, H]`.
    pub rows: Tensor,
    /// `[n]` int64: the token that each predicts.
    pub ids: Tensor,
    /// n
    pub count: usize,
}

impl Targets {
    /// `wanted[b · T + t]` is the token that the hidden state at row b, column t predicts, or [`IGNORED`].
    pub fn new(wanted: &[i64], device: Device) -> Result<Self> {
        let (rows, ids): (Vec<i64>, Vec<i64>) =
            wanted.iter().enumerate().filter(|&(_, &id)| id >= 0).map(|(row, &id)| (row as i64, id)).unzip();
        Self::at(&rows, &ids, device)
    }

    /// The hidden state in row `rows[i]` predicts `ids[i]`. A row may predict several tokens.
    pub fn at(rows: &[i64], ids: &[i64], device: Device) -> Result<Self> {
        Ok(Self { rows: ops::integers(rows, device)?, ids: ops::integers(ids, device)?, count: ids.len() })
    }

    /// From labels as in transformers: `labels[b · T + t]` says whether token t of row b is trained on, so it
    /// is predicted at t - 1. `width` is T.
    pub fn shifted(labels: &[i64], width: usize, device: Device) -> Result<Self> {
        if width == 0 || !labels.len().is_multiple_of(width) {
            return Err(EngineError::torch("targets", "labels do not fill whole rows"));
        }
        let mut wanted = Vec::with_capacity(labels.len());
        for row in labels.chunks(width) {
            wanted.extend_from_slice(&row[1..]);
            wanted.push(IGNORED);
        }
        Self::new(&wanted, device)
    }
}

/// Sum of the cross entropies of all targets under `softmax(head · hidden)`. `hidden` is `[B, T, H]`, and the
/// head includes `adapters` (one for all rows, or none). `count_correct` asks for [`CrossEntropy::correct`].
pub fn loss_sum(
    model: &Model,
    adapters: Active,
    hidden: &Tensor,
    targets: &Targets,
    count_correct: bool,
) -> Result<CrossEntropy> {
    cross_entropy(model, adapters, hidden, targets, count_correct, Through::Sum)
}

/// As [`loss_sum`], but for each target: its negative log-probability, `[n]` f32, in the order of the
/// targets. Each has its own gradient.
pub fn losses(model: &Model, adapters: Active, hidden: &Tensor, targets: &Targets) -> Result<Tensor> {
    Ok(cross_entropy(model, adapters, hidden, targets, false, Through::Rows)?.rows)
}

fn cross_entropy(
    model: &Model,
    adapters: Active,
    hidden: &Tensor,
    targets: &Targets,
    count_correct: bool,
    through: Through,
) -> Result<CrossEntropy> {
    let width = hidden.size().last().copied().unwrap_or_default();
    let flat = ops::reshape(hidden, &[-1, width])?;
    let chosen = ops::gather(&flat, &targets.rows)?;
    model.expect_weights(adapters)?;
    let head = model.head();
    let Folded { weight, bias } = match adapters {
        Active::Base => head.folded(None, model.kind())?,
        Active::All(adapter) => head.folded(Some(adapter), model.kind())?,
        Active::Rows(_) => {
            return Err(EngineError::torch("loss", "all rows of a loss must have the same adapter"));
        }
    };
    let vocabulary = model.architecture().vocabulary as i64;
    let at_once = logits_at_once(csrc::gpu_memory(model.device())?) as i64;
    let chunk = (at_once / vocabulary.max(1)).max(1);
    let head = csrc::Head { weight: &weight, bias: bias.as_ref(), cap: model.architecture().logit_cap };
    let fused = csrc::has_program(csrc::Program::CrossEntropy, model.device());
    let comparison = csrc::Comparison { chunk, count_correct, through, fused };
    csrc::linear_cross_entropy(&chosen, &head, &targets.ids, comparison)
        .map_err(|error| error.within("the head"))
}
