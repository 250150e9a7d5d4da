//! The commands of the sweep pane and their default keys.

use crate::command::{Command as Any, Entry};
use crate::keymap::KeyContext::Sweep;

/// A command of the sweep pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
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
    /// Take a trial out, stopping its run.
    Cancel,
    /// Queue a trial that is over once more.
    Retry,
    /// Queue one run that begins with the selected trial's settings.
    Clone,
    /// Write the best trial's settings into `luthier.toml`.
    Promote,
    /// Order by result or by turn.
    Order,
}

/// The pane's part of the command table.
pub static COMMANDS: &[Entry] = &[
    Entry {
        command: Any::Sweep(Command::New),
        name: "sweep.new",
        label: "new sweep",
        doc: "Queue the trials of a sweep file",
        keys: &[(Sweep, &["n"])],
    },
    Entry {
        command: Any::Sweep(Command::Add),
        name: "sweep.add",
        label: "add",
        doc: "Queue one run with some settings changed",
        keys: &[(Sweep, &["a"])],
    },
    Entry {
        command: Any::Sweep(Command::MoveDown),
        name: "sweep.move-down",
        label: "later",
        doc: "Let the trial start later",
        keys: &[(Sweep, &["J"])],
    },
    Entry {
        command: Any::Sweep(Command::MoveUp),
        name: "sweep.move-up",
        label: "earlier",
        doc: "Let the trial start earlier",
        keys: &[(Sweep, &["K"])],
    },
    Entry {
        command: Any::Sweep(Command::MoveFirst),
        name: "sweep.move-first",
        label: "next",
        doc: "Let the trial start next",
        keys: &[(Sweep, &["t"])],
    },
    Entry {
        command: Any::Sweep(Command::Hold),
        name: "sweep.hold",
        label: "hold",
        doc: "Keep the trial from starting, or let it start again",
        keys: &[(Sweep, &["h"])],
    },
    Entry {
        command: Any::Sweep(Command::Cancel),
        name: "sweep.cancel",
        label: "cancel",
        doc: "Take the trial out of the queue; its run saves and stops",
        keys: &[(Sweep, &["x"])],
    },
    Entry {
        command: Any::Sweep(Command::Retry),
        name: "sweep.retry",
        label: "retry",
        doc: "Queue a trial that is over once more",
        keys: &[(Sweep, &["r"])],
    },
    Entry {
        command: Any::Sweep(Command::Clone),
        name: "sweep.clone",
        label: "clone",
        doc: "Queue one run that begins with this trial's settings",
        keys: &[(Sweep, &["C"])],
    },
    Entry {
        command: Any::Sweep(Command::Promote),
        name: "sweep.promote",
        label: "promote best",
        doc: "Write the best trial's settings into luthier.toml",
        keys: &[(Sweep, &["P"])],
    },
    Entry {
        command: Any::Sweep(Command::Order),
        name: "sweep.order",
        label: "order",
        doc: "Order the trials by result or by turn",
        keys: &[(Sweep, &["o"])],
    },
];
