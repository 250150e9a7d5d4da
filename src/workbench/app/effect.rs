//! Everything the workbench does outside of its state, as one closed enum. Performed by [`crate::effects`] and
//! [`crate::runtime`] only.

use std::path::PathBuf;

use super::tag::Tag;
use crate::panes::PaneEffect;

/// Something to be done outside of the state.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Something with the terminal, done by the loop that owns it.
    Terminal(TerminalEffect),
    /// Reading and watching settings, themes and keys.
    Settings(SettingsEffect),
    /// Work for the performer of a pane.
    Pane(Tag, PaneEffect),
}

/// What needs the terminal.
#[derive(Debug, PartialEq)]
pub enum TerminalEffect {
    Quit(Ending),
    /// Give the terminal to the shell until the process is continued.
    Suspend,
    /// Forget what is on the screen, so that the next frame writes all of it.
    Redraw,
    /// Put text on the terminal's clipboard.
    Copy(String),
    /// Open a file in the person's editor, at a line counted from 1.
    Edit(PathBuf, Option<usize>),
}

/// What concerns settings, themes and keys.
#[derive(Debug, PartialEq)]
pub enum SettingsEffect {
    /// Watch settings, themes, keymap and the machine from now on.
    Watch,
    /// Read a theme and use it.
    LoadTheme(String),
    ListThemes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The person left.
    Left,
    /// A signal ended it.
    Interrupted,
}
