//! The workbench's own log: a file, since the terminal is taken.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// Names what is logged, as in `LUTHIER_LOG=debug`.
const VARIABLE: &str = "LUTHIER_LOG";

/// Size at which a new log is started; one older log is kept.
const LARGE: u64 = 4 * 1024 * 1024;

/// A turn of the loop that takes longer is logged.
pub const SLOW_TURN: Duration = Duration::from_millis(100);

/// The log while the workbench runs; what is left to write is written when it is dropped.
#[derive(Debug)]
pub struct Log {
    /// The file, for error output.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    _guard: WorkerGuard,
}

/// Begins to log into the file at `path`. Where something logs already, that stays in force.
pub fn start(path: &Path) -> io::Result<Log> {
    let file = open(path)?;
    let (writer, guard) = tracing_appender::non_blocking(file.try_clone()?);
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn,luthier=info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // Its report of a line that could not be written panics if that cannot be written either.
    let subscriber = subscriber.log_internal_errors(false);
    // A subscriber set before writes to the error output, which leads into the same file.
    drop(subscriber.try_init());
    Ok(Log { file, path: path.to_owned(), _guard: guard })
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LARGE) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_large_log_begins_anew_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/luthier.log");
        open(&path).unwrap().set_len(LARGE + 1).unwrap();
        let file = open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(path.with_extension("log.1").exists());
    }
}
