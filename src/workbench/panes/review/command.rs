//! The commands of the review pane and their default keys.

use crate::command::Entry;
use crate::keymap::KeyContext;
use crate::panes::PaneId;

const HERE: KeyContext = KeyContext::Pane(PaneId::Review);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReviewCommand {
    /// Let both sides answer, or go to the next prompt after a verdict.
    Ask,
    /// The left answer is better.
    Left,
    /// The right answer is better.
    Right,
    Tie,
    /// Neither answer is acceptable.
    BothBad,
    /// Skip this prompt.
    Skip,
    /// Keep a note with the verdict.
    Note,
    Type,
    /// Choose which run or checkpoint is compared.
    Choose,
    /// Compare with the baseline, or with the base model again.
    Baseline,
    /// Let both answer the same prompt again.
    Again,
    /// Show scores, weights and seeds.
    Details,
    /// Make a training row of the better answer.
    Edit,
    /// Write preference pairs to a file.
    Export,
    /// Name the sides from the start, or hide them again.
    Names,
}

/// The pane's part of the command table.
pub const COMMANDS: &[Entry<ReviewCommand>] = &[
    Entry {
        command: ReviewCommand::Ask,
        name: "review.ask",
        label: "ask",
        doc: "Let both answer the prompt; after a verdict, the next one",
        keys: &[(HERE, &["enter"])],
    },
    Entry {
        command: ReviewCommand::Left,
        name: "review.left",
        label: "left",
        doc: "The left answer is better",
        keys: &[(HERE, &["left"])],
    },
    Entry {
        command: ReviewCommand::Right,
        name: "review.right",
        label: "right",
        doc: "The right answer is better",
        keys: &[(HERE, &["right"])],
    },
    Entry {
        command: ReviewCommand::Tie,
        name: "review.tie",
        label: "tie",
        doc: "Neither answer is better, and both are acceptable",
        keys: &[(HERE, &["="])],
    },
    Entry {
        command: ReviewCommand::BothBad,
        name: "review.both-bad",
        label: "both bad",
        doc: "Neither answer is acceptable",
        keys: &[(HERE, &["b"])],
    },
    Entry {
        command: ReviewCommand::Skip,
        name: "review.skip",
        label: "skip",
        doc: "Name the sides without judging",
        keys: &[(HERE, &["s"])],
    },
    Entry {
        command: ReviewCommand::Note,
        name: "review.note",
        label: "note",
        doc: "Write a note that is kept with the verdict",
        keys: &[(HERE, &["n"])],
    },
    Entry {
        command: ReviewCommand::Type,
        name: "review.type",
        label: "type prompt",
        doc: "Type a prompt that both answer",
        keys: &[(HERE, &["i"])],
    },
    Entry {
        command: ReviewCommand::Choose,
        name: "review.choose",
        label: "choose run",
        doc: "Choose the run, and its result or a checkpoint, to compare",
        keys: &[(HERE, &["r"])],
    },
    Entry {
        command: ReviewCommand::Baseline,
        name: "review.baseline",
        label: "baseline",
        doc: "Compare with the base model given review.baseline_system, or with the base model as it is",
        keys: &[(HERE, &["B"])],
    },
    Entry {
        command: ReviewCommand::Again,
        name: "review.again",
        label: "again",
        doc: "Let both answer this prompt again, with other seeds",
        keys: &[(HERE, &["a"])],
    },
    Entry {
        command: ReviewCommand::Details,
        name: "review.details",
        label: "details",
        doc: "Show scores, fingerprints of the weights and seeds of both sides",
        keys: &[(HERE, &["d"])],
    },
    Entry {
        command: ReviewCommand::Edit,
        name: "review.edit",
        label: "edit",
        doc: "Edit the better answer and add it to the training data",
        keys: &[(HERE, &["e"])],
    },
    Entry {
        command: ReviewCommand::Export,
        name: "review.export",
        label: "export",
        doc: "Write what the verdicts imply as preference pairs to a file",
        keys: &[(HERE, &["x"])],
    },
    Entry {
        command: ReviewCommand::Names,
        name: "review.names",
        label: "names",
        doc: "Name the sides from the start, or hide them until the verdict again",
        keys: &[(HERE, &["u"])],
    },
];
