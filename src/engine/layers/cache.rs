//! The cache of keys and values of earlier tokens, by layer and row.

use luthier_core::model::Architecture;
use tch::{Device, Kind, Tensor};

use crate::error::{EngineError, Result};
use crate::{csrc, ops};

/// The cache grows by this many tokens at a time.
const STEP: i64 = 256;

/// Keys and values of a batch. Rows may differ in length; anything beyond a row's length is never read.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<Store>>,
    /// Key-value heads and head size of each layer.
    shapes: Vec<[i64; 2]>,
    lengths: Vec<i64>,
    /// Length of each row's whole sequence, if the next tokens do not end it.
    expected: Option<Vec<i64>>,
    capacity: i64,
    options: (Kind, Device),
    /// Where the tokens of the current pass go, if rows differ in length.
    places: Option<Places>,
}

/// Keys and values of one layer, `[B, heads, capacity, size]`.
#[derive(Debug)]
struct Store {
    keys: Tensor,
    values: Tensor,
}

/// Indices of new tokens, made once for all layers.
#[derive(Debug)]
struct Places {
    /// `[B, 1]` int64: each row's number.
    rows: Tensor,
    /// `[B, T]` int64: each token's place in its row.
    tokens: Tensor,
}

impl KvCache {
    pub fn new(architecture: &Architecture, rows: usize, kind: Kind, device: Device) -> Self {
        let specs = architecture.layers.iter().map(|layer| &layer.attention);
        let shapes = specs.map(|spec| [spec.key_value_heads as i64, spec.head_size as i64]);
        Self {
            layers: architecture.layers.iter().map(|_| None).collect(),
            shapes: shapes.collect(),
            lengths: vec![0; rows],
            expected: None,
            capacity: 0,
            options: (kind, device),
            places: None,
        }
    }

    /// Number of tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Sets the length of each row's complete sequence. If rotary frequencies depend on the length, keys are
    /// rotated for this one. Without it, a sequence ends with the tokens of the current pass. Valid until the
    /// cache is next truncated or its rows change.
    pub fn expect(&mut self, lengths: &[i64]) {
        self.expected = Some(lengths.to_vec());
    }

    /// Length of each row's sequence during a pass over `width` more tokens.
    pub(crate) fn sequence_lengths(&self, width: i64) -> Vec<i64> {
        self.expected.clone().unwrap_or_else(|| self.lengths.iter().map(|length| length + width).collect())
    }

    /// Drops tokens beyond these lengths.
    pub fn truncate(&mut self, lengths: &[i64]) {
        self.expected = None;
        for (held, &wanted) in self.lengths.iter_mut().zip(lengths) {
            *held = wanted.clamp(0, *held);
        }
    }

    /// Keeps these rows, in this order.
    pub fn keep_rows(&mut self, rows: &[usize]) -> Result<()> {
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let indices = ops::integers(&indices, self.options.1)?;
        for layer in self.layers.iter_mut().flatten() {
            layer.keys = ops::select_rows(&layer.keys, 0, &indices)?;
            layer.values = ops::select_rows(&layer.values, 0, &indices)?;
        }
        self.expected = None;
        self.lengths = rows.iter().filter_map(|&row| self.lengths.get(row).copied()).collect();
        Ok(())
    }

    /// Sets the number of heads stored for a layer; the cache must be empty. If there are more than the layer
    /// has, its heads are repeated.
    pub(crate) fn set_heads(&mut self, layer: usize, heads: i64) {
        if let Some(shape) = self.shapes.get_mut(layer) {
            shape[0] = heads;
        }
    }

    /// Raises the number of heads of each layer to that of `other`; the cache must be empty.
    pub(crate) fn widen(&mut self, other: &Self) {
        for (own, other) in self.shapes.iter_mut().zip(&other.shapes) {
            own[0] = own[0].max(other[0]);
        }
    }

    /// Replaces a row's contents by the only row of `other`. Other rows do not change.
    pub(crate) fn adopt(&mut self, row: usize, other: &Self) -> Result<()> {
        let length = other.lengths.first().copied().unwrap_or_default();
        let longest = self.lengths.iter().copied().max().unwrap_or_default();
        self.reserve((length - longest).max(0))?;
        for (layer, other) in self.layers.iter().zip(&other.layers) {
            let (Some(layer), Some(other)) = (layer, other) else { continue };
            for (store, new) in [(&layer.keys, &other.keys), (&layer.values, &other.values)] {
                let place = ops::narrow(&ops::narrow(store, 0, row as i64, 1)?, 2, 0, length)?;
                let new = ops::repeat_heads(&ops::narrow(new, 2, 0, length)?, heads(store))?;
                ops::copy_into(&mut { place }, &new)?;
            }
        }
        if let Some(held) = self.lengths.get_mut(row) {
            *held = length;
        }
        Ok(())
    }

    /// Prepares a pass over `width` more tokens of every row, which ends with [`KvCache::advance`].
    pub(crate) fn prepare(&mut self, width: i64) -> Result<()> {
        self.reserve(width)?;
        self.places = None;
        if !are_equal(&self.lengths) {
            let row = |(row, &start): (usize, &i64)| std::iter::once(row as i64).chain(start..start + width);
            let all: Vec<i64> = self.lengths.iter().enumerate().flat_map(row).collect();
            let all = ops::reshape(&ops::integers(&all, self.options.1)?, &[-1, 1 + width])?;
            let (rows, tokens) = (ops::narrow(&all, 1, 0, 1)?, ops::narrow(&all, 1, 1, width)?);
            self.places = Some(Places { rows, tokens });
        }
        Ok(())
    }

    /// Makes room for `width` more tokens of every row.
    fn reserve(&mut self, width: i64) -> Result<()> {
        let longest = self.lengths.iter().copied().max().unwrap_or_default();
        if longest + width <= self.capacity {
            return Ok(());
        }
        let capacity = (longest + width).div_euclid(STEP) * STEP + STEP;
        let rows = self.lengths.len() as i64;
        for (layer, [heads, size]) in self.layers.iter_mut().zip(&self.shapes) {
            let fresh = || ops::zeros(&[rows, *heads, capacity, *size], self.options.0, self.options.1);
            let (mut keys, mut values) = (fresh()?, fresh()?);
            if let Some(old) = layer.take().filter(|_| longest > 0) {
                keys = carry_over(keys, &old.keys, longest)?;
                values = carry_over(values, &old.values, longest)?;
            }
            *layer = Some(Store { keys, values });
        }
        self.capacity = capacity;
        Ok(())
    }

    /// One layer's keys and values, ready for the tokens of a prepared pass.
    pub(crate) fn layer(&self, layer: usize) -> Result<LayerCache<'_>> {
        let store = self.layers.get(layer).and_then(Option::as_ref);
        let store = store.ok_or_else(|| EngineError::torch("cache", "no room was reserved"))?;
        Ok(LayerCache { store, starts: &self.lengths, places: self.places.as_ref() })
    }

    /// Every row has grown by `width` tokens.
    pub(crate) fn advance(&mut self, width: i64) {
        for length in &mut self.lengths {
            *length += width;
        }
        self.places = None;
    }
}

fn are_equal(lengths: &[i64]) -> bool {
    lengths.iter().all(|length| Some(length) == lengths.first())
}

fn carry_over(fresh: Tensor, old: &Tensor, length: i64) -> Result<Tensor> {
    ops::copy_into(&mut ops::narrow(&fresh, 2, 0, length)?, &ops::narrow(old, 2, 0, length)?)?;
    Ok(fresh)
}

fn heads(store: &Tensor) -> i64 {
    store.size().get(1).copied().unwrap_or_default()
}

/// Keys and values of one layer during a pass.
#[derive(Debug)]
pub(crate) struct LayerCache<'a> {
    store: &'a Store,
    /// Where each row's next token is written.
    starts: &'a [i64],
    places: Option<&'a Places>,
}

impl LayerCache<'_> {
    /// Appends `[B, heads, T, size]` to every row. Heads are repeated if the cache has more.
    pub fn write(&self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let width = keys.size().get(2).copied().unwrap_or_default();
        for (store, new) in [(&self.store.keys, keys), (&self.store.values, values)] {
            let new = &ops::repeat_heads(new, heads(store))?;
            match (self.places, self.starts.first()) {
                (Some(Places { rows, tokens }), _) => ops::put_tokens(store, rows, tokens, new)?,
                (None, Some(&start)) => ops::copy_into(&mut ops::narrow(store, 2, start, width)?, new)?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// As [`Self::write`] of keys that are rotated by `cos` and `sin`, with tokens as their projections give them. Returns
    /// the rotated queries, or `None` if no kernel does all of this at once.
    pub fn write_rotated(&self, tokens: csrc::NewTokens, rotation: [&Tensor; 2]) -> Result<Option<Tensor>> {
        let cached = [&self.store.keys, &self.store.values];
        let all = [tokens.query, tokens.key, tokens.value].into_iter().chain(rotation).chain(cached);
        if !ops::fuses(csrc::Program::Elementwise, &all.collect::<Vec<_>>()) {
            return Ok(None);
        }
        self.write_at_once(tokens, rotation)
    }

    /// [`Self::write_rotated`] where the kernel is known to work.
    fn write_at_once(&self, tokens: csrc::NewTokens, rotation: [&Tensor; 2]) -> Result<Option<Tensor>> {
        let places = match (self.places, self.starts.first()) {
            (Some(places), _) => csrc::Places::At(&places.tokens),
            (None, Some(&start)) => csrc::Places::From(start),
            (None, None) => return Ok(None),
        };
        if tokens.key.size().get(1).copied() != Some(heads(&self.store.keys)) {
            return Ok(None);
        }
        let cached = [&self.store.keys, &self.store.values];
        csrc::fused_rope_into_cache(tokens, rotation, cached, places).map(Some)
    }

    /// Attention of one new token per row, already written: `query` `[B, h, size]` to `[B, h · size]`. `None`
    /// if the kernel does not support these tensors.
    pub fn attend(&self, query: &Tensor, scale: f64) -> Option<Result<Tensor>> {
        if !csrc::all_plain(&[query, &self.store.keys, &self.store.values]) {
            return None;
        }
        let lengths: Vec<i64> = self.starts.iter().map(|start| start + 1).collect();
        Some(csrc::attend(query, &self.store.keys, &self.store.values, &lengths, scale))
    }

    /// The first `length` keys and values of every row.
    pub fn read(&self, length: i64) -> Result<(Tensor, Tensor)> {
        Ok((ops::narrow(&self.store.keys, 2, 0, length)?, ops::narrow(&self.store.values, 2, 0, length)?))
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::model::ModelFiles;

    use super::*;

    #[test]
    fn rows_of_any_length_get_their_tokens_at_their_ends() {
        let architecture = ModelFiles::open(&crate::testing::model()).unwrap().architecture;
        for kind in [Kind::Float, Kind::BFloat16] {
            for (lengths, width) in [([3, 0, 7], 1), ([3, 0, 7], 4), ([5, 5, 5], 3), ([250, 1, 255], 2)] {
                let mut cache = KvCache::new(&architecture, 3, kind, Device::Cpu);
                let [heads, size] = cache.shapes[1];
                // As many as an adapter's prefix may bring.
                cache.set_heads(1, 2 * heads);
                cache.lengths = lengths.to_vec();
                cache.reserve(0).unwrap();
                let capacity = cache.capacity;
                for layer in cache.layers.iter().flatten() {
                    let _ = [&layer.keys, &layer.values].map(|store| store.shallow_clone().fill_(7.0));
                }
                cache.prepare(width).unwrap();
                assert!(cache.capacity > capacity || lengths[2] < 250);
                for layer in [0, 1] {
                    // As a projection gives them: heads beside one another.
                    let new = || Tensor::randn([3, width, heads, size], (Kind::Float, Device::Cpu));
                    let [keys, values] = [new(), new()].map(|x| x.to_kind(kind).transpose(1, 2));
                    let store = cache.layers[layer].as_ref().unwrap();
                    let wanted = [(&store.keys, &keys), (&store.values, &values)].map(|(store, new)| {
                        let wanted = store.copy();
                        let new =
                            if layer == 1 { new.repeat_interleave_self_int(2, 1, None) } else { new.copy() };
                        for (row, &start) in lengths.iter().enumerate() {
                            let row = row as i64;
                            wanted.get(row).narrow(1, start, width).copy_(&new.get(row));
                        }
                        wanted
                    });
                    cache.layer(layer).unwrap().write(&keys, &values).unwrap();
                    let store = cache.layers[layer].as_ref().unwrap();
                    assert_eq!([&store.keys, &store.values], [&wanted[0], &wanted[1]], "{lengths:?} {width}");
                }
                cache.advance(width);
                assert_eq!(cache.lengths(), lengths.map(|length| length + width));
            }
        }
    }

    #[test]
    fn rotated_tokens_are_written_at_once_where_they_are_written_one_by_one() {
        csrc::emulate_kernels();
        let architecture = ModelFiles::open(&crate::testing::model()).unwrap().architecture;
        for (lengths, width) in [([3, 0, 7], 1), ([3, 0, 7], 4), ([5, 5, 5], 3)] {
            let caches = [(); 2].map(|()| {
                let mut cache = KvCache::new(&architecture, 3, Kind::BFloat16, Device::Cpu);
                let [heads, _] = cache.shapes[1];
                cache.set_heads(1, 2 * heads);
                cache.lengths = lengths.to_vec();
                cache.prepare(width).unwrap();
                cache
            });
            let [groups, size] = caches[0].shapes[0];
            let some =
                |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
            let tokens = 3 * width;
            let [query, key, value] = [2 * groups, groups, groups].map(|heads| some(&[tokens, heads, size]));
            let [cos, sin] = [(); 2].map(|()| some(&[tokens, 1, size / 2]));
            let [at_once, apart] = [0, 1].map(|place| caches[place].layer(0).unwrap());
            let new = csrc::NewTokens { query: &query, key: &key, value: &value };
            let found = at_once.write_at_once(new, [&cos, &sin]).unwrap().unwrap();
            let by_row = |x: &Tensor| x.view([3, width, groups, size]).transpose(1, 2);
            let rotated = |x: &Tensor| ops::rope(x, &cos, &sin).unwrap();
            apart.write(&by_row(&rotated(&key)), &by_row(&value)).unwrap();
            assert!(ops::relative_distance(&found, &rotated(&query)).unwrap() < 1e-2);
            for (found, expected) in
                [(&at_once.store.keys, &apart.store.keys), (&at_once.store.values, &apart.store.values)]
            {
                assert!(ops::relative_distance(found, expected).unwrap() < 1e-2, "{lengths:?} {width}");
            }
            assert!(ops::largest_magnitude(&at_once.store.keys).unwrap() > 0.5);
            // A layer that has more heads takes them one by one.
            assert!(caches[0].layer(1).unwrap().write_at_once(new, [&cos, &sin]).unwrap().is_none());
        }
    }
}
