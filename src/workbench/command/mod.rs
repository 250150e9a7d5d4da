//! The table of commands. Keys, palette, help, footer hints and documentation are generated from it.

mod palette;
mod reference;
mod table;

pub use palette::{Match, rank};
pub use reference::reference;

use std::sync::LazyLock;

use crate::keymap::KeyContext;
use crate::panes::{self, PaneCommand, PaneId};

/// A command that the user can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Of the whole workbench.
    App(AppCommand),
    /// Of whatever the focused pane shows.
    View(ViewCommand),
    /// In the focused list.
    List(ListCommand),
    /// On the focused chart.
    Chart(ChartCommand),
    /// While typing.
    Input(InputCommand),
    /// In a box that asks.
    Modal(ModalCommand),
    /// Of one pane.
    Pane(PaneCommand),
}

/// Commands of the workbench as a whole; no pane sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppCommand {
    /// Close the workbench; runs continue.
    Quit,
    /// Stop what is being waited for, or leave.
    Interrupt,
    /// Keys of the focused pane.
    Help,
    /// All commands, searchable.
    Palette,
    Show(PaneId),
    NextPane,
    PreviousPane,
    /// Go back to the pane shown last.
    LastPane,
    /// Suspend the workbench and return to the shell.
    Suspend,
    /// Redraw the screen.
    Redraw,
    Messages,
    Theme,
    EditConfig,
}

/// Commands that every pane gives its own meaning; delivered to the focused pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewCommand {
    /// Leave one level: a search, a detail, a filter.
    Back,
    /// Begin a search or filter.
    Search,
    /// Next place found.
    SearchNext,
    /// Place found before.
    SearchPrevious,
    /// Read again from disk.
    Refresh,
    /// Focus the next part.
    FocusNext,
    /// Focus the previous part.
    FocusPrevious,
    /// Focus the part to the left.
    FocusLeft,
    /// Focus the part below.
    FocusDown,
    /// Focus the part above.
    FocusUp,
    /// Focus the part to the right.
    FocusRight,
    /// Copy the selection to the terminal's clipboard.
    Copy,
}

/// Movement in a list, table or long text; delivered to the focused pane or the open box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListCommand {
    Down,
    Up,
    First,
    Last,
    HalfDown,
    HalfUp,
    PageDown,
    PageUp,
    /// Towards the left: out of, or scroll.
    Left,
    /// Towards the right: into, or scroll.
    Right,
    ScrollLeft,
    ScrollRight,
    Open,
    Mark,
}

/// Moving about in a chart; delivered to the focused pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChartCommand {
    Left,
    Right,
    /// Cursor a tenth of the width to the left.
    FarLeft,
    /// Cursor a tenth of the width to the right.
    FarRight,
    First,
    Last,
    /// Closer.
    ZoomIn,
    /// Further away.
    ZoomOut,
    /// All of it.
    ZoomReset,
    /// Logarithmic or linear.
    LogScale,
    /// Open what is at the cursor.
    Open,
}

/// Editing of typed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputCommand {
    Accept,
    Cancel,
    /// A line break, where text may have several lines.
    Newline,
    /// Continue in the external editor.
    Editor,
    Complete,
    Left,
    Right,
    WordLeft,
    WordRight,
    Start,
    End,
    /// A line up, or the entry before.
    Up,
    /// A line down, or the next entry.
    Down,
    /// Delete the character before the cursor.
    DeleteBack,
    /// Delete the character at the cursor.
    DeleteForward,
    DeleteWord,
    DeleteToStart,
    DeleteToEnd,
    /// Insert the text deleted last.
    Yank,
}

/// Answers to a box that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModalCommand {
    Yes,
    No,
}

/// Name, texts and keys of a command. A pane lists its commands by its own type `C`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<C = Command> {
    pub command: C,
    /// Its name in keymaps and the palette: `quit`, `list.down`, `data.quarantine`.
    pub name: &'static str,
    /// The one or two words the footer shows after its key.
    pub label: &'static str,
    /// One line saying what it does, without full stop.
    pub doc: &'static str,
    /// Default keys by context; hints show the first one.
    pub keys: &'static [(KeyContext, &'static [&'static str])],
}

impl<C: Copy + Into<Command>> Entry<C> {
    /// The entry in the form of the table of all commands.
    pub fn shared(&self) -> Entry {
        let Self { command, name, label, doc, keys } = *self;
        Entry { command: command.into(), name, label, doc, keys }
    }
}

static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let general = [table::APP, panes::SHOW, table::REST, table::SHARED].concat();
    [general, panes::commands()].concat()
});

/// All commands: the workbench's own, the shared ones, then each pane's.
pub fn table() -> impl Iterator<Item = &'static Entry> {
    TABLE.iter()
}

impl Command {
    pub fn entry(self) -> &'static Entry {
        table().find(|entry| entry.command == self).unwrap_or(&table::UNLISTED)
    }

    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The pane a command belongs to, if it belongs to one.
    pub fn pane(self) -> Option<PaneId> {
        match self {
            Self::Pane(command) => Some(command.pane()),
            Self::App(_)
            | Self::View(_)
            | Self::List(_)
            | Self::Chart(_)
            | Self::Input(_)
            | Self::Modal(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_commands_are_unique_and_documented() {
        let mut names = HashSet::new();
        let mut commands = HashSet::new();
        for entry in table() {
            assert!(names.insert(entry.name), "{} twice", entry.name);
            assert!(commands.insert(entry.command), "{} listed twice", entry.name);
            assert!(!entry.doc.is_empty() && !entry.doc.ends_with('.'), "doc of {}", entry.name);
            assert!(entry.label.chars().count() <= 14, "label of {} is too long for a footer", entry.name);
        }
    }
}
