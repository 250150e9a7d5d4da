//! Verdicts as training data.

use std::path::Path;

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

use super::EvalError;
use super::verdict::Verdict;
use crate::data::Message;
use crate::runs::replace_file;

/// Two replies to one conversation, one better: a row of the `preference` format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreferencePair {
    /// The conversation that was answered.
    pub prompt: Vec<Message>,
    /// The better reply.
    pub chosen: String,
    /// The worse reply.
    pub rejected: String,
}

/// The pairs that verdicts imply: the better side over the worse one; and where a person wrote the reply
/// anew, that over each side's that differs from it. Equal replies make no pair.
pub fn preference_pairs(verdicts: &[Verdict]) -> Vec<PreferencePair> {
    let mut pairs = IndexSet::new();
    for verdict in verdicts {
        let mut add = |chosen: &str, rejected: &str| {
            let pair = PreferencePair {
                prompt: verdict.prompt.clone(),
                chosen: chosen.to_owned(),
                rejected: rejected.to_owned(),
            };
            if chosen.trim() != rejected.trim() {
                pairs.insert(pair);
            }
        };
        if let Some((better, worse)) = verdict.preferred() {
            add(&better.reply, &worse.reply);
        }
        if let Some(edited) = &verdict.edited {
            add(edited, &verdict.left.reply);
            add(edited, &verdict.right.reply);
        }
    }
    pairs.into_iter().collect()
}

/// The conversations with the replies that people wrote: rows of the `messages` format.
pub fn edited_examples(verdicts: &[Verdict]) -> Vec<Vec<Message>> {
    let with_reply = |verdict: &Verdict| {
        let reply = Message::new("assistant", verdict.edited.clone()?);
        Some(verdict.prompt.iter().cloned().chain([reply]).collect())
    };
    verdicts.iter().filter_map(with_reply).collect()
}

/// Writes the pairs of verdicts as JSON lines, replacing the file as a whole. Returns how many.
pub fn export_pairs(verdicts: &[Verdict], path: &Path) -> Result<usize, EvalError> {
    let pairs = preference_pairs(verdicts);
    let mut text = Vec::new();
    for pair in &pairs {
        serde_json::to_writer(&mut text, pair).map_err(|error| EvalError::Export(error.to_string()))?;
        text.push(b'\n');
    }
    replace_file(path, &text).map_err(|error| EvalError::Export(error.to_string()))?;
    Ok(pairs.len())
}
