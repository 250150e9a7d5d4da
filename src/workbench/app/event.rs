//! Everything that can happen to the workbench, as one closed enum.

use std::path::PathBuf;

use luthier_core::config::Config;

use super::tag::Tag;
use crate::keymap::{Key, Keymap};
use crate::panes::PaneEvent;
use crate::theme::Theme;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The workbench opened; comes first and once.
    Started,
    Key(Key),
    /// Text was pasted, as the terminal sent it.
    Paste(String),
    /// The terminal has this size now.
    Resize(Size),
    /// The terminal window gained (true) or lost the person's attention.
    Attention(bool),
    /// The wheel turned: lines downwards, negative upwards.
    Wheel(i16),
    /// The deadline has passed; see [`App::deadline`](super::App::deadline).
    Deadline,
    /// The process received a signal to end.
    Signal(Signal),
    /// The process was stopped and continued; the screen may have been overwritten.
    Resumed,
    /// `luthier.toml` was read again: the settings, or the text of all its problems.
    Config(Box<Result<Config, String>>),
    /// A theme was read, with what was wrong in its file.
    Theme(Box<Theme>, Vec<String>),
    /// The themes there are to choose from.
    ThemeNames(Vec<String>),
    /// The person's keymap was read again, with what was wrong in it.
    Keymap(Box<Keymap>, Vec<String>),
    /// What the machine does, in one line for the header.
    Device(String),
    /// Background work failed because of a bug in Luthier.
    Fault(String),
    /// The external editor closed the file; an error says why it could not be run.
    EditorClosed(PathBuf, Result<(), String>),
    /// The performer of a pane answers.
    Pane(Tag, PaneEvent),
}

/// Columns and rows of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
    /// SIGHUP: the terminal is gone.
    Hangup,
}
