//! What one forward derives once and every block uses.

use tch::{Kind, Tensor};

use super::rope::Rope;
use super::{Mask, Pass};
use crate::error::{EngineError, Result};
use crate::generation::KvCache;
use crate::ops;

/// One forward's view of its tokens. Hidden states are `[N, H]`, N = rows × width, row-major.
pub(super) struct Frame<'a> {
    pub pass: &'a Pass<'a>,
    /// B
    pub rows: i64,
    /// T
    pub width: i64,
    /// Cosine and sine by index into the model's list of rotations.
    pub rotations: Vec<(Tensor, Tensor)>,
    pub view: View<'a>,
}

/// How attention runs.
pub(super) enum View<'a> {
    /// Rows are documents.
    Causal,
    /// Documents end to end, of several lengths.
    Documents(&'a [i64]),
    /// `[B, 1, T, T]` bool.
    Masked(Tensor),
    /// Keys of earlier calls lie in a cache: the longest row then has `keys`; `mask` `[B, 1, T, keys]` is there where
    /// rows differ in length or several tokens come at once.
    Cached { keys: i64, mask: Option<Tensor> },
}

impl<'a> Frame<'a> {
    /// `ids` `[B, T]`.
    pub fn new(
        ids: &Tensor,
        pass: &'a Pass<'a>,
        ropes: &[Rope],
        kind: Kind,
        cache: Option<&KvCache>,
    ) -> Result<Self> {
        let (Ok((rows, width)), true) = (ids.size2(), ids.size() == pass.positions.size()) else {
            let message = "ids and positions must be of one shape [rows, columns]";
            return Err(ops::mismatch("hidden", &[ids, pass.positions], message));
        };
        let device = ids.device();
        let view = match (pass.mask, cache) {
            (Mask::Causal, Some(cache)) => {
                let past = cache.lengths();
                let longest = past.iter().copied().max().unwrap_or_default();
                if past.len() as i64 != rows {
                    let message = format!("the cache has {} rows", past.len());
                    return Err(ops::mismatch("hidden", &[ids], &message));
                }
                let uniform = past.iter().all(|&length| length == longest);
                let keys = longest + width;
                if longest == 0 {
                    View::Causal
                } else if uniform && width == 1 {
                    View::Cached { keys, mask: None }
                } else {
                    View::Cached { keys, mask: Some(ops::causal_mask(past, width, keys, device)?) }
                }
            }
            (_, Some(_)) => {
                return Err(EngineError::torch("hidden", "a cache goes with Mask::Causal only"));
            }
            (Mask::Causal, None) => View::Causal,
            (Mask::Columns(columns), None) => View::Masked(ops::padded_mask(columns)?),
            (Mask::Documents(lengths), None) => {
                if lengths.iter().any(|&length| length < 1) || lengths.iter().sum::<i64>() != rows * width {
                    let message = format!("the lengths of documents must sum to {}", rows * width);
                    return Err(ops::mismatch("hidden", &[ids], &message));
                }
                View::Documents(lengths)
            }
        };
        let positions = ops::reshape(pass.positions, &[-1])?;
        let rotations = ropes.iter().map(|rope| rope.rotations(&positions, kind)).collect::<Result<_>>()?;
        Ok(Self { pass, rows, width, rotations, view })
    }
}
