//! What can go wrong with objectives, suites and verdicts, in words for the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::text::clean_line;

/// What can go wrong with objectives, suites and verdicts.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The file system refused something.
    #[error("cannot {doing} `{}`: {source}", shown(path))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The schema of a `json` objective cannot be used.
    #[error("objective.schema: `{}` cannot be used: {reason}", shown(path))]
    Schema {
        /// The schema file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A key of `[objective]` is missing or wrong.
    #[error("{key}: {reason}")]
    Objective {
        /// Dotted key.
        key: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Rows of a suite cannot be read.
    #[error("{}", lines(path, problems))]
    Suite {
        /// The suite file.
        path: PathBuf,
        /// Line (from 1) and what is wrong with it; line 0 is the file as a whole.
        problems: Vec<(usize, String)>,
    },
    /// A file to be written is there already, or cannot be replaced.
    #[error("{0}")]
    Export(String),
}

/// Problems written out at most.
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

/// Attaches what was tried to an IO error.
pub(super) fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> EvalError + 'a {
    move |source| EvalError::Io { doing, path: path.to_owned(), source }
}
