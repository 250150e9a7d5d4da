//! Errors of runs, written for the user.

use std::io;
use std::path::{Path, PathBuf};

use super::reserve::awaited;
use crate::text::{clean, clean_line};

/// Errors of run directories, engine processes and their sockets.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot {doing} `{}`: {source}{}", shown(path), remedy(source))]
    Io {
        /// The operation that failed: `read`, `write` …
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// `status.json` cannot be parsed.
    #[error(
        "`{}` is not a status file: {source}; the run's journal `events.jsonl` is still the truth about it",
        shown(path)
    )]
    Status { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error("`{}` is not a run directory: it has neither a `config.toml` nor a journal", shown(.0))]
    NotARun(PathBuf),
    /// The run is no longer among the project's.
    #[error("run {} is gone: its folder is not in `runs`", clean_line(.0))]
    Gone(String),
    /// The run's settings cannot be read.
    #[error(
        "run {run} cannot be started: {trouble}; put the file back (if it is missing, `luthier run resume {run} --put-back` \
         writes it from the newest checkpoint), or start a new run"
    )]
    NoSettings {
        run: String,
        /// What is wrong with `config.toml`.
        trouble: String,
    },
    #[error("no run in this project begins with `{}`{}", clean_line(wanted), known_runs(known))]
    NotFound {
        /// The name that was searched for.
        wanted: String,
        /// The newest runs of the project.
        known: Vec<String>,
    },
    /// The name matches several runs.
    #[error("`{}` matches several runs: {}; write more of the name", clean_line(wanted), known.join(", "))]
    Ambiguous {
        /// The name that was searched for.
        wanted: String,
        /// The runs it matches.
        known: Vec<String>,
    },
    /// Another command was faster.
    #[error("run {run} was started by another command a moment ago, as {holder}")]
    StartedAlready {
        run: String,
        /// The engine's process.
        holder: String,
    },
    /// Another process has the run's lock.
    #[error(
        "run {run} is in use by {holder}; stop that process first, or watch the run with `luthier run show {run}`"
    )]
    Locked {
        run: String,
        /// The process that holds the lock.
        holder: String,
    },
    /// The engine is missing or cannot be started.
    #[error("{0}")]
    Engine(String),
    /// The control socket cannot be used.
    #[error("{0}")]
    Socket(String),
    /// The other end replied with an error.
    #[error("{}", clean_line(.0))]
    Answer(String),
    #[error("the run did not answer within {seconds} s; {}", why_silent(remark.as_deref()))]
    NoAnswer {
        seconds: u64,
        /// What is wrong with its process, in a few words.
        remark: Option<String>,
    },
    /// The run's state does not allow the request.
    #[error("{0}")]
    Refused(String),
}

impl RunError {
    /// What must come about before the disk takes what it refused: see [`awaited`].
    pub fn awaited(&self) -> Option<&'static str> {
        match self {
            Self::Io { source, .. } => awaited(source),
            _ => None,
        }
    }

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

fn why_silent(remark: Option<&str>) -> String {
    remark.map_or_else(
        || "it may be in a long step, and will handle the request afterwards".to_owned(),
        |remark| clean_line(remark).into_owned(),
    )
}

fn known_runs(known: &[String]) -> String {
    if known.is_empty() {
        "; it has no runs yet: start one with `luthier train`".to_owned()
    } else {
        format!("; the newest are {}", known.join(", "))
    }
}

/// Adds the operation and path to an IO error.
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
