//! Errors of sweeps and the queue, written for the user.

use std::io;
use std::path::PathBuf;

use crate::config::{ConfigError, Problems};
use crate::runs::RunError;
use crate::text::clean_line;

#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("cannot read `{}`: {source}", clean_line(&file.display().to_string()))]
    Read { file: PathBuf, source: io::Error },
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
        /// The error of SQLite.
        source: rusqlite::Error,
        remedy: &'static str,
    },
    /// The queue was written by a newer version of Luthier.
    #[error("the queue `{}` was written by a newer version of Luthier (format {found}, this one knows {known}); use that version",
        clean_line(&file.display().to_string()))]
    Newer {
        /// The database.
        file: PathBuf,
        /// The format number of the file.
        found: i64,
        /// The newest format number that this version knows.
        known: i64,
    },
    #[error("there is no trial {0}; `luthier queue list` shows all")]
    NoTrial(i64),
    /// The trial's state does not allow the action.
    #[error("{0}")]
    Refused(String),
    /// Another scheduler has the project's lock.
    #[error("the queue of this project is already in use by {holder}")]
    Busy {
        /// The process that holds the lock.
        holder: String,
    },
    /// A run could not be created or started.
    #[error(transparent)]
    Run(#[from] RunError),
}
