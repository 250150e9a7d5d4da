//! Rows of tokens laid out as one forward pass takes them, without any padding.

use luthier_core::data::EncodedRow;
use tch::{Device, Tensor};

use crate::error::{EngineError, Result};
use crate::models::Mask;
use crate::models::head::{IGNORED, Targets};
use crate::ops;

/// Rows for one forward pass. N tokens in all, M of them targets of the loss.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, int64: `[rows, length]` where all rows are equally long, else `[1, N]`, row after row.
    pub ids: Tensor,
    /// The place of each token in its own row, int64, of the shape of `ids`.
    pub positions: Tensor,
    /// Lengths of the rows where they lie end to end in one.
    documents: Option<Vec<i64>>,
    /// The M tokens trained on, and where each is predicted.
    pub targets: Targets,
    /// N.
    pub tokens: u64,
    /// M.
    pub trained: u64,
}

/// One document of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The dataset row it comes from.
    pub row: usize,
    /// Token ids, first to last.
    pub ids: &'a [u32],
    /// One per id: whether the token is a target of the loss.
    pub trained: &'a [bool],
}

impl AsRef<Batch> for Batch {
    fn as_ref(&self) -> &Batch {
        self
    }
}

impl Batch {
    /// Which tokens see which: each row itself only.
    pub fn mask(&self) -> Mask<'_> {
        match &self.documents {
            Some(lengths) => Mask::Documents(lengths),
            None => Mask::Causal,
        }
    }
}

/// Lays rows out on `device`.
pub fn collate<'a>(rows: impl IntoIterator<Item = &'a EncodedRow>, device: Device) -> Result<Batch> {
    let sequences =
        rows.into_iter().map(|row| Sequence { row: row.row, ids: &row.ids, trained: &row.trained });
    lay_out(sequences, device).map(|(batch, _)| batch)
}

/// Lays sequences out on `device`; says of each target which sequence, counted from 0, it belongs to. Labels are shifted
/// here, once: token `i` of a sequence is predicted at `i - 1`.
pub fn lay_out<'a>(
    sequences: impl IntoIterator<Item = Sequence<'a>>,
    device: Device,
) -> Result<(Batch, Vec<i64>)> {
    let (mut ids, mut positions, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut wanted, mut owners) = (Vec::new(), Vec::new());
    for (number, row) in (0..).zip(sequences) {
        if row.ids.len() != row.trained.len() {
            return Err(EngineError::Data(format!("row {} has not one mask entry per token", row.row)));
        }
        if row.ids.is_empty() {
            continue;
        }
        ids.extend(row.ids.iter().map(|&id| i64::from(id)));
        positions.extend(0..row.ids.len() as i64);
        lengths.push(row.ids.len() as i64);
        let labels = row.ids.iter().zip(row.trained).skip(1);
        owners.extend(labels.clone().filter(|(_, trained)| **trained).map(|_| number));
        wanted.extend(labels.map(|(&id, &trained)| if trained { i64::from(id) } else { IGNORED }));
        wanted.push(IGNORED);
    }
    let Some(&length) = lengths.first() else {
        return Err(EngineError::Data("a micro-batch holds no tokens".into()));
    };
    let equal = lengths.iter().all(|&other| other == length);
    let targets = Targets::new(&wanted, device)?;
    let shape = if equal { [lengths.len() as i64, length] } else { [1, ids.len() as i64] };
    let batch = Batch {
        tokens: ids.len() as u64,
        trained: targets.count as u64,
        ids: ops::reshape(&ops::integers(&ids, device)?, &shape)?,
        positions: ops::reshape(&ops::integers(&positions, device)?, &shape)?,
        documents: (!equal).then_some(lengths),
        targets,
    };
    Ok((batch, owners))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], trained: &[bool]) -> EncodedRow {
        EncodedRow { row: 0, ids: ids.to_vec(), trained: trained.to_vec(), rejected: None }
    }

    #[test]
    fn unequal_rows_lie_end_to_end_and_none_predicts_the_next_ones_first_token() {
        let rows = [row(&[5, 6, 7], &[false, true, true]), row(&[8, 9], &[true, true])];
        let batch = collate(&rows, Device::Cpu).unwrap();
        assert_eq!(batch.ids.size(), [1, 5]);
        assert_eq!(ops::to_integers(&batch.positions).unwrap(), [0, 1, 2, 0, 1]);
        assert!(matches!(batch.mask(), Mask::Documents([3, 2])));
        assert_eq!(ops::to_integers(&batch.targets.rows).unwrap(), [0, 1, 3]);
        assert_eq!(ops::to_integers(&batch.targets.ids).unwrap(), [6, 7, 9]);
        assert_eq!((batch.tokens, batch.trained), (5, 3));
    }

    #[test]
    fn each_target_knows_its_sequence() {
        let sequence = |ids, trained| Sequence { row: 0, ids, trained };
        let sequences = [
            sequence(&[5, 6, 7], &[false, true, true]),
            sequence(&[8, 9], &[true, false]),
            sequence(&[8, 9], &[true, true]),
        ];
        let (batch, owners) = lay_out(sequences, Device::Cpu).unwrap();
        assert_eq!(owners, [0, 0, 2]);
        assert_eq!(batch.targets.count, owners.len());
    }

    #[test]
    fn equal_rows_stand_side_by_side() {
        let rows = [row(&[5, 6], &[false, true]), row(&[7, 8], &[false, false])];
        let batch = collate(&rows, Device::Cpu).unwrap();
        assert_eq!(batch.ids.size(), [2, 2]);
        assert!(matches!(batch.mask(), Mask::Causal));
        assert_eq!(ops::to_integers(&batch.targets.rows).unwrap(), [0]);
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        assert!(collate(&[], Device::Cpu).is_err());
        assert!(collate(&[row(&[1], &[])], Device::Cpu).is_err());
    }
}
