//! The commands of the sweep pane and their default keys.

use crate::command::Entry;
use crate::keymap::KeyContext;
use crate::panes::PaneId;

const HERE: KeyContext = KeyContext::Pane(PaneId::Sweep);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweepCommand {
    /// Queue the trials of a sweep file.
    New,
    /// Queue one run with some settings changed.
    Add,
    /// Earlier in the queue.
    MoveUp,
    /// Later in the queue.
    MoveDown,
    /// To the front of the queue.
    MoveFirst,
    /// Keep a waiting trial from starting, or let it.
    Hold,
    /// Cancel a trial and stop its run.
    Cancel,
    /// Queue a trial that is over once more.
    Retry,
    /// Queue one run that begins with the selected trial's settings.
    Clone,
    /// Write the best trial's settings into `luthier.toml`.
    Promote,
    /// Order by result or by queue position.
    Order,
}

/// The pane's part of the command table.
pub const COMMANDS: &[Entry<SweepCommand>] = &[
    Entry {
        command: SweepCommand::New,
        name: "sweep.new",
        label: "new sweep",
        doc: "Queue the trials of a sweep file",
        keys: &[(HERE, &["n"])],
    },
    Entry {
        command: SweepCommand::Add,
        name: "sweep.add",
        label: "add",
        doc: "Queue one run with some settings changed",
        keys: &[(HERE, &["a"])],
    },
    Entry {
        command: SweepCommand::MoveDown,
        name: "sweep.move-down",
        label: "later",
        doc: "Let the trial start later",
        keys: &[(HERE, &["J"])],
    },
    Entry {
        command: SweepCommand::MoveUp,
        name: "sweep.move-up",
        label: "earlier",
        doc: "Let the trial start earlier",
        keys: &[(HERE, &["K"])],
    },
    Entry {
        command: SweepCommand::MoveFirst,
        name: "sweep.move-first",
        label: "next",
        doc: "Let the trial start next",
        keys: &[(HERE, &["t"])],
    },
    Entry {
        command: SweepCommand::Hold,
        name: "sweep.hold",
        label: "hold",
        doc: "Keep the trial from starting, or let it start again",
        keys: &[(HERE, &["h"])],
    },
    Entry {
        command: SweepCommand::Cancel,
        name: "sweep.cancel",
        label: "cancel",
        doc: "Cancel the trial; a running one saves and stops",
        keys: &[(HERE, &["x"])],
    },
    Entry {
        command: SweepCommand::Retry,
        name: "sweep.retry",
        label: "retry",
        doc: "Queue an ended trial again",
        keys: &[(HERE, &["r"])],
    },
    Entry {
        command: SweepCommand::Clone,
        name: "sweep.clone",
        label: "clone",
        doc: "Queue one run, starting from this trial's settings",
        keys: &[(HERE, &["C"])],
    },
    Entry {
        command: SweepCommand::Promote,
        name: "sweep.promote",
        label: "promote best",
        doc: "Write the best trial's settings into luthier.toml",
        keys: &[(HERE, &["P"])],
    },
    Entry {
        command: SweepCommand::Order,
        name: "sweep.order",
        label: "order",
        doc: "Order the trials by result or by queue position",
        keys: &[(HERE, &["o"])],
    },
];
