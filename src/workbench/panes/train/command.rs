//! The commands of the train pane and their default keys.

use crate::command::{Command as Any, Entry};
use crate::keymap::KeyContext::Train;

/// A command of the train pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Plan a run with the settings of the project and start it after a look.
    New,
    /// As [`Command::New`], with settings put over the file's.
    NewWith,
    /// Hold still, or go on.
    Pause,
    /// Go on: after a pause, or from the newest checkpoint.
    Resume,
    /// Write a checkpoint now.
    Checkpoint,
    /// End the run.
    Stop,
    /// Change a setting of the run.
    Edit,
    /// Take the newest edit back.
    Undo,
    /// Evaluate now.
    Evaluate,
    /// Keep the run's curves on the chart beside others.
    Overlay,
    /// What this run's settings change over another's.
    Diff,
    /// Show the log, or the charts again.
    Log,
    /// Next metric on the large chart.
    Metric,
    /// Next prompt of the samples.
    Sample,
    /// Compare the run's result with the base model.
    Review,
}

/// The pane's part of the command table.
pub static COMMANDS: &[Entry] = &[
    Entry {
        command: Any::Train(Command::New),
        name: "train.new",
        label: "new run",
        doc: "Plan a run with the project's settings and start it after a look",
        keys: &[(Train, &["n"])],
    },
    Entry {
        command: Any::Train(Command::NewWith),
        name: "train.new-with",
        label: "new run with",
        doc: "Plan a run with some settings changed for it alone",
        keys: &[(Train, &["N"])],
    },
    Entry {
        command: Any::Train(Command::Pause),
        name: "train.pause",
        label: "pause",
        doc: "Let the run hold still between two steps, or go on",
        keys: &[(Train, &["p"])],
    },
    Entry {
        command: Any::Train(Command::Resume),
        name: "train.resume",
        label: "resume",
        doc: "Let the run go on, after a pause or from its newest checkpoint",
        keys: &[(Train, &["r"])],
    },
    Entry {
        command: Any::Train(Command::Checkpoint),
        name: "train.checkpoint",
        label: "checkpoint",
        doc: "Write a checkpoint after the current step",
        keys: &[(Train, &["c"])],
    },
    Entry {
        command: Any::Train(Command::Stop),
        name: "train.stop",
        label: "stop",
        doc: "End the run: saved, after one more evaluation, or at once",
        keys: &[(Train, &["s"])],
    },
    Entry {
        command: Any::Train(Command::Edit),
        name: "train.edit",
        label: "edit",
        doc: "Change a setting of the run from its next step on",
        keys: &[(Train, &["e"])],
    },
    Entry {
        command: Any::Train(Command::Undo),
        name: "train.undo",
        label: "undo",
        doc: "Take the newest edit of the run back",
        keys: &[(Train, &["u"])],
    },
    Entry {
        command: Any::Train(Command::Evaluate),
        name: "train.evaluate",
        label: "evaluate",
        doc: "Evaluate on the held-out examples after the current step",
        keys: &[(Train, &["E"])],
    },
    Entry {
        command: Any::Train(Command::Overlay),
        name: "train.overlay",
        label: "overlay",
        doc: "Keep the run's curve on the chart beside others, or take it off",
        keys: &[(Train, &["o"])],
    },
    Entry {
        command: Any::Train(Command::Diff),
        name: "train.diff",
        label: "diff",
        doc: "Show which settings this run has that the project's file has not",
        keys: &[(Train, &["d"])],
    },
    Entry {
        command: Any::Train(Command::Log),
        name: "train.log",
        label: "log",
        doc: "Show what the engine printed, or the charts again",
        keys: &[(Train, &["l"])],
    },
    Entry {
        command: Any::Train(Command::Metric),
        name: "train.metric",
        label: "metric",
        doc: "Show the next metric on the large chart",
        keys: &[(Train, &["m"])],
    },
    Entry {
        command: Any::Train(Command::Sample),
        name: "train.sample",
        label: "sample",
        doc: "Show the samples of the next prompt",
        keys: &[(Train, &["S"])],
    },
    Entry {
        command: Any::Train(Command::Review),
        name: "train.review",
        label: "review",
        doc: "Compare the run with the base model in the review pane",
        keys: &[(Train, &["a"])],
    },
];
