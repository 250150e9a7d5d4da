//! Signals that safe Rust cannot handle.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{checked, luthier_hold_signals, luthier_on_bus_error};
use crate::error::{EngineError, Result};

/// Delays signals to this thread and those that it starts, also in a program that replaces this one, or delivers them
/// again.
pub fn hold_signals(signals: &[c_int], hold: bool) -> Result<()> {
    // SAFETY: the shim reads `signals` during the call.
    let status = unsafe { luthier_hold_signals(signals.as_ptr(), signals.len(), c_int::from(hold)) };
    checked("hold_signals", status)
}

/// When a mapped file is cut, reading what is gone ends the process with SIGBUS. It then says `sentence` on standard error
/// and renames the file `prepared` to `published` first. May be called once.
pub fn on_bus_error(sentence: &str, prepared: &Path, published: &Path) -> Result<()> {
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| EngineError::Config("a path contains a zero byte".to_owned()))
    };
    let sentence = text(format!("{sentence}\n").as_bytes())?;
    let [prepared, published] = [prepared, published].map(|path| text(path.as_os_str().as_bytes()));
    let (prepared, published) = (prepared?, published?);
    // SAFETY: the shim copies the three texts, which end in a zero byte, during the call; its handler makes only calls
    // that are safe in one.
    let status = unsafe { luthier_on_bus_error(sentence.as_ptr(), prepared.as_ptr(), published.as_ptr()) };
    checked("on_bus_error", status)
}
