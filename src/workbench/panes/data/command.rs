//! The commands of the data pane and their default keys.

use crate::command::{Command as Any, Entry};
use crate::keymap::KeyContext::Data;

/// A command of the data pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Conversation, text, tokens, in turn.
    Form,
    /// Only rows with one sort of problem, or of one split.
    Filter,
    /// Keep the row out of every run, or let it back in.
    Quarantine,
    /// Open the row's file at its line.
    Edit,
    /// A row by chance.
    Random,
    /// Read and check everything again.
    Check,
    /// Plan a run with these data.
    NewRun,
}

/// The pane's part of the command table.
pub static COMMANDS: &[Entry] = &[
    Entry {
        command: Any::Data(Command::Form),
        name: "data.form",
        label: "view",
        doc: "Show the row as conversation, as text, or as tokens with the loss mask",
        keys: &[(Data, &["tab", "t"])],
    },
    Entry {
        command: Any::Data(Command::Filter),
        name: "data.filter",
        label: "filter",
        doc: "List only rows with one sort of problem, or of one split",
        keys: &[(Data, &["f"])],
    },
    Entry {
        command: Any::Data(Command::Quarantine),
        name: "data.quarantine",
        label: "quarantine",
        doc: "Keep the row out of every run from now on, or let it back in",
        keys: &[(Data, &["x"])],
    },
    Entry {
        command: Any::Data(Command::Edit),
        name: "data.edit",
        label: "edit",
        doc: "Open the row's file at its line in your editor",
        keys: &[(Data, &["E"])],
    },
    Entry {
        command: Any::Data(Command::Random),
        name: "data.random",
        label: "random",
        doc: "Go to a row by chance",
        keys: &[(Data, &["r"])],
    },
    Entry {
        command: Any::Data(Command::Check),
        name: "data.check",
        label: "check again",
        doc: "Read and check all rows again",
        keys: &[(Data, &["c"])],
    },
    Entry {
        command: Any::Data(Command::NewRun),
        name: "data.new-run",
        label: "new run",
        doc: "Plan a run with these data",
        keys: &[(Data, &["N"])],
    },
];
