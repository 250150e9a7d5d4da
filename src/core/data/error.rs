//! What can go wrong between a dataset file and a token sequence.

use std::fmt;
use std::path::PathBuf;

use super::Origin;

/// Row problems named in one error message; more are counted.
const SHOWN_PROBLEMS: usize = 10;

/// A dataset that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file that cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file whose kind or content is not what it should be as a whole.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// Rows that cannot be used, each with its place and reason.
    #[error("{}", join_problems(.0))]
    Rows(Vec<RowProblem>),
    /// A tokenizer that cannot be built or used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template that cannot be found, compiled or rendered.
    #[error("chat template {name}: {message}")]
    Template {
        /// Its name.
        name: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Settings that do not fit this data or model.
    #[error("{0}")]
    Settings(String),
    /// Whoever follows the progress broke the work off.
    #[error("the data check was cancelled")]
    Cancelled,
}

impl DataError {
    pub(crate) fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        DataError::Read { path: path.into(), source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        DataError::File { path: path.into(), message: message.into() }
    }

    pub(crate) fn template(name: impl Into<String>, message: impl Into<String>) -> Self {
        DataError::Template { name: name.into(), message: message.into() }
    }
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct RowProblem {
    /// What sort of problem.
    pub kind: RowProblemKind,
    /// Where the row stands.
    pub origin: Origin,
    /// [`super::Row::index`], once the row could be read.
    pub row: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

/// Sorts of [`RowProblem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowProblemKind {
    /// It does not parse or lacks what its format needs.
    Unreadable,
    /// The chat template refuses or mistreats it.
    Template,
    /// It cannot be tokenised.
    Tokenizer,
    /// The loss mask cannot be found without doubt.
    Mask,
    /// It is longer than `data.max_length` and `data.overflow` is `drop`.
    Dropped,
    /// It is longer than `data.max_length` and `data.overflow` is `error`.
    TooLong,
}

fn join_problems(problems: &[RowProblem]) -> impl fmt::Display {
    let mut text = match problems.len() {
        1 => String::from("1 row cannot be used"),
        count => format!("{count} rows cannot be used"),
    };
    for problem in problems.iter().take(SHOWN_PROBLEMS) {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    if problems.len() > SHOWN_PROBLEMS {
        text.push_str("\n  … and ");
        text.push_str(&(problems.len() - SHOWN_PROBLEMS).to_string());
        text.push_str(" more");
    }
    text
}
