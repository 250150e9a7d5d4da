//! The commands of the review pane and their default keys.

use crate::command::{Command as Any, Entry};
use crate::keymap::KeyContext::Review;

/// A command of the review pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Let both answer, or go on after a verdict.
    Ask,
    /// The left answer is better.
    Left,
    /// The right answer is better.
    Right,
    /// Neither is better.
    Tie,
    /// Neither would do.
    BothBad,
    /// Not to be judged.
    Skip,
    /// Remember something with the verdict.
    Note,
    /// Type a prompt.
    Type,
    /// Choose whose answers are compared.
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
pub static COMMANDS: &[Entry] = &[
    Entry {
        command: Any::Review(Command::Ask),
        name: "review.ask",
        label: "ask",
        doc: "Let both answer the prompt; after a verdict, the next one",
        keys: &[(Review, &["enter"])],
    },
    Entry {
        command: Any::Review(Command::Left),
        name: "review.left",
        label: "left",
        doc: "The left answer is better",
        keys: &[(Review, &["left"])],
    },
    Entry {
        command: Any::Review(Command::Right),
        name: "review.right",
        label: "right",
        doc: "The right answer is better",
        keys: &[(Review, &["right"])],
    },
    Entry {
        command: Any::Review(Command::Tie),
        name: "review.tie",
        label: "tie",
        doc: "Neither answer is better, and they would do",
        keys: &[(Review, &["="])],
    },
    Entry {
        command: Any::Review(Command::BothBad),
        name: "review.both-bad",
        label: "both bad",
        doc: "Neither answer would do",
        keys: &[(Review, &["b"])],
    },
    Entry {
        command: Any::Review(Command::Skip),
        name: "review.skip",
        label: "skip",
        doc: "See who is who without a judgement",
        keys: &[(Review, &["s"])],
    },
    Entry {
        command: Any::Review(Command::Note),
        name: "review.note",
        label: "note",
        doc: "Write a note that is kept with the verdict",
        keys: &[(Review, &["n"])],
    },
    Entry {
        command: Any::Review(Command::Type),
        name: "review.type",
        label: "type prompt",
        doc: "Type a prompt that both answer",
        keys: &[(Review, &["i"])],
    },
    Entry {
        command: Any::Review(Command::Choose),
        name: "review.choose",
        label: "choose run",
        doc: "Choose the run, and its result or a checkpoint, to compare",
        keys: &[(Review, &["r"])],
    },
    Entry {
        command: Any::Review(Command::Baseline),
        name: "review.baseline",
        label: "baseline",
        doc: "Compare with the base model given review.baseline_system, or with the base model as it is",
        keys: &[(Review, &["B"])],
    },
    Entry {
        command: Any::Review(Command::Again),
        name: "review.again",
        label: "again",
        doc: "Let both answer this prompt again, with other seeds",
        keys: &[(Review, &["a"])],
    },
    Entry {
        command: Any::Review(Command::Details),
        name: "review.details",
        label: "details",
        doc: "Show scores, fingerprints of the weights and seeds of both sides",
        keys: &[(Review, &["d"])],
    },
    Entry {
        command: Any::Review(Command::Edit),
        name: "review.edit",
        label: "edit",
        doc: "Edit the better answer and add it to the training data",
        keys: &[(Review, &["e"])],
    },
    Entry {
        command: Any::Review(Command::Export),
        name: "review.export",
        label: "export",
        doc: "Write what the verdicts imply as preference pairs to a file",
        keys: &[(Review, &["x"])],
    },
    Entry {
        command: Any::Review(Command::Names),
        name: "review.names",
        label: "names",
        doc: "Name the sides from the start, or hide them until the verdict again",
        keys: &[(Review, &["u"])],
    },
];
