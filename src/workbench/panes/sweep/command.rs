//! The commands of the sweep pane and their default keys.

use crate::command::Entry;

/// A command of the sweep pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {}

/// The pane's part of the command table.
pub static COMMANDS: &[Entry] = &[];
