//! From dataset files to token sequences with a loss mask, and the order in which steps use them.
//!
//! `read` → `encode` → `prepare`: rows of any supported file become [`Example`]s, a chat template turns them
//! into text, the tokenizer turns text into ids, and [`encode`] alone decides which tokens are trained on.
//! [`StepOrder`] says which rows belong to a step, as a pure function of seed, epoch and step.

mod alike;
#[cfg(test)]
mod case_tests;
mod checks;
mod edits;
mod encode;
mod error;
mod example;
mod kept;
mod mask;
mod message;
mod near;
mod order;
mod prepare;
mod presence;
mod quarantine;
mod read;
mod report;
mod roles;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;
mod write;

pub use alike::{pattern, pieces};
pub use edits::{Edits, draft, read_draft};
pub use encode::{conversation, encode, row_tokens, written_reply};
pub use error::{DataError, RowProblem, RowProblemKind};
pub use example::{Example, Extras, Origin, Row, Split};
pub use kept::KeptChecks;
pub use message::Message;
pub use order::{MicroBatch, StepOrder};
pub(crate) use prepare::UsableRow;
pub use prepare::{check, check_dataset, prepare};
pub use quarantine::Quarantine;
pub(crate) use read::extras_of;
pub use read::{
    BY_PROMPT, BY_ROW, Dataset, PlacedHead, ReadProgress, RowHead, Rows, SplitSizes, UnusedField,
    read_dataset, read_dataset_heard, read_dataset_without, read_rows, split_sizes,
};
pub(crate) use report::Findings;
pub use report::{
    DataProblem, FindingRows, HistogramBin, KindRows, LengthStatistics, ProblemKind, Report, RoleLengths,
    Severity,
};
pub use template::{Template, with_system};
pub use tokenizer::{DecodeStream, Encoding, Tokenizer};
pub use write::{Form, Written, written};

use crate::config::{Config, Warmup};

/// One tokenised side of a row. Most rows have one; a preference pair has two, the chosen one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// For each id, whether it is a target of the loss. Never true for the first, which nothing precedes.
    pub trained: Vec<bool>,
    /// The text of the tokens, including special tokens.
    pub text: String,
    /// For each id, its start and end in bytes of `text`. Tokens that share a character have the same range.
    pub offsets: Vec<(usize, usize)>,
    /// The place in `text` of a token that begins before a trained part and ends in it.
    pub across: Option<(usize, usize)>,
    /// Whether it was truncated to `data.max_length`.
    pub truncated: bool,
    /// Whether its answer is good, if the row has a label.
    pub label: Option<bool>,
}

/// A row's tokens without its text, for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// [`Row::index`].
    pub row: usize,
    /// As in [`Encoded`]; never empty.
    pub sides: Vec<EncodedSide>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSide {
    pub ids: Vec<u32>,
    /// For each id, whether it is a target of the loss.
    pub trained: Vec<bool>,
    /// Whether its answer is good, if the row has a label.
    pub label: Option<bool>,
}

impl EncodedRow {
    pub fn new(row: usize, sides: Vec<Encoded>) -> Self {
        let side = |side: Encoded| EncodedSide { ids: side.ids, trained: side.trained, label: side.label };
        EncodedRow { row, sides: sides.into_iter().map(side).collect() }
    }

    /// A row with one side and no label.
    pub fn of_one_side(row: usize, ids: Vec<u32>, trained: Vec<bool>) -> Self {
        EncodedRow { row, sides: vec![EncodedSide { ids, trained, label: None }] }
    }

    /// Number of tokens in all sides.
    pub fn tokens(&self) -> usize {
        self.sides.iter().map(|side| side.ids.len()).sum()
    }

    /// Number of tokens in all sides that are targets of the loss.
    pub fn trained_tokens(&self) -> usize {
        self.sides.iter().flat_map(|side| &side.trained).filter(|&&trained| trained).count()
    }

    /// Number of tokens in the longest side.
    pub fn longest(&self) -> usize {
        self.sides.iter().map(|side| side.ids.len()).max().unwrap_or(0)
    }
}

/// A token as shown by the data pane and `data show`. The texts of a row's pieces, joined, are the row's
/// text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenPiece {
    pub id: u32,
    /// The part of the text that this token adds. If several tokens share a character, all but the first are
    /// empty.
    pub text: String,
    /// Whether it is a target of the loss.
    pub trained: bool,
}

/// A dataset for training.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Training rows in reading order; [`StepOrder`] returns indices into this list.
    pub train: Vec<EncodedRow>,
    /// Held-out rows, in reading order.
    pub eval: Vec<EncodedRow>,
    pub checked: Checked,
}

/// What the check of a dataset found.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The pre-flight report.
    pub report: Report,
    /// 16 hex digits; equal for equal rows in the same order with the same split.
    pub data_hash: String,
    /// The sizes of the training rows in reading order, as [`Prepared::train`].
    pub train: Vec<ExampleSize>,
    /// The sizes of the held-out rows in reading order.
    pub eval: Vec<ExampleSize>,
}

/// The size of an [`EncodedRow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleSize {
    /// [`Row::index`].
    pub row: usize,
    /// Tokens in all its sides.
    pub tokens: usize,
    /// Those of them that are targets of the loss.
    pub trained: usize,
    /// Tokens of its longest side.
    pub longest: usize,
}

impl ExampleSize {
    fn of(row: &EncodedRow) -> Self {
        ExampleSize {
            row: row.row,
            tokens: row.tokens(),
            trained: row.trained_tokens(),
            longest: row.longest(),
        }
    }
}

/// The sizes of a prepared dataset, for a forecast.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataSummary {
    /// Tokens of each training row, in all its sides.
    pub train_lengths: Vec<usize>,
    /// Tokens of all training rows: one epoch.
    pub train_tokens: u64,
    /// Tokens of all training rows that are targets of the loss.
    pub trained_tokens: u64,
    /// Tokens of each held-out row, in all its sides.
    pub eval_lengths: Vec<usize>,
}

impl Checked {
    /// Rejects a configuration whose warm-up would be longer than the run.
    ///
    /// # Errors
    ///
    /// [`DataError::Settings`], with the numbers and what to set.
    pub fn check_warmup(&self, config: &Config) -> Result<(), DataError> {
        let train = &config.train;
        let Warmup::Steps(warmup) = train.warmup else { return Ok(()) };
        let steps = self.order(config).total_steps();
        // A dataset without rows is reported elsewhere. `train.max_steps` is compared with the warm-up when
        // the configuration is read.
        if steps == 0 || warmup <= steps || train.max_steps.is_some() {
            return Ok(());
        }
        Err(DataError::Settings(format!(
            "train.warmup = {warmup} steps, but the run ends after {steps} (train.epochs = {} over {} rows); set \
             train.warmup to fewer steps, or to a share of the run such as 0.03, or raise train.epochs",
            train.epochs,
            self.train.len()
        )))
    }

    /// Which training rows each step of a run takes.
    pub fn order(&self, config: &Config) -> StepOrder {
        StepOrder::new(&self.train.iter().map(|row| row.tokens).collect::<Vec<_>>(), config)
    }

    pub fn summary(&self) -> DataSummary {
        let lengths = |rows: &[ExampleSize]| rows.iter().map(|row| row.tokens).collect::<Vec<_>>();
        let train_lengths = lengths(&self.train);
        DataSummary {
            train_tokens: train_lengths.iter().map(|&length| length as u64).sum(),
            trained_tokens: self.train.iter().map(|row| row.trained as u64).sum(),
            train_lengths,
            eval_lengths: lengths(&self.eval),
        }
    }
}
