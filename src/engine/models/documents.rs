//! Documents among the tokens of a forward pass: which rows of keys and values each of them sees.

use std::ops::Range;

use tch::{Device, Tensor};

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
}

/// Indices that expand shared tokens for every document, and back.
pub(super) struct Spread {
    /// `[L]` int64: the row of every document's tokens.
    pub rows: Tensor,
    /// `[N]` int64: the index of each own token among those.
    pub own: Tensor,
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
        let mut documents = Self { list, before, own, rows: Vec::new(), spread: None };
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
