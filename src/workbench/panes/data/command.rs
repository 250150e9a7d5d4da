//! The commands of the data pane and their default keys.

use crate::command::Entry;
use crate::keymap::KeyContext;
use crate::panes::PaneId;

const HERE: KeyContext = KeyContext::Pane(PaneId::Data);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataCommand {
    /// Conversation, text, tokens, in turn.
    Form,
    /// List only rows with one kind of problem, or of one split.
    Filter,
    /// Keep the row out of every run, or let it back in.
    Quarantine,
    /// Open the row's file at its line.
    Edit,
    /// Go to a random row.
    Random,
    /// Read and check everything again.
    Check,
    /// Plan a run with this data.
    NewRun,
}

/// The pane's part of the command table.
pub const COMMANDS: &[Entry<DataCommand>] = &[
    Entry {
        command: DataCommand::Form,
        name: "data.form",
        label: "view",
        doc: "Show the row as conversation, as text, or as tokens with the loss mask",
        keys: &[(HERE, &["tab", "t"])],
    },
    Entry {
        command: DataCommand::Filter,
        name: "data.filter",
        label: "filter",
        doc: "List only rows with one kind of problem, or of one split",
        keys: &[(HERE, &["f"])],
    },
    Entry {
        command: DataCommand::Quarantine,
        name: "data.quarantine",
        label: "quarantine",
        doc: "Exclude the row from all future runs, or include it again",
        keys: &[(HERE, &["x"])],
    },
    Entry {
        command: DataCommand::Edit,
        name: "data.edit",
        label: "edit",
        doc: "Open the row's file at its line in your editor",
        keys: &[(HERE, &["E"])],
    },
    Entry {
        command: DataCommand::Random,
        name: "data.random",
        label: "random",
        doc: "Go to a random row",
        keys: &[(HERE, &["r"])],
    },
    Entry {
        command: DataCommand::Check,
        name: "data.check",
        label: "check again",
        doc: "Read and check all rows again",
        keys: &[(HERE, &["c"])],
    },
    Entry {
        command: DataCommand::NewRun,
        name: "data.new-run",
        label: "new run",
        doc: "Plan a run with this data",
        keys: &[(HERE, &["N"])],
    },
];
