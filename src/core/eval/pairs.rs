//! Verdicts as training data.

use std::path::Path;

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

use super::EvalError;
use super::verdict::Verdict;
use crate::data::Message;
use crate::runs::replace_file;

/// Two replies to one conversation, one better than the other: a row of the `preference` format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreferencePair {
    /// The conversation up to the reply.
    pub prompt: Vec<Message>,
    pub chosen: String,
    pub rejected: String,
}

/// The pairs that follow from verdicts: the better side over the worse. If a person rewrote the reply, also
/// the rewritten reply over each side that differs from it. Equal replies make no pair.
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

/// Writes the pairs of verdicts as JSON lines and replaces the file atomically. Returns the number of pairs.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::verdict;
    use crate::eval::verdict::VerdictChoice;

    fn short(pairs: &[PreferencePair]) -> Vec<(&str, &str)> {
        pairs.iter().map(|pair| (pair.chosen.as_str(), pair.rejected.as_str())).collect()
    }

    #[test]
    fn verdicts_become_pairs() {
        let mut edited = verdict("c", "d", VerdictChoice::BothBad);
        edited.edited = Some("e".to_owned());
        let mut kept = verdict("f", "g", VerdictChoice::Left);
        kept.edited = Some("f ".to_owned());
        let verdicts = [
            verdict("a", "b", VerdictChoice::Left),
            verdict("a", "b", VerdictChoice::Left),
            verdict("a", "b", VerdictChoice::Tie),
            verdict("same", " same", VerdictChoice::Right),
            edited,
            kept,
        ];
        let pairs = preference_pairs(&verdicts);
        assert_eq!(short(&pairs), [("a", "b"), ("e", "c"), ("e", "d"), ("f", "g"), ("f ", "g")]);
        let examples = edited_examples(&verdicts);
        assert_eq!(examples.len(), 2);
        assert_eq!(examples[0], [Message::new("user", "hi"), Message::new("assistant", "e")]);
    }

    #[test]
    fn an_export_is_json_lines_and_replaces_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        std::fs::write(&path, "old").unwrap();
        let verdicts = [verdict("a\nb", "c", VerdictChoice::Left), verdict("a", "c", VerdictChoice::Right)];
        assert_eq!(export_pairs(&verdicts, &path).unwrap(), 2);
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<PreferencePair> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, preference_pairs(&verdicts));
        let error = export_pairs(&verdicts, Path::new("/nowhere/at/all.jsonl")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all.jsonl"), "{error}");
    }
}
