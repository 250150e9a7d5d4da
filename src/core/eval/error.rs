//! Errors of objectives, suites and verdicts, written for the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::text::clean_line;

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("cannot {doing} `{}`: {source}", shown(path))]
    Io {
        /// The operation that failed: `read`, `write` …
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The schema of a `json` objective cannot be used.
    #[error("objective.schema: `{}` cannot be used: {reason}", shown(path))]
    Schema {
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A key of `[objective]` is missing or wrong.
    #[error("{key}: {reason}")]
    Objective {
        /// Dotted key.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Rows of a suite cannot be read.
    #[error("{}", lines(path, problems))]
    Suite {
        path: PathBuf,
        /// Line (from 1) and what is wrong with it. Line 0 stands for the whole file.
        problems: Vec<(usize, String)>,
    },
    /// A file to be written exists already or cannot be replaced.
    #[error("{0}")]
    Export(String),
}

/// Most problems listed in a message.
const SHOWN_PROBLEMS: usize = 20;

fn shown(path: &Path) -> String {
    clean_line(&path.display().to_string()).into_owned()
}

fn lines(path: &Path, problems: &[(usize, String)]) -> String {
    let file = shown(path);
    let mut text: Vec<_> = problems
        .iter()
        .take(SHOWN_PROBLEMS)
        .map(|(line, problem)| match line {
            0 => format!("{file}: {problem}"),
            line => format!("{file}:{line}: {problem}"),
        })
        .collect();
    if problems.len() > SHOWN_PROBLEMS {
        text.push(format!("{file}: and {} more", problems.len() - SHOWN_PROBLEMS));
    }
    text.join("\n")
}

/// Adds the operation and path to an IO error.
pub(super) fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> EvalError + 'a {
    move |source| EvalError::Io { doing, path: path.to_owned(), source }
}
