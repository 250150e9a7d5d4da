//! The commands of the data pane and their default keys.

use crate::command::Entry;
use crate::keymap::KeyContext;
use crate::panes::PaneId;

const HERE: KeyContext = KeyContext::Pane(PaneId::Data);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataCommand {
    /// Conversation, text, tokens, in turn.
    Form,
    /// The numbers of tokens beside their texts, or not.
    Ids,
    /// List only some of the rows.
    Filter,
    /// Another order of the list.
    Order,
    /// How often each value of a field occurs.
    Table,
    /// Which rows are held out.
    Split,
    /// All that the check found.
    Findings,
    /// The lengths of all rows.
    Lengths,
    /// The row beside the one that it is like.
    Compare,
    /// Mark the row, or remove its mark.
    Mark,
    /// Keep the marked rows, or the selected one, out of every run, or let them back in.
    Quarantine,
    /// As [`DataCommand::Quarantine`], of all listed rows.
    QuarantineListed,
    /// Edit the row; its file stays as it is.
    Edit,
    /// Let an edited row be as it is in its file.
    Undo,
    /// Open the row's file at its line.
    OpenFile,
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
        keys: &[(HERE, &["tab"])],
    },
    Entry {
        command: DataCommand::Ids,
        name: "data.ids",
        label: "ids",
        doc: "Show the number of each token beside its text, or not",
        keys: &[(HERE, &["i"])],
    },
    Entry {
        command: DataCommand::Filter,
        name: "data.filter",
        label: "filter",
        doc: "List only some rows: with one kind of problem, of one split, with a label, the longest",
        keys: &[(HERE, &["f"])],
    },
    Entry {
        command: DataCommand::Order,
        name: "data.sort",
        label: "sort",
        doc: "Sort the list by length, trained tokens or findings",
        keys: &[(HERE, &["s"])],
    },
    Entry {
        command: DataCommand::Table,
        name: "data.table",
        label: "table",
        doc: "Count the values of a field, and list the rows with one of them",
        keys: &[(HERE, &["t"])],
    },
    Entry {
        command: DataCommand::Split,
        name: "data.split",
        label: "split",
        doc: "Choose how many rows are held out, and see how many of their prompts are trained on",
        keys: &[(HERE, &["S"])],
    },
    Entry {
        command: DataCommand::Findings,
        name: "data.findings",
        label: "findings",
        doc: "Read all that the check found, and what can be done about it",
        keys: &[(HERE, &["p"])],
    },
    Entry {
        command: DataCommand::Lengths,
        name: "data.lengths",
        label: "lengths",
        doc: "Show how long the rows are, in tokens",
        keys: &[(HERE, &["h"])],
    },
    Entry {
        command: DataCommand::Compare,
        name: "data.compare",
        label: "compare",
        doc: "Show the row beside the one that it repeats or contradicts",
        keys: &[(HERE, &["="])],
    },
    Entry {
        command: DataCommand::Mark,
        name: "data.mark",
        label: "mark",
        doc: "Mark the row and go to the next, or remove its mark",
        keys: &[(HERE, &["m"])],
    },
    Entry {
        command: DataCommand::Quarantine,
        name: "data.quarantine",
        label: "quarantine",
        doc: "Exclude the marked rows, or this one, from all future runs, or include them again",
        keys: &[(HERE, &["x"])],
    },
    Entry {
        command: DataCommand::QuarantineListed,
        name: "data.quarantine-listed",
        label: "quarantine all",
        doc: "Exclude all listed rows from all future runs, or include them again",
        keys: &[(HERE, &["X"])],
    },
    Entry {
        command: DataCommand::Edit,
        name: "data.edit",
        label: "edit",
        doc: "Edit the row; its file stays as it is, and edits.jsonl has what replaces it",
        keys: &[(HERE, &["e"])],
    },
    Entry {
        command: DataCommand::Undo,
        name: "data.undo",
        label: "undo edit",
        doc: "Let the edited row be as it is in its file",
        keys: &[(HERE, &["u"])],
    },
    Entry {
        command: DataCommand::OpenFile,
        name: "data.open-file",
        label: "open file",
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
