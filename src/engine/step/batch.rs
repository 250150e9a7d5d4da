//! Lays out rows of tokens for one forward pass, without padding. Tokens that several rows begin with are
//! computed once.
//!
//! A token's hidden state depends only on the tokens before it. If rows begin with the same tokens (a system
//! prompt, the prompt of a preference pair), these are computed for the first row and the others continue
//! from there. Their losses and gradients are the same sums.

use std::collections::HashMap;

use luthier_core::data::EncodedRow;
use tch::{Device, Tensor};

use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Document, Mask};
use crate::models::Model;
use crate::models::head::Targets;
use crate::ops;

/// Tokens are shared if that saves at least one in this many, and if attention is computed once for them too.
/// Laying out keys for each document has a cost of its own.
const WORTH_SHARING: usize = 16;

/// The same if attention is computed for every document, with keys that are laid out again in each layer.
const WORTH_SHARING_WITHOUT_ATTENTION: usize = 4;

/// Rows for one forward pass. N tokens in all, of which C are computed, M targets of the loss.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, int64: `[rows, length]` if all rows have the same length and share nothing, otherwise `[1,
    /// C]`, row after row.
    pub ids: Tensor,
    /// Position of each token in its own row, int64, in the shape of `ids`.
    pub positions: Tensor,
    layout: Layout,
    /// The M trained tokens, and the rows that predict them.
    pub targets: Targets,
    /// N.
    pub tokens: u64,
    /// M.
    pub trained: u64,
}

/// The layout of a batch's rows.
#[derive(Debug)]
enum Layout {
    /// Each document is a row.
    Rows,
    /// End to end, with these lengths.
    Apart(Vec<i64>),
    /// End to end, with shared beginnings.
    Branches(Vec<Document>),
}

/// How often tokens are computed that several rows begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginnings {
    /// Once for all rows, if that saves at least one token in `worth`.
    Once {
        /// At least 1.
        worth: usize,
    },
    /// For each row.
    Each,
}

impl Beginnings {
    /// For forward passes without noise.
    pub fn of(model: &Model) -> Self {
        let worth = if model.shares_attention() { WORTH_SHARING } else { WORTH_SHARING_WITHOUT_ATTENTION };
        Self::Once { worth }
    }

    /// For training an adapter: once, unless dropout makes equal tokens differ.
    pub fn under(model: &Model, adapter: &dyn Adapter) -> Self {
        if adapter.is_random() { Self::Each } else { Self::of(model) }
    }
}

/// One document of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The dataset row that it comes from.
    pub row: usize,
    pub ids: &'a [u32],
    /// One per id: whether the loss counts the token.
    pub trained: &'a [bool],
}

impl<'a> Sequence<'a> {
    /// The sides of a row.
    pub fn of(row: &'a EncodedRow) -> impl Iterator<Item = Self> {
        row.sides.iter().map(move |side| Self { row: row.row, ids: &side.ids, trained: &side.trained })
    }
}

impl AsRef<Batch> for Batch {
    fn as_ref(&self) -> &Batch {
        self
    }
}

impl Batch {
    /// Which tokens see which: each row sees only itself.
    pub fn mask(&self) -> Mask<'_> {
        match &self.layout {
            Layout::Rows => Mask::Causal,
            Layout::Apart(lengths) => Mask::Documents(lengths),
            Layout::Branches(documents) => Mask::Branches(documents),
        }
    }
}

/// Lays rows out on `device`.
pub fn collate<'a>(
    rows: impl IntoIterator<Item = &'a EncodedRow>,
    beginnings: Beginnings,
    device: Device,
) -> Result<Batch> {
    let sequences: Vec<Sequence> = rows.into_iter().flat_map(Sequence::of).collect();
    lay_out(&sequences, beginnings, device).map(|(batch, _)| batch)
}

/// Lays sequences out on `device`. Also returns the index of each target's sequence, from 0. Labels are
/// shifted only here: token `i` of a sequence is predicted at `i - 1`.
pub fn lay_out(sequences: &[Sequence], beginnings: Beginnings, device: Device) -> Result<(Batch, Vec<i64>)> {
    if let Some(wrong) = sequences.iter().find(|sequence| sequence.ids.len() != sequence.trained.len()) {
        return Err(EngineError::Data(format!(
            "the loss mask of row {} does not have one entry per token",
            wrong.row
        )));
    }
    let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    if tokens == 0 {
        return Err(EngineError::Data("a micro-batch has no tokens".into()));
    }
    let computed = match beginnings {
        Beginnings::Each => Computed::new(sequences, false),
        Beginnings::Once { worth } => {
            let once = Computed::new(sequences, true);
            let spared = tokens - once.ids.len();
            if spared.saturating_mul(worth) < tokens { Computed::new(sequences, false) } else { once }
        }
    };
    let count = computed.ids.len();
    let lengths: Vec<i64> = computed.documents.iter().map(|document| document.own).collect();
    let equal = lengths.iter().all(|length| Some(length) == lengths.first());
    let (shape, layout) = if count < tokens {
        ([1, count as i64], Layout::Branches(computed.documents))
    } else if equal {
        ([lengths.len() as i64, lengths.first().copied().unwrap_or_default()], Layout::Rows)
    } else {
        ([1, count as i64], Layout::Apart(lengths))
    };
    let batch = Batch {
        ids: ops::reshape(&ops::integers(&computed.ids, device)?, &shape)?,
        positions: ops::reshape(&ops::integers(&computed.positions, device)?, &shape)?,
        layout,
        tokens: tokens as u64,
        trained: computed.wanted.len() as u64,
        targets: Targets::at(&computed.predicted_at, &computed.wanted, device)?,
    };
    Ok((batch, computed.owners))
}

/// Sequences in the form in which they are computed.
#[derive(Default)]
struct Computed {
    /// Of each computed token.
    ids: Vec<i64>,
    /// Of each computed token.
    positions: Vec<i64>,
    documents: Vec<Document>,
    /// For each target, the token that predicts it.
    predicted_at: Vec<i64>,
    /// For each target, its id.
    wanted: Vec<i64>,
    /// For each target, its sequence.
    owners: Vec<i64>,
}

impl Computed {
    fn new(sequences: &[Sequence], share: bool) -> Self {
        let mut computed = Self::default();
        // A prefix tree of all sequences: by the token before (none at the start) and the id.
        let mut known: HashMap<(Option<i64>, u32), i64> = HashMap::new();
        for (owner, sequence) in (0..).zip(sequences) {
            let (mut last, mut shared, start) = (None, Vec::new(), computed.ids.len());
            for (position, (&id, &trained)) in (0..).zip(sequence.ids.iter().zip(sequence.trained)) {
                if let (true, Some(before)) = (trained, last) {
                    computed.predicted_at.push(before);
                    computed.wanted.push(i64::from(id));
                    computed.owners.push(owner);
                }
                // After its first own token, a sequence shares nothing.
                let here = known.get(&(last, id)).copied().unwrap_or_else(|| {
                    computed.ids.push(i64::from(id));
                    computed.positions.push(position);
                    computed.ids.len() as i64 - 1
                });
                if share {
                    known.insert((last, id), here);
                }
                if here < start as i64 {
                    extend(&mut shared, here);
                }
                last = Some(here);
            }
            let own = (computed.ids.len() - start) as i64;
            if own > 0 {
                computed.documents.push(Document { shared, own });
            }
        }
        computed
    }
}

/// Adds a row to runs of consecutive rows.
fn extend(runs: &mut Vec<std::ops::Range<i64>>, place: i64) {
    match runs.last_mut() {
        Some(run) if run.end == place => run.end += 1,
        _ => runs.push(place..place + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Beginnings = Beginnings::Once { worth: WORTH_SHARING };

    fn row(ids: &[u32], trained: &[bool]) -> EncodedRow {
        EncodedRow::of_one_side(0, ids.to_vec(), trained.to_vec())
    }

    #[test]
    fn unequal_rows_lie_end_to_end_and_do_not_predict_the_next_rows_first_token() {
        let rows = [row(&[5, 6, 7], &[false, true, true]), row(&[8, 9], &[true, true])];
        let batch = collate(&rows, ONCE, Device::Cpu).unwrap();
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
        let (batch, owners) = lay_out(&sequences, Beginnings::Each, Device::Cpu).unwrap();
        assert_eq!(owners, [0, 0, 2]);
        assert_eq!(batch.targets.count, owners.len());
    }

    #[test]
    fn rows_of_equal_length_are_stacked() {
        let rows = [row(&[5, 6], &[false, true]), row(&[7, 8], &[false, false])];
        let batch = collate(&rows, ONCE, Device::Cpu).unwrap();
        assert_eq!(batch.ids.size(), [2, 2]);
        assert!(matches!(batch.mask(), Mask::Causal));
        assert_eq!(ops::to_integers(&batch.targets.rows).unwrap(), [0]);
    }

    #[test]
    fn a_batch_without_tokens_is_an_error() {
        assert!(collate(&[], ONCE, Device::Cpu).is_err());
        assert!(collate(&[row(&[1], &[])], ONCE, Device::Cpu).is_err());
    }

    #[test]
    fn shared_beginnings_are_computed_once() {
        let rows = [
            row(&[1, 2, 3, 4, 5], &[false, false, false, true, true]),
            row(&[1, 2, 3, 6], &[false, false, true, true]),
            // Branches off the second row, whose first tokens are the first row's.
            row(&[1, 2, 3, 6, 7], &[false, false, false, false, true]),
            // Has no tokens of its own.
            row(&[1, 2], &[false, true]),
            row(&[2, 3], &[false, true]),
        ];
        let batch = collate(&rows, ONCE, Device::Cpu).unwrap();
        assert_eq!(ops::to_integers(&batch.ids.reshape([-1])).unwrap(), [1, 2, 3, 4, 5, 6, 7, 2, 3]);
        assert_eq!(ops::to_integers(&batch.positions.reshape([-1])).unwrap(), [0, 1, 2, 3, 4, 3, 4, 0, 1]);
        let Mask::Branches(documents) = batch.mask() else { panic!("{:?}", batch.mask()) };
        let shared: Vec<Vec<i64>> =
            documents.iter().map(|document| document.shared.iter().cloned().flatten().collect()).collect();
        assert_eq!(shared, [vec![], vec![0, 1, 2], vec![0, 1, 2, 5], vec![]]);
        assert_eq!(documents[2].shared.len(), 2, "two runs of consecutive tokens");
        assert_eq!(documents.iter().map(|document| document.own).collect::<Vec<_>>(), [5, 1, 1, 2]);
        assert_eq!(ops::to_integers(&batch.targets.rows).unwrap(), [2, 3, 1, 2, 5, 0, 7]);
        assert_eq!(ops::to_integers(&batch.targets.ids).unwrap(), [4, 5, 3, 6, 7, 2, 3]);
        assert_eq!((batch.tokens, batch.trained), (18, 7));
    }

    #[test]
    fn short_shared_beginnings_are_computed_for_each_row() {
        let long: Vec<u32> = (0..40).collect();
        let mut other: Vec<u32> = (100..140).collect();
        other[0] = 0;
        let rows = [row(&long, &[true; 40]), row(&other, &[true; 40])];
        let batch = collate(&rows, ONCE, Device::Cpu).unwrap();
        assert_eq!(batch.ids.size(), [2, 40]);
        let rows = [row(&long, &[true; 40]), row(&long, &[true; 40])];
        assert_eq!(collate(&rows, ONCE, Device::Cpu).unwrap().ids.size(), [1, 40]);
        assert_eq!(collate(&rows, Beginnings::Each, Device::Cpu).unwrap().ids.size(), [2, 40]);
        // Sharing saves half of all tokens.
        let worth = |worth| collate(&rows, Beginnings::Once { worth }, Device::Cpu).unwrap().ids.size();
        assert_eq!((worth(2), worth(1)), (vec![1, 40], vec![2, 40]));
    }
}
