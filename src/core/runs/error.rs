//! What can go wrong with runs, in words for the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::text::{clean, clean_line};

/// What can go wrong with run directories, engine processes and their sockets.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refused something.
    #[error("cannot {doing} `{}`: {source}{}", shown(path), remedy(source))]
    Io {
        /// What was tried: `read`, `write` …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `status.json` is not what the engine writes.
    #[error(
        "`{}` is not a status file: {source}; the run's journal `events.jsonl` is still the truth about it",
        shown(path)
    )]
    Status {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The configuration of the run cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Not a run directory.
    #[error("`{}` is not a run directory: it has no `config.toml`", shown(.0))]
    NotARun(PathBuf),
    /// No run of that name.
    #[error("no run in this project begins with `{}`{}", clean_line(wanted), known_runs(known))]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// The newest runs there are.
        known: Vec<String>,
    },
    /// The name fits several runs.
    #[error("`{}` fits several runs: {}; write more of the name", clean_line(wanted), known.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The runs it fits.
        known: Vec<String>,
    },
    /// Another process works on the run.
    #[error(
        "run {run} is being worked on by {holder}; stop that one first, or attach to it with `luthier run show {run}`"
    )]
    Locked {
        /// The run's id.
        run: String,
        /// The process that holds the lock.
        holder: String,
    },
    /// There is no engine to start.
    #[error("{0}")]
    Engine(String),
    /// The control socket cannot be used.
    #[error("{0}")]
    Socket(String),
    /// The other end answered with an error.
    #[error("{}", clean_line(.0))]
    Answer(String),
    /// The other end did not answer in time.
    #[error(
        "the run did not answer within {seconds} s; it may be in the middle of a long step, and does what it was asked after it"
    )]
    NoAnswer {
        /// How long was waited.
        seconds: u64,
    },
    /// What was asked for is not possible in the run's state.
    #[error("{0}")]
    Refused(String),
}

impl RunError {
    /// The message with all its lines: the answer of a run may be a drawn problem, whose caret needs them.
    pub fn full_text(&self) -> String {
        match self {
            Self::Answer(answer) => clean(answer).into_owned(),
            other => other.to_string(),
        }
    }
}

pub(super) fn shown(path: &Path) -> String {
    clean_line(&path.display().to_string()).into_owned()
}

pub(super) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space and try again",
        io::ErrorKind::PermissionDenied => "; check who owns it and its permissions",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only",
        _ => "",
    }
}

fn known_runs(known: &[String]) -> String {
    if known.is_empty() {
        "; it has no runs yet: start one with `luthier train`".to_owned()
    } else {
        format!("; the newest are {}", known.join(", "))
    }
}

/// Attaches what was tried to an IO error.
pub(super) fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RunError + 'a {
    move |source| RunError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_lines_in_the_full_text() {
        let answer = RunError::Answer("error: a\n --> b\u{1b}".to_owned());
        assert_eq!(answer.full_text(), "error: a\n --> b");
    }
}
