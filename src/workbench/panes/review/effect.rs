//! What the review pane has done outside of its state.

use std::path::PathBuf;
use std::sync::Arc;

use luthier_core::config::Config;
use luthier_core::data::Message;
use luthier_core::eval::{Contender, SuitePrompt, Verdict};

use super::target::Target;
use crate::app::Slot;

/// Work for the performer in `effects/review.rs`.
#[derive(Debug, PartialEq)]
pub enum ReviewEffect {
    /// Watch for what can be compared, and post each change.
    Watch,
    /// Stop watching.
    Rest,
    Suite(PathBuf),
    /// Read the verdicts so far.
    Verdicts,
    /// Let two sides answer a prompt. Starts the serving engine if none is running.
    Ask(Box<Ask>),
    /// Cancel the answers with this number.
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

/// A prompt for two sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The number of the comparison; comes back with every answer.
    pub id: u64,
    pub target: Target,
    /// Who answers on the left and on the right.
    pub sides: [Contender; 2],
    pub prompt: SuitePrompt,
    /// Sampling seed of both sides.
    pub seed: u64,
    /// The project's settings: sampling, baseline and objective.
    pub config: Arc<Config>,
}

impl ReviewEffect {
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
