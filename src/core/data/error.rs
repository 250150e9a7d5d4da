//! Errors between a dataset file and a token sequence.

use std::fmt;
use std::path::PathBuf;

use super::Origin;

/// Most row problems listed in one error message; the rest are counted.
const SHOWN_PROBLEMS: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// A file with the wrong type or content.
    #[error("{}: {message}", path.display())]
    File {
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
        name: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Settings that do not suit the data or the model.
    #[error("{0}")]
    Settings(String),
    /// The progress callback asked to cancel.
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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct RowProblem {
    pub kind: RowProblemKind,
    pub origin: Origin,
    /// [`super::Row::index`], if the row could be read.
    pub row: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

/// Kinds of [`RowProblem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowProblemKind {
    /// It does not parse, or its format needs a field that it lacks.
    Unreadable,
    /// The chat template refuses it or renders it wrongly.
    Template,
    /// It cannot be tokenised.
    Tokenizer,
    /// The loss mask is uncertain.
    Mask,
    /// It is longer than `data.max_length` and `data.overflow` is `drop`.
    Dropped,
    /// `data.max_length` cuts off all its reply.
    CutOff,
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
