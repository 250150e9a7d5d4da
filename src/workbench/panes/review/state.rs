//! What the review pane knows and shows.

use std::time::Duration;

use crate::app::Context;
use crate::command::Command;
use crate::keymap::KeyContext;

/// The state of the review pane.
#[derive(Debug, Default)]
pub struct State {}

/// The key contexts active now, nearest first; the global one is added by the shell.
pub fn contexts(_state: &State, _context: &Context) -> Vec<KeyContext> {
    vec![KeyContext::Review]
}

/// The commands worth a place in the footer now, most useful first.
pub fn hints(_state: &State, _context: &Context) -> Vec<Command> {
    Vec::new()
}

/// Why `command` cannot be done now, or nothing if it can.
pub fn unavailable(_state: &State, _context: &Context, _command: Command) -> Option<String> {
    None
}

/// What the right end of the header says instead of the machine's state.
pub fn status(_state: &State, _context: &Context) -> Option<String> {
    None
}

/// When the pane next wants `Input::Deadline`, in time since the workbench opened. Asked only while it is shown.
pub fn deadline(_state: &State, _context: &Context) -> Option<Duration> {
    None
}

/// What would be lost if the workbench were left now, a line each.
pub fn unsaved(_state: &State) -> Vec<String> {
    Vec::new()
}
