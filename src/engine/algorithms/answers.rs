//! Answers whose likelihood counts as a whole.

use luthier_core::data::EncodedRow;
use tch::{Device, Tensor};

use crate::error::{EngineError, Result};
use crate::layers::{Active, Pass};
use crate::models::{Model, head};
use crate::ops;
use crate::step::batch::{Batch, Beginnings, Sequence, lay_out};

/// N sequences laid out for one forward pass. The trained tokens of each are its answer.
#[derive(Debug)]
pub struct Answers {
    batch: Batch,
    /// `[M]` int64, of the batch's M targets: the sequence each belongs to.
    sequences: Tensor,
    /// N
    count: i64,
}

impl Answers {
    /// Lays sequences out on `device`.
    pub fn new(sequences: &[Sequence], beginnings: Beginnings, device: Device) -> Result<Self> {
        let (batch, owners) = lay_out(sequences, beginnings, device)?;
        Ok(Self { batch, sequences: ops::integers(&owners, device)?, count: sequences.len() as i64 })
    }

    /// The log-probability of each answer, `[N]` f64, natural logarithm, summed over its tokens: from the final hidden
    /// states under the model with `adapters`, whose gradient it carries.
    pub fn log_probs(&self, model: &Model, adapters: Active, hidden: &Tensor) -> Result<Tensor> {
        let losses = head::losses(model, adapters, hidden, &self.batch.targets)?;
        ops::scale(&ops::grouped_sums(&losses, &self.sequences, self.count)?, -1.0)
    }

    /// The same without the noise of training, by a forward pass of its own.
    pub fn ask(&self, model: &Model, adapters: Active) -> Result<Tensor> {
        let batch = &self.batch;
        let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
        self.log_probs(model, adapters, &model.hidden(&batch.ids, &pass, None)?)
    }
}

impl AsRef<Batch> for Answers {
    fn as_ref(&self) -> &Batch {
        &self.batch
    }
}

/// The sequences of R rows that have S sides each: all first sides, then all second ones, and so on.
pub fn by_side<'a>(rows: &[&'a EncodedRow]) -> Result<(usize, Vec<Sequence<'a>>)> {
    let sides = rows.first().map_or(0, |row| row.sides.len());
    if let Some(wrong) = rows.iter().find(|row| row.sides.len() != sides) {
        let message = format!("row {} has {} sides, others have {sides}", wrong.row, wrong.sides.len());
        return Err(EngineError::Data(message));
    }
    let side = |side: usize| rows.iter().filter_map(move |row| Sequence::of(row).nth(side));
    Ok((sides, (0..sides).flat_map(side).collect()))
}

/// The parts of `[S · R]`, one for each of S sides.
pub fn split_sides(all: &Tensor, sides: usize) -> Result<Vec<Tensor>> {
    let rows = all.numel() as i64 / (sides as i64).max(1);
    (0..sides as i64).map(|side| ops::narrow(all, 0, side * rows, rows)).collect()
}
