//! The commands of the train pane and their default keys.

use crate::command::Entry;
use crate::keymap::KeyContext;
use crate::panes::PaneId;

const HERE: KeyContext = KeyContext::Pane(PaneId::Train);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrainCommand {
    /// Plan a run with the settings of the project and start it after a look.
    New,
    /// As [`TrainCommand::New`], with settings put over the file's.
    NewWith,
    /// Pause the run, or resume it.
    Pause,
    /// Go on: after a pause, or from the newest checkpoint.
    Resume,
    Checkpoint,
    Stop,
    /// Change a setting of the run.
    Edit,
    /// Undo the newest edit.
    Undo,
    Evaluate,
    /// Keep the run's curve on the chart with others.
    Overlay,
    /// Compare the run's settings with the project's.
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
pub const COMMANDS: &[Entry<TrainCommand>] = &[
    Entry {
        command: TrainCommand::New,
        name: "train.new",
        label: "new run",
        doc: "Plan a run with the project's settings, and start it after a confirmation",
        keys: &[(HERE, &["n"])],
    },
    Entry {
        command: TrainCommand::NewWith,
        name: "train.new-with",
        label: "new run with",
        doc: "Plan a run with some settings changed for this run only",
        keys: &[(HERE, &["N"])],
    },
    Entry {
        command: TrainCommand::Pause,
        name: "train.pause",
        label: "pause",
        doc: "Pause the run between two steps, or resume it",
        keys: &[(HERE, &["p"])],
    },
    Entry {
        command: TrainCommand::Resume,
        name: "train.resume",
        label: "resume",
        doc: "Resume the run after a pause, or from its newest checkpoint",
        keys: &[(HERE, &["r"])],
    },
    Entry {
        command: TrainCommand::Checkpoint,
        name: "train.checkpoint",
        label: "checkpoint",
        doc: "Write a checkpoint after the current step",
        keys: &[(HERE, &["c"])],
    },
    Entry {
        command: TrainCommand::Stop,
        name: "train.stop",
        label: "stop",
        doc: "End the run: saved, after one more evaluation, or at once",
        keys: &[(HERE, &["s"])],
    },
    Entry {
        command: TrainCommand::Edit,
        name: "train.edit",
        label: "edit",
        doc: "Change a setting of the run from its next step on",
        keys: &[(HERE, &["e"])],
    },
    Entry {
        command: TrainCommand::Undo,
        name: "train.undo",
        label: "undo",
        doc: "Undo the newest edit of the run",
        keys: &[(HERE, &["u"])],
    },
    Entry {
        command: TrainCommand::Evaluate,
        name: "train.evaluate",
        label: "evaluate",
        doc: "Evaluate on the held-out examples after the current step",
        keys: &[(HERE, &["E"])],
    },
    Entry {
        command: TrainCommand::Overlay,
        name: "train.overlay",
        label: "overlay",
        doc: "Keep the run's curve on the chart with others, or remove it",
        keys: &[(HERE, &["o"])],
    },
    Entry {
        command: TrainCommand::Diff,
        name: "train.diff",
        label: "diff",
        doc: "Show how the run's settings differ from the project's",
        keys: &[(HERE, &["d"])],
    },
    Entry {
        command: TrainCommand::Log,
        name: "train.log",
        label: "log",
        doc: "Show what the engine printed, or the charts again",
        keys: &[(HERE, &["l"])],
    },
    Entry {
        command: TrainCommand::Metric,
        name: "train.metric",
        label: "metric",
        doc: "Show the next metric on the large chart",
        keys: &[(HERE, &["m"])],
    },
    Entry {
        command: TrainCommand::Sample,
        name: "train.sample",
        label: "sample",
        doc: "Show the samples of the next prompt",
        keys: &[(HERE, &["S"])],
    },
    Entry {
        command: TrainCommand::Review,
        name: "train.review",
        label: "review",
        doc: "Compare the run with the base model in the review pane",
        keys: &[(HERE, &["a"])],
    },
];
