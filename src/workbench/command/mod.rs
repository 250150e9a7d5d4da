//! Every command once. Keys, palette, help, footer hints and documentation all derive from this table.

mod palette;
mod reference;
mod table;

pub use palette::{Match, rank};
pub use reference::reference;

use std::sync::LazyLock;

use crate::keymap::KeyContext;
use crate::panes::{self, PaneCommand, PaneId};

/// Something a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Of the workbench as a whole.
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
    /// Leave; runs go on.
    Quit,
    /// Stop what is being waited for, or leave.
    Interrupt,
    /// Keys of the focused pane.
    Help,
    /// All commands, searchable.
    Palette,
    /// Go to a pane.
    Show(PaneId),
    /// Go to the next pane.
    NextPane,
    /// Go to the pane before.
    PreviousPane,
    /// Go back to the pane shown last.
    LastPane,
    /// Give the terminal back to the shell for a while.
    Suspend,
    /// Draw everything again.
    Redraw,
    /// Messages so far.
    Messages,
    /// Choose a theme.
    Theme,
    /// Open `luthier.toml` in the editor.
    EditConfig,
}

/// Commands that every pane gives its own meaning; delivered to the focused pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewCommand {
    /// Back out of one thing and nothing more.
    Back,
    /// Begin a search or filter.
    Search,
    /// Next place found.
    SearchNext,
    /// Place found before.
    SearchPrevious,
    /// Read again from disk.
    Refresh,
    /// Focus what comes next.
    FocusNext,
    /// Focus what came before.
    FocusPrevious,
    /// Focus what stands left.
    FocusLeft,
    /// Focus what stands below.
    FocusDown,
    /// Focus what stands above.
    FocusUp,
    /// Focus what stands right.
    FocusRight,
    /// Copy the selection to the terminal's clipboard.
    Copy,
}

/// Movement in a list, table or long text; delivered to the focused pane or the open box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListCommand {
    /// One down.
    Down,
    /// One up.
    Up,
    /// To the first.
    First,
    /// To the last.
    Last,
    /// Half a page down.
    HalfDown,
    /// Half a page up.
    HalfUp,
    /// A page down.
    PageDown,
    /// A page up.
    PageUp,
    /// Towards the left: out of, or scroll.
    Left,
    /// Towards the right: into, or scroll.
    Right,
    /// Scroll sideways to the left.
    ScrollLeft,
    /// Scroll sideways to the right.
    ScrollRight,
    /// Open the selected.
    Open,
    /// Mark the selected.
    Mark,
}

/// Moving about in a chart; delivered to the focused pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChartCommand {
    /// Cursor one point to the left.
    Left,
    /// Cursor one point to the right.
    Right,
    /// Cursor a tenth of the width to the left.
    FarLeft,
    /// Cursor a tenth of the width to the right.
    FarRight,
    /// Cursor to the first point.
    First,
    /// Cursor to the last point.
    Last,
    /// Closer.
    ZoomIn,
    /// Further away.
    ZoomOut,
    /// All of it.
    ZoomReset,
    /// Logarithmic or linear.
    LogScale,
    /// What stands at the cursor.
    Open,
}

/// Editing of typed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputCommand {
    /// Done.
    Accept,
    /// Leave without.
    Cancel,
    /// A line break, where text may have several lines.
    Newline,
    /// Continue in the external editor.
    Editor,
    /// Complete the word.
    Complete,
    /// One character left.
    Left,
    /// One character right.
    Right,
    /// One word left.
    WordLeft,
    /// One word right.
    WordRight,
    /// Start of the line.
    Start,
    /// End of the line.
    End,
    /// A line up, or the entry before.
    Up,
    /// A line down, or the next entry.
    Down,
    /// Delete the character before the cursor.
    DeleteBack,
    /// Delete the character at the cursor.
    DeleteForward,
    /// Delete the word before the cursor.
    DeleteWord,
    /// Delete to the start of the line.
    DeleteToStart,
    /// Delete to the end of the line.
    DeleteToEnd,
    /// Put back what was deleted last.
    Yank,
}

/// Answers to a box that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModalCommand {
    /// Yes, do it.
    Yes,
    /// No, leave everything as it is.
    No,
}

/// All there is to know about a command but how it is done. A pane lists its commands by its own type `C`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<C = Command> {
    /// The command.
    pub command: C,
    /// Its name in keymaps and the palette: `quit`, `list.down`, `data.quarantine`.
    pub name: &'static str,
    /// The one or two words the footer shows after its key.
    pub label: &'static str,
    /// One line saying what it does, without full stop.
    pub doc: &'static str,
    /// Default keys, by the contexts they hold in; the first one is the one that hints teach.
    pub keys: &'static [(KeyContext, &'static [&'static str])],
}

impl<C: Copy + Into<Command>> Entry<C> {
    /// The entry as it stands in the table of all commands.
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
    /// The command's line in the table.
    pub fn entry(self) -> &'static Entry {
        table().find(|entry| entry.command == self).unwrap_or(&table::UNLISTED)
    }

    /// The command's name.
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
