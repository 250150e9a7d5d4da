//! What reaches a pane.

use std::path::PathBuf;

use super::reaction::Link;
use crate::command::Command;
use crate::keymap::Key;

/// Something for a pane to react to, besides the answers of its performer and the replies to its questions.
#[derive(Clone, Debug)]
pub enum Input {
    /// The workbench opened; comes once, to every pane.
    Started,
    /// The pane came on screen.
    Shown,
    /// The pane left the screen.
    Hidden,
    /// A command of the pane, or a shared one while the pane has the focus.
    Command(Command),
    /// A key that no binding took; only in the input context.
    Key(Key),
    /// Pasted text, cleaned.
    Paste(String),
    /// The editor that the pane opened closed this file.
    Edited(PathBuf),
    /// Another pane wants this shown.
    Link(Link),
    /// The settings changed; the context has the new ones, or the problem.
    ConfigChanged,
    /// The time the pane waited for has come.
    Deadline,
}
