//! From dataset files to token sequences with a loss mask, and the order in which steps take them.
//!
//! `read` → `encode` → `prepare`: rows of any supported file become [`Example`]s, a chat template turns them into text, the
//! tokenizer into ids, and one place ([`encode`]) decides which tokens are trained on. [`StepOrder`] says which rows
//! belong to a step, as a pure function of seed, epoch and step.

mod checks;
mod encode;
mod error;
mod example;
mod mask;
mod near;
mod order;
mod prepare;
mod quarantine;
mod read;
mod report;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use encode::{conversation, encode, row_tokens};
pub use error::{DataError, RowProblem, RowProblemKind};
pub use example::{Example, Extras, Message, Origin, Row, Split};
pub use order::{MicroBatch, StepOrder};
pub(crate) use prepare::UsableRow;
pub use prepare::prepare;
pub use quarantine::Quarantine;
pub use read::{Dataset, read_dataset, read_rows};
pub(crate) use report::Findings;
pub use report::{DataProblem, HistogramBin, LengthStatistics, ProblemKind, Report, Severity};
pub use template::{Template, with_system};
pub use tokenizer::{DecodeStream, Encoding, Tokenizer};

use crate::config::{Config, Warmup};

/// One side of a row as the model sees it. Most rows have one; a preference pair has two, the chosen one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, first to last.
    pub ids: Vec<u32>,
    /// One per id: whether the token is a target of the loss. Never true for the first, which nothing precedes.
    pub trained: Vec<bool>,
    /// The text the tokens stand for, special tokens included.
    pub text: String,
    /// One per id: start and end in bytes of `text`. Tokens that share one character share its range.
    pub offsets: Vec<(usize, usize)>,
    /// Whether `data.max_length` cut tokens off.
    pub truncated: bool,
    /// Whether its answer is a good one, where the row says so.
    pub label: Option<bool>,
}

/// A row's tokens without its text: what training needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// [`Row::index`].
    pub row: usize,
    /// As in [`Encoded`]; never empty.
    pub sides: Vec<EncodedSide>,
}

/// One side of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSide {
    /// Token ids, first to last.
    pub ids: Vec<u32>,
    /// One per id: whether the token is a target of the loss.
    pub trained: Vec<bool>,
    /// Whether its answer is a good one, where the row says so.
    pub label: Option<bool>,
}

impl EncodedRow {
    /// The row with that [`Row::index`], from its sides.
    pub fn new(row: usize, sides: Vec<Encoded>) -> Self {
        let side = |side: Encoded| EncodedSide { ids: side.ids, trained: side.trained, label: side.label };
        EncodedRow { row, sides: sides.into_iter().map(side).collect() }
    }

    /// A row of one side without a label.
    pub fn of_one_side(row: usize, ids: Vec<u32>, trained: Vec<bool>) -> Self {
        EncodedRow { row, sides: vec![EncodedSide { ids, trained, label: None }] }
    }

    /// Tokens of all sides.
    pub fn tokens(&self) -> usize {
        self.sides.iter().map(|side| side.ids.len()).sum()
    }

    /// Those of them that are targets of the loss.
    pub fn trained_tokens(&self) -> usize {
        self.sides.iter().flat_map(|side| &side.trained).filter(|&&trained| trained).count()
    }

    /// Tokens of the longest side.
    pub fn longest(&self) -> usize {
        self.sides.iter().map(|side| side.ids.len()).max().unwrap_or(0)
    }
}

/// A token as the data pane and `data show` draw it. The texts of a row's pieces, joined, are the row's text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenPiece {
    /// Token id.
    pub id: u32,
    /// The part of the text this token adds; empty for the later ones of several tokens that share a character.
    pub text: String,
    /// Whether it is a target of the loss.
    pub trained: bool,
}

/// A dataset, tokenised and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Rows to train on, in reading order; [`StepOrder`] counts in here.
    pub train: Vec<EncodedRow>,
    /// Held-out rows, in reading order.
    pub eval: Vec<EncodedRow>,
    /// The pre-flight.
    pub report: Report,
    /// 16 hex digits: equal for equal rows in equal order and equal split.
    pub data_hash: String,
}

/// What a forecast needs to know about a prepared dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataSummary {
    /// Tokens of each training row, all its sides counted.
    pub train_lengths: Vec<usize>,
    /// Tokens of all training rows: one epoch.
    pub train_tokens: u64,
    /// Those of them that are targets of the loss.
    pub trained_tokens: u64,
    /// Tokens of each held-out row, all its sides counted.
    pub eval_lengths: Vec<usize>,
}

impl Prepared {
    /// Refuses a configuration whose warm-up would outlast the run that these rows make.
    ///
    /// # Errors
    ///
    /// [`DataError::Settings`], with the numbers and what to set.
    pub fn check_warmup(&self, config: &Config) -> Result<(), DataError> {
        let train = &config.train;
        let Warmup::Steps(warmup) = train.warmup else { return Ok(()) };
        let steps = StepOrder::new(&self.summary().train_lengths, config).total_steps();
        // What is wrong with a dataset without rows is another matter, and train.max_steps is held against the warm-up
        // where the configuration is read.
        if steps == 0 || warmup <= steps || train.max_steps.is_some() {
            return Ok(());
        }
        Err(DataError::Settings(format!(
            "train.warmup = {warmup} steps would outlast the run, which ends after {steps} (train.epochs = {} over {} rows); \
             set train.warmup to fewer steps, or to a share of the run such as 0.03, or raise train.epochs",
            train.epochs,
            self.train.len()
        )))
    }

    /// Lengths and counts, for a forecast.
    pub fn summary(&self) -> DataSummary {
        let lengths = |rows: &[EncodedRow]| rows.iter().map(EncodedRow::tokens).collect::<Vec<_>>();
        let train_lengths = lengths(&self.train);
        DataSummary {
            train_tokens: train_lengths.iter().map(|&length| length as u64).sum(),
            trained_tokens: self.train.iter().map(|row| row.trained_tokens() as u64).sum(),
            train_lengths,
            eval_lengths: lengths(&self.eval),
        }
    }
}
