//! Keeps the error output of this process and of the libraries in it off the screen while the workbench
//! owns the terminal.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// The terminal's own error output, while it is redirected.
static ORIGINAL: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Redirects the error output to `log`.
pub(super) fn divert(log: &File) -> io::Result<()> {
    let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
    if original.is_none() {
        *original = Some(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?);
    }
    Ok(rustix::stdio::dup2_stderr(log)?)
}

/// Restores the error output. Does nothing if it was not redirected.
pub(super) fn restore() {
    let original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(original) = original {
        // There is nowhere to report a failure to.
        let _ = rustix::stdio::dup2_stderr(&original);
    }
}
