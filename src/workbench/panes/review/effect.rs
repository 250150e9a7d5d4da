//! What the review pane has done outside of its state, what comes back, and what it asks in boxes.

use std::path::PathBuf;
use std::sync::Arc;

use luthier_core::config::Config;
use luthier_core::data::Message;
use luthier_core::eval::{Contender, Score, SuitePrompt, Verdict, Verdicts};
use luthier_core::runs::serving::DoneReason;

use super::target::{Candidate, Target};
use crate::app::Slot;

/// Work for the performer in `effects/review.rs`.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Keep telling what there is to compare, whenever that changes.
    Watch,
    /// Stop that.
    Rest,
    /// Read the suite.
    Suite(PathBuf),
    /// Read the verdicts given so far.
    Verdicts,
    /// Let two answer a prompt side by side. Starts the engine where none serves.
    Ask(Box<Ask>),
    /// Give up the answers with this number.
    Cancel(u64),
    /// Append a verdict to the project's.
    Save(Box<Verdict>),
    /// Write the pairs that the project's verdicts imply to a new file.
    Export(PathBuf),
    /// Put a text into a file for the external editor.
    Draft(String),
    /// Read that file and remove it.
    ReadDraft(PathBuf),
    /// Append a conversation to a file of the training data.
    AddExample {
        /// The file, as the configuration names it.
        file: PathBuf,
        /// The conversation, ending with the reply to learn.
        messages: Vec<Message>,
    },
}

/// What two are asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Tells this asking from others; comes back with everything about it.
    pub id: u64,
    /// What is compared.
    pub target: Target,
    /// Who answers on the left and on the right.
    pub sides: [Contender; 2],
    /// The prompt.
    pub prompt: SuitePrompt,
    /// Seed of both sides' choices.
    pub seed: u64,
    /// The project's settings: sampling, baseline and objective.
    pub config: Arc<Config>,
}

/// What the performer answers.
#[derive(Debug)]
pub enum Event {
    /// What there is to compare, newest run first.
    Candidates(Result<Vec<Candidate>, String>),
    /// The suite's prompts.
    Suite(Result<Vec<SuitePrompt>, String>),
    /// The verdicts so far.
    Verdicts(Result<Verdicts, String>),
    /// What is being waited for before answers can come.
    Progress(u64, String),
    /// The prompt was handed over: the conversation as the tuned side is asked it.
    Began(u64, Vec<Message>),
    /// Pieces of the answers, each with its side: 0 left, 1 right.
    Pieces(u64, Vec<(usize, String)>),
    /// An answer is complete.
    Ended(u64, usize, Box<End>),
    /// There will be no more answers.
    Broken(u64, Broken),
    /// A verdict is on disk, or could not be written.
    Saved(Box<Verdict>, Result<(), String>),
    /// How many pairs were written, and where to.
    Exported(Result<(usize, PathBuf), String>),
    /// The file for the external editor is ready.
    DraftReady(Result<PathBuf, String>),
    /// What the external editor left.
    Draft(Result<String, String>),
    /// A row was added to this file.
    ExampleAdded(Result<PathBuf, String>),
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why.
    pub reason: DoneReason,
    /// Tokens generated.
    pub tokens: usize,
    /// Time from the request to the last token.
    pub seconds: f64,
    /// Fingerprint of the weights that answered, as the engine reports it.
    pub weights: String,
    /// Fingerprint that the weights asked for have, computed without the engine.
    pub expected: String,
    /// How the objective scores the reply; missing where there is nothing to check, an error where the
    /// objective cannot be used.
    pub score: Option<Result<Score, String>>,
}

impl End {
    /// Whether the weights that answered are those that were asked.
    pub fn is_proved(&self) -> bool {
        self.weights == self.expected
    }
}

/// Why answers end before their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Someone gave them up.
    Cancelled,
    /// Something failed; with what to do about it.
    Failed(String),
}

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Which of these to compare.
    Target(Vec<Target>),
    /// Which prompt of the suite.
    Prompt,
    /// The note for the comparison with this number.
    Note(u64),
    /// The file for the preference pairs.
    Export,
    /// Add the edited answer to the training data?
    AddExample(Box<Verdict>),
}

impl Effect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Watch | Self::Rest => Slot::Latest("watch"),
            Self::Suite(_) => Slot::Latest("suite"),
            Self::Verdicts => Slot::Latest("verdicts"),
            Self::Ask(_) => Slot::Latest("ask"),
            Self::Draft(_) | Self::ReadDraft(_) => Slot::Latest("draft"),
            Self::Cancel(_) | Self::Save(_) | Self::Export(_) | Self::AddExample { .. } => Slot::Each,
        }
    }
}
