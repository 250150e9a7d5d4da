//! Values that a forward pass derives once and every block uses.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::documents::Documents;
use super::rope::Rope;
use crate::error::{EngineError, Result};
use crate::layers::{Active, Adapter, KvCache, Mask, Pass};
use crate::ops;

/// The tokens of a forward pass. Hidden states are `[N, H]`, N = rows × width, row-major.
pub(super) struct Frame<'a> {
    pub pass: &'a Pass<'a>,
    /// B
    pub rows: i64,
    /// T, with the virtual tokens of an adapter's prompt.
    pub width: i64,
    /// `[N]` int64: the position of each token, after all virtual ones.
    pub positions: Tensor,
    /// Cosine and sine, by index into the model's list of rotations.
    pub rotations: Vec<(Tensor, Tensor)>,
    pub view: View,
    /// Where a prompt's virtual tokens are between the given ones.
    pub prompt: Option<Prompt>,
    /// The adapter whose prefix every document sees.
    prefixed: Option<&'a dyn Adapter>,
}

/// The form of attention.
pub(super) enum View {
    /// Each document sees itself and the tokens that it shares with others.
    Documents(Documents),
    /// `[B, 1, T, T]` bool.
    Masked(Tensor),
    /// A cache has the keys of earlier calls.
    Cached(Cached),
}

/// Attention over the tokens of a cache and the new ones.
pub(super) struct Cached {
    /// Tokens of the longest row, with the new ones: K.
    pub keys: i64,
    /// Tokens of each row, without the new ones.
    past: Vec<i64>,
    /// New tokens of each row: T.
    width: i64,
    kind: Kind,
    device: Device,
    /// Masks by window, each made once for all layers.
    masks: Mutex<Vec<(Option<i64>, Tensor)>>,
}

impl Cached {
    /// `[B, 1, T, K]`, to be added to the scores of a layer with this window: 0, or -∞ for keys that a query does not
    /// see. `None` if all are seen.
    pub fn mask(&self, window: Option<i64>) -> Result<Option<Tensor>> {
        let window = window.filter(|&window| self.keys > window);
        let equal = self.past.iter().all(|&past| past + self.width == self.keys);
        if window.is_none() && self.width == 1 && equal {
            return Ok(None);
        }
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mask)) = masks.iter().find(|(known, _)| *known == window) {
            return Ok(Some(mask.shallow_clone()));
        }
        let seen = ops::causal_mask(&self.past, self.width, self.keys, window, self.device)?;
        let mask = ops::added_mask(&seen, self.kind)?;
        masks.push((window, mask.shallow_clone()));
        Ok(Some(mask))
    }
}

/// Virtual tokens before every document, computed like other tokens.
pub(super) struct Prompt {
    /// Their embeddings, `[P, H]`.
    pub embeddings: Tensor,
    /// For each computed token, its row in `[P + given, H]`, the prompt above the given tokens. `None` if
    /// that order is used as it is, and the prompt is computed once for all documents.
    pub order: Option<Tensor>,
    /// For each given token, its row among the computed ones.
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
            let message = format!("ids and positions must both have shape [{rows}, {columns}]");
            return Err(EngineError::mismatch("hidden", &[pass.positions], &message));
        }
        let device = pass.positions.device();
        let view = match (pass.mask, cache) {
            (Mask::Causal, Some(cache)) => cached([rows, columns], cache, kind, device)?,
            (_, Some(_)) => {
                return Err(EngineError::torch("hidden", "a cache needs Mask::Causal"));
            }
            (Mask::Causal, None) => View::Documents(rows_alone(rows, columns, device)?),
            (Mask::Columns(columns), None) => View::Masked(ops::padded_mask(columns)?),
            (Mask::Documents(lengths), None) => {
                if lengths.iter().any(|&length| length < 1) || lengths.iter().sum::<i64>() != rows * columns {
                    let message = format!("the lengths of documents must sum to {}", rows * columns);
                    return Err(EngineError::mismatch("hidden", &[pass.positions], &message));
                }
                View::Documents(Documents::alone(lengths.iter().copied(), device)?)
            }
            (Mask::Branches(documents), None) => {
                if !Documents::describe(documents, rows * columns) {
                    let message =
                        format!("documents must share what comes before them, and sum to {}", rows * columns);
                    return Err(EngineError::mismatch("hidden", &[pass.positions], &message));
                }
                View::Documents(Documents::new(documents.to_vec(), device)?)
            }
        };
        let positions = ops::reshape(pass.positions, &[-1])?;
        let (rotations, prompt, prefixed) = (Vec::new(), None, None);
        let mut frame = Self { pass, rows, width: columns, positions, rotations, view, prompt, prefixed };
        // With a cache, the virtual tokens are already in it.
        if cache.is_none() {
            frame.add_virtual_tokens(kind)?;
        }
        let lengths = match cache {
            _ if !ropes.iter().any(Rope::depends_on_length) => vec![0],
            Some(cache) => cache.sequence_lengths(columns),
            None => vec![frame.longest()?],
        };
        let rotate = |rope: &Rope| rope.rotations(&frame.positions, &lengths, kind);
        frame.rotations = ropes.iter().map(rotate).collect::<Result<_>>()?;
        Ok(frame)
    }

    /// Positions in the longest document, with virtual and cached tokens. Waits for the device only with
    /// ignored columns.
    pub fn longest(&self) -> Result<i64> {
        match &self.view {
            View::Documents(documents) => {
                let given = self.prefixed.filter(|adapter| adapter.prompt().is_none());
                let count = given.map_or(0, |adapter| adapter.virtual_tokens() as i64);
                Ok(count + documents.longest())
            }
            View::Cached(cached) => Ok(cached.keys),
            View::Masked(_) => Ok(ops::largest(&self.positions)? + 1),
        }
    }

    /// Keys and values `[P, g, d]` that every document of this pass sees before its own.
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
                    let message = "rows with their own virtual tokens need a cache";
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
        let before = ops::integers(&(0..count).collect::<Vec<_>>(), device)?;
        let all = ops::concatenate(&[before, self.positions.shallow_clone()], 0)?;
        let tokens = self.rows * self.width;
        let embeddings = ops::to_kind(embeddings, kind)?;
        if let View::Documents(documents) = &self.view {
            let given = ops::integers(&(count..count + tokens).collect::<Vec<_>>(), device)?;
            self.view = View::Documents(documents.behind(count, device)?);
            (self.positions, self.rows, self.width) = (all, 1, count + tokens);
            self.prompt = Some(Prompt { embeddings, order: None, given });
            return Ok(());
        }
        // With ignored columns, each row has its own virtual tokens.
        let (mut order, mut given) = (Vec::new(), Vec::new());
        for start in (0..self.rows).map(|row| count + row * self.width) {
            order.extend(0..count);
            given.extend((0..self.width).map(|place| order.len() as i64 + place));
            order.extend(start..start + self.width);
        }
        let order = ops::integers(&order, device)?;
        self.positions = ops::select_rows(&all, 0, &order)?;
        if let (View::Masked(mask), Mask::Columns(columns)) = (&mut self.view, self.pass.mask) {
            *mask = ops::padded_mask(&ops::count_first(columns, count)?)?;
        }
        self.width += count;
        self.prompt = Some(Prompt { embeddings, order: Some(order), given: ops::integers(&given, device)? });
        Ok(())
    }
}

fn rows_alone(rows: i64, columns: i64, device: Device) -> Result<Documents> {
    Documents::alone(std::iter::repeat_n(columns, rows.max(0) as usize), device)
}

fn cached([rows, width]: [i64; 2], cache: &KvCache, kind: Kind, device: Device) -> Result<View> {
    let past = cache.lengths();
    let longest = past.iter().copied().max().unwrap_or_default();
    if past.len() as i64 != rows {
        let message = format!("the cache has {} rows, the batch {rows}", past.len());
        return Err(EngineError::torch("hidden", &message));
    }
    if longest == 0 {
        return Ok(View::Documents(rows_alone(rows, width, device)?));
    }
    let (keys, past, masks) = (longest + width, past.to_vec(), Mutex::default());
    Ok(View::Cached(Cached { keys, past, width, kind, device, masks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(past: &[i64], width: i64, kind: Kind) -> Cached {
        let keys = past.iter().max().unwrap() + width;
        let (past, masks) = (past.to_vec(), Mutex::default());
        Cached { keys, past, width, kind, device: Device::Cpu, masks }
    }

    #[test]
    fn layers_share_masks() {
        let cached = cached(&[4, 9], 1, Kind::Float);
        let all = cached.mask(None).unwrap().unwrap();
        let near = cached.mask(Some(3)).unwrap().unwrap();
        assert_ne!(all, near);
        assert!(ops::is_same_memory(&all, &cached.mask(None).unwrap().unwrap()));
        assert!(ops::is_same_memory(&near, &cached.mask(Some(3)).unwrap().unwrap()));
        // A window that nobody is beyond is none.
        assert!(ops::is_same_memory(&all, &cached.mask(Some(10)).unwrap().unwrap()));
    }

    #[test]
    fn one_token_of_equal_rows_needs_a_mask_only_within_a_window() {
        let cached = cached(&[9, 9], 1, Kind::Float);
        assert!(cached.mask(None).unwrap().is_none() && cached.mask(Some(10)).unwrap().is_none());
        assert!(cached.mask(Some(9)).unwrap().is_some());
    }

    #[test]
    fn added_masks_give_what_masks_of_keys_give() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (past, width, window) in
                [([4, 9], 1, None), ([4, 9], 3, None), ([6, 6], 1, Some(3)), ([0, 20], 5, Some(4))]
            {
                let cached = cached(&past, width, kind);
                let keys = cached.keys;
                let seen = ops::causal_mask(&past, width, keys, window, Device::Cpu).unwrap();
                let added = cached.mask(window).unwrap().unwrap();
                assert_eq!(added.size(), seen.size());
                let [q, k, v] = [width, keys, keys].map(|length| {
                    Tensor::randn([2, 2, length, 16], (Kind::Float, Device::Cpu)).to_kind(kind)
                });
                let usual = |mask: &Tensor| ops::attention(&q, &k, &v, Some(mask), false, 0.3).unwrap();
                assert_eq!(usual(&added), usual(&seen));
                let form = ops::ScoreForm { scale: 0.3, cap: Some(5.0), slopes: None };
                let openly = |mask: &Tensor| ops::attention_openly(&q, &k, &v, Some(mask), form).unwrap();
                assert_eq!(openly(&added), openly(&seen));
            }
        }
    }
}
