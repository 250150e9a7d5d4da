//! What one forward derives once and every block uses.

use tch::{Device, Kind, Tensor};

use super::rope::Rope;
use super::{Active, Mask, Pass};
use crate::error::{EngineError, Result};
use crate::generation::KvCache;
use crate::methods::Adapter;
use crate::ops;

/// One forward's view of its tokens. Hidden states are `[N, H]`, N = rows × width, row-major.
pub(super) struct Frame<'a> {
    pub pass: &'a Pass<'a>,
    /// B
    pub rows: i64,
    /// T, with the virtual tokens of an adapter's prompt.
    pub width: i64,
    /// `[N]` int64: the place of each token, after all virtual ones.
    pub positions: Tensor,
    /// Cosine and sine by index into the model's list of rotations.
    pub rotations: Vec<(Tensor, Tensor)>,
    pub view: View,
    /// Where virtual tokens of a prompt stand between the given ones.
    pub prompt: Option<Prompt>,
    /// Whose prefixes every document sees.
    prefixed: Option<&'a dyn Adapter>,
}

/// How attention runs.
pub(super) enum View {
    /// Rows are documents.
    Causal,
    /// Documents end to end, of several lengths.
    Documents(Vec<i64>),
    /// `[B, 1, T, T]` bool.
    Masked(Tensor),
    /// Keys of earlier calls lie in a cache, `past` of each row; the longest row then has `keys`. `mask`
    /// `[B, 1, T, keys]` is there where rows differ in length or several tokens come at once.
    Cached { keys: i64, past: Vec<i64>, mask: Option<Tensor> },
}

/// Virtual tokens before every document, computed like all others.
pub(super) struct Prompt {
    /// Their embeddings, `[P, H]`.
    pub embeddings: Tensor,
    /// For each token that is computed its row of `[P + given, H]`, the prompt above the given tokens.
    pub order: Tensor,
    /// For each given token its row among those that are computed.
    pub given: Tensor,
}

impl<'a> Frame<'a> {
    /// For ids of shape `[rows, columns]`.
    pub fn new(
        [rows, columns]: [i64; 2],
        pass: &'a Pass<'a>,
        ropes: &[Rope],
        kind: Kind,
        cache: Option<&KvCache>,
    ) -> Result<Self> {
        if pass.positions.size() != [rows, columns] {
            let message = format!("ids and positions must be of one shape, here [{rows}, {columns}]");
            return Err(ops::mismatch("hidden", &[pass.positions], &message));
        }
        let device = pass.positions.device();
        let view = match (pass.mask, cache) {
            (Mask::Causal, Some(cache)) => cached(rows, columns, cache, device)?,
            (_, Some(_)) => {
                return Err(EngineError::torch("hidden", "a cache goes with Mask::Causal only"));
            }
            (Mask::Causal, None) => View::Causal,
            (Mask::Columns(columns), None) => View::Masked(ops::padded_mask(columns)?),
            (Mask::Documents(lengths), None) => {
                if lengths.iter().any(|&length| length < 1) || lengths.iter().sum::<i64>() != rows * columns {
                    let message = format!("the lengths of documents must sum to {}", rows * columns);
                    return Err(ops::mismatch("hidden", &[pass.positions], &message));
                }
                View::Documents(lengths.to_vec())
            }
        };
        let positions = ops::reshape(pass.positions, &[-1])?;
        let (rotations, prompt, prefixed) = (Vec::new(), None, None);
        let mut frame = Self { pass, rows, width: columns, positions, rotations, view, prompt, prefixed };
        // With a cache the virtual tokens lie in it already.
        if cache.is_none() {
            frame.add_virtual_tokens(kind)?;
        }
        let longest =
            if ropes.iter().any(Rope::depends_on_length) { ops::largest(&frame.positions)? + 1 } else { 0 };
        let rotate = |rope: &Rope| rope.rotations(&frame.positions, longest, kind);
        frame.rotations = ropes.iter().map(rotate).collect::<Result<_>>()?;
        Ok(frame)
    }

    /// Keys and values `[P, g, d]` that every document of this forward sees before its own.
    pub fn prefix(&self, layer: usize, kind: Kind) -> Result<Option<(Tensor, Tensor)>> {
        let Some((keys, values)) = self.prefixed.map_or(Ok(None), |adapter| adapter.prefix(layer))? else {
            return Ok(None);
        };
        Ok(Some((ops::to_kind(&keys, kind)?, ops::to_kind(&values, kind)?)))
    }

    fn add_virtual_tokens(&mut self, kind: Kind) -> Result<()> {
        let adapter = match self.pass.adapters {
            Active::Base => return Ok(()),
            Active::All(adapter) => adapter,
            Active::Rows(rows) => {
                if rows.iter().flatten().any(|adapter| adapter.virtual_tokens() > 0) {
                    let message = "rows with virtual tokens of their own need a cache";
                    return Err(EngineError::torch("hidden", message));
                }
                return Ok(());
            }
        };
        let count = adapter.virtual_tokens() as i64;
        if count == 0 {
            return Ok(());
        }
        self.prefixed = Some(adapter);
        self.positions = ops::add_integer(&self.positions, count)?;
        let Some(embeddings) = adapter.prompt() else { return Ok(()) };
        let device = self.positions.device();
        let lengths = match &self.view {
            View::Documents(lengths) => lengths.clone(),
            View::Causal | View::Masked(_) | View::Cached { .. } => vec![self.width; self.rows as usize],
        };
        let (mut order, mut given, mut start) = (Vec::new(), Vec::new(), count);
        for length in &lengths {
            order.extend(0..count);
            given.extend((0..*length).map(|place| order.len() as i64 + place));
            order.extend(start..start + length);
            start += length;
        }
        let order = ops::integers(&order, device)?;
        let before = ops::integers(&(0..count).collect::<Vec<_>>(), device)?;
        let all = ops::concatenate(&[before, self.positions.shallow_clone()], 0)?;
        self.positions = ops::select_rows(&all, 0, &order)?;
        match (&mut self.view, self.pass.mask) {
            (View::Documents(lengths), _) => {
                for length in lengths.iter_mut() {
                    *length += count;
                }
                self.width = lengths.iter().sum();
                self.rows = 1;
            }
            (View::Masked(mask), Mask::Columns(columns)) => {
                *mask = ops::padded_mask(&ops::count_first(columns, count)?)?;
                self.width += count;
            }
            _ => self.width += count,
        }
        let embeddings = ops::to_kind(embeddings, kind)?;
        self.prompt = Some(Prompt { embeddings, order, given: ops::integers(&given, device)? });
        Ok(())
    }
}

fn cached(rows: i64, columns: i64, cache: &KvCache, device: Device) -> Result<View> {
    let past = cache.lengths();
    let longest = past.iter().copied().max().unwrap_or_default();
    if past.len() as i64 != rows {
        let message = format!("the cache has {} rows, the batch {rows}", past.len());
        return Err(EngineError::torch("hidden", &message));
    }
    let uniform = past.iter().all(|&length| length == longest);
    let keys = longest + columns;
    if longest == 0 {
        return Ok(View::Causal);
    }
    let mask = if uniform && columns == 1 {
        None
    } else {
        Some(ops::causal_mask(past, columns, keys, None, device)?)
    };
    Ok(View::Cached { keys, past: past.to_vec(), mask })
}
