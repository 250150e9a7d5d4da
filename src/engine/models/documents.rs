//! Documents among the tokens of a forward pass: which rows of keys and values each of them sees.

use std::ops::Range;

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::csrc;
use crate::error::Result;
use crate::layers::Document;
use crate::ops;

/// Documents whose N own tokens lie end to end. L: the sum of all documents' lengths, in which shared tokens
/// count once per document.
pub(super) struct Documents {
    list: Vec<Document>,
    /// For each, the number of tokens before its own.
    before: Vec<i64>,
    /// For each, the number of its own tokens.
    own: Vec<i64>,
    /// `[L]`: the row of every document's tokens; empty if these are all rows in order.
    rows: Vec<i64>,
    /// The same on the device, if documents share tokens.
    spread: Option<Spread>,
    device: Device,
    /// Made once for all layers.
    laid: Mutex<Option<Laid>>,
}

/// What CUDA's flash attention takes of documents, after the rows of keys that all of them see.
struct Laid {
    /// Number of those rows.
    after: i64,
    lengths: csrc::Lengths,
    /// `[L]` int64: the row of keys and values for every document's tokens; nothing if these are all rows in order.
    rows: Option<Tensor>,
}

/// Indices that expand shared tokens for every document, and back.
pub(super) struct Spread {
    /// `[L]` int64: the row of every document's tokens.
    pub rows: Tensor,
    /// `[N]` int64: the index of each own token among those.
    pub own: Tensor,
}

impl Laid {
    fn new(after: i64, seen: csrc::Seen, device: Device) -> Result<Self> {
        let keys: Vec<i64> = seen.before.iter().zip(seen.own).map(|(before, own)| before + own).collect();
        let begins = |lengths: &[i64]| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            let begins: Vec<i64> = std::iter::once(0).chain(ends).collect();
            ops::to_kind(&ops::integers(&begins, device)?, Kind::Int)
        };
        let most = |lengths: &[i64]| lengths.iter().copied().max().unwrap_or_default();
        let lengths = csrc::Lengths {
            queries: begins(seen.own)?,
            keys: begins(&keys)?,
            most_queries: most(seen.own),
            most_keys: most(&keys),
        };
        let rows = if seen.rows.is_empty() { None } else { Some(ops::integers(seen.rows, device)?) };
        Ok(Self { after, lengths, rows })
    }
}

impl Documents {
    /// Documents of these lengths that share nothing.
    pub fn alone(lengths: impl IntoIterator<Item = i64>, device: Device) -> Result<Self> {
        Self::new(lengths.into_iter().map(|own| Document { shared: Vec::new(), own }).collect(), device)
    }

    /// Whether the list is valid for `tokens` rows: every document has tokens of its own, and shares only
    /// tokens before those.
    pub fn describe(list: &[Document], tokens: i64) -> bool {
        let mut start = 0_i64;
        let sound = list.iter().all(|document| {
            let earlier =
                |range: &Range<i64>| 0 <= range.start && range.start < range.end && range.end <= start;
            let sound = document.own >= 1 && document.shared.iter().all(earlier);
            start = start.saturating_add(document.own);
            sound
        });
        sound && start == tokens
    }

    /// From a list that [`Documents::describe`] accepts.
    pub fn new(list: Vec<Document>, device: Device) -> Result<Self> {
        let before: Vec<i64> = list.iter().map(Document::before).collect();
        let own = list.iter().map(|document| document.own).collect();
        let (rows, spread, laid) = (Vec::new(), None, Mutex::default());
        let mut documents = Self { list, before, own, rows, spread, device, laid };
        if documents.before.iter().any(|&before| before > 0) {
            let (mut start, mut places) = (0, Vec::new());
            for document in &documents.list {
                documents.rows.extend(document.shared.iter().cloned().flatten());
                places.extend((0..document.own).map(|place| documents.rows.len() as i64 + place));
                documents.rows.extend(start..start + document.own);
                start += document.own;
            }
            documents.spread = Some(Spread {
                rows: ops::integers(&documents.rows, device)?,
                own: ops::integers(&places, device)?,
            });
        }
        Ok(documents)
    }

    /// The same documents after `count` new tokens that come first and that all of them begin with. They
    /// belong to the first document.
    pub fn behind(&self, count: i64, device: Device) -> Result<Self> {
        let moved = |range: &Range<i64>| range.start + count..range.end + count;
        let behind = |(index, document): (usize, &Document)| match index {
            0 => Document { shared: Vec::new(), own: document.own + count },
            _ => Document {
                shared: std::iter::once(0..count).chain(document.shared.iter().map(moved)).collect(),
                own: document.own,
            },
        };
        Self::new(self.list.iter().enumerate().map(behind).collect(), device)
    }

    /// Length of each document, with shared tokens.
    pub fn lengths(&self) -> Vec<i64> {
        self.before.iter().zip(&self.own).map(|(before, own)| before + own).collect()
    }

    /// Length of the longest document.
    pub fn longest(&self) -> i64 {
        self.before.iter().zip(&self.own).map(|(before, own)| before + own).max().unwrap_or_default()
    }

    /// `None` if no tokens are shared.
    pub fn spread(&self) -> Option<&Spread> {
        self.spread.as_ref()
    }

    /// Attention by CUDA's flash kernel, of queries over keys and values of which the first `after` rows are seen by all
    /// documents; arguments and result as of [`csrc::flash_attention`].
    pub fn flash_attention(
        &self,
        [query, key, value]: [&Tensor; 3],
        after: i64,
        window: Option<i64>,
        scale: f64,
    ) -> Result<Tensor> {
        let mut laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        let laid = match laid.take() {
            Some(found) if found.after == after => laid.insert(found),
            _ => laid.insert(self.seen_after(after, |seen| Laid::new(after, seen, self.device))?),
        };
        match &laid.rows {
            None => csrc::flash_attention(query, key, value, &laid.lengths, window, scale),
            Some(rows) => {
                let (key, value) = (ops::gather(key, rows)?, ops::gather(value, rows)?);
                csrc::flash_attention(query, &key, &value, &laid.lengths, window, scale)
            }
        }
    }

    /// Calls `f` with the documents in the form that [`csrc::attention`] takes, after `count` rows of keys
    /// that all of them see.
    pub fn seen_after<T>(&self, count: i64, f: impl FnOnce(csrc::Seen) -> T) -> T {
        if count == 0 {
            return f(csrc::Seen { before: &self.before, own: &self.own, rows: &self.rows });
        }
        let (mut start, mut rows) = (count, Vec::new());
        for document in &self.list {
            rows.extend(0..count);
            rows.extend(document.shared.iter().cloned().flatten().map(|row| row + count));
            rows.extend(start..start + document.own);
            start += document.own;
        }
        let before: Vec<i64> = self.before.iter().map(|before| before + count).collect();
        f(csrc::Seen { before: &before, own: &self.own, rows: &rows })
    }
}
