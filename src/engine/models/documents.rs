//! Documents among the tokens of one forward: which rows of keys and values each of them sees.

use std::ops::Range;

use tch::{Device, Tensor};

use crate::csrc;
use crate::error::Result;
use crate::layers::Document;
use crate::ops;

/// Documents whose own tokens lie end to end; N of those in all. L: tokens of all documents together, each as often as it
/// is seen as one of theirs.
pub(super) struct Documents {
    list: Vec<Document>,
    /// Tokens of each before its own.
    before: Vec<i64>,
    /// Own tokens of each.
    own: Vec<i64>,
    /// `[L]`: the row of every token of every document; empty where those are all rows in order.
    rows: Vec<i64>,
    /// The same on the device, where there are any.
    spread: Option<Spread>,
}

/// How tokens that are computed once become tokens of every document, and back.
pub(super) struct Spread {
    /// `[L]` int64: the row of every token of every document.
    pub rows: Tensor,
    /// `[N]` int64: where among those each own token is.
    pub own: Tensor,
}

impl Documents {
    /// Documents that share nothing, of these lengths.
    pub fn alone(lengths: impl IntoIterator<Item = i64>, device: Device) -> Result<Self> {
        Self::new(lengths.into_iter().map(|own| Document { shared: Vec::new(), own }).collect(), device)
    }

    /// Whether they are a sound description of `tokens` rows: every document has tokens of its own, and shares only what
    /// comes before those.
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

    /// Of documents that [`Documents::describe`] finds sound.
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

    /// The same documents behind `count` new tokens, which come first and with which all of them begin: the first has them
    /// as its own.
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

    /// Tokens of each document, shared ones too.
    pub fn lengths(&self) -> Vec<i64> {
        self.before.iter().zip(&self.own).map(|(before, own)| before + own).collect()
    }

    /// Tokens of the longest.
    pub fn longest(&self) -> i64 {
        self.before.iter().zip(&self.own).map(|(before, own)| before + own).max().unwrap_or_default()
    }

    /// Set where some share tokens.
    pub fn spread(&self) -> Option<&Spread> {
        self.spread.as_ref()
    }

    /// Calls `f` with the documents as [`csrc::attention`] takes them, `count` rows of keys that all of them see first
    /// lying above the others.
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
