//! What can go wrong with sweeps and the queue, in words for the user.

use std::io;
use std::path::PathBuf;

use crate::config::{ConfigError, Problems};
use crate::runs::RunError;
use crate::text::clean_line;

/// What can go wrong with sweeps and the queue.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", clean_line(&file.display().to_string()))]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The sweep file is wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The configuration that trials start from is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The queue cannot be used.
    #[error("the queue `{}` cannot be used: {source}; {remedy}", clean_line(&file.display().to_string()))]
    Queue {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The queue was written by a newer version.
    #[error("the queue `{}` was written by a newer version of Luthier (format {found}, this one knows {known}); use that version",
        clean_line(&file.display().to_string()))]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// There is no such trial.
    #[error("there is no trial {0}; `luthier queue list` shows all")]
    NoTrial(i64),
    /// What was asked for is not possible in the trial's state.
    #[error("{0}")]
    Refused(String),
    /// Another scheduler works on the project.
    #[error("the queue of this project is being worked on already, by {holder}")]
    Busy {
        /// The process that holds the lock.
        holder: String,
    },
    /// A run could not be made or started.
    #[error(transparent)]
    Run(#[from] RunError),
}
