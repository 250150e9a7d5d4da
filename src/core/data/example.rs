//! Rows of a dataset, independent of their file format.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Message;

/// The content of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "the rows of a dataset have one form as a rule")]
pub enum Example {
    /// A conversation.
    Messages(Vec<Message>),
    PromptCompletion {
        prompt: String,
        completion: String,
    },
    /// Plain text.
    Text(String),
    /// Two answers to the same conversation, the first preferred.
    Preference {
        /// The conversation up to the answer. Empty if both sides are plain texts that include the prompt: it
        /// is then their common beginning ([`shared_beginning`]).
        prompt: Vec<Message>,
        /// The better answer.
        #[serde(serialize_with = "answer")]
        chosen: Message,
        /// The worse answer.
        #[serde(serialize_with = "answer")]
        rejected: Message,
    },
    /// Token ids and labels as in transformers: -100 is not trained; the loss shifts the labels.
    Tokens {
        input_ids: Vec<u32>,
        /// One per id: the id itself, or -100.
        labels: Vec<i64>,
    },
}

impl Example {
    /// The row as a conversation, if it is one: prompt and completion become user and assistant, and a
    /// preference pair ends with its preferred answer.
    pub fn messages(&self) -> Option<Vec<Message>> {
        match self {
            Example::Messages(messages) => Some(messages.clone()),
            Example::PromptCompletion { prompt, completion } => {
                Some(vec![Message::new("user", prompt), Message::new("assistant", completion)])
            }
            Example::Preference { prompt, chosen, .. } if !prompt.is_empty() => {
                let mut messages = prompt.clone();
                messages.push(chosen.clone());
                Some(messages)
            }
            Example::Preference { .. } | Example::Text(_) | Example::Tokens { .. } => None,
        }
    }

    /// Whether it is a conversation with more than one reply.
    pub(crate) fn has_several_replies(&self) -> bool {
        match self {
            Example::Messages(messages) => {
                messages.iter().filter(|message| message.is_assistant()).nth(1).is_some()
            }
            Example::Preference { prompt, .. } => prompt.iter().any(Message::is_assistant),
            Example::PromptCompletion { .. } | Example::Text(_) | Example::Tokens { .. } => false,
        }
    }

    /// Length of all its texts; of token ids, four bytes each.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Example::Tokens { input_ids, .. } => input_ids.len() * size_of::<u32>(),
            other => other.plain_text().len(),
        }
    }

    pub fn is_pair(&self) -> bool {
        matches!(self, Example::Preference { .. })
    }

    /// The reply that the model is to learn last: the final assistant message, the completion or the preferred
    /// answer.
    pub fn reply(&self) -> Option<Cow<'_, Message>> {
        match self {
            Example::Messages(messages) => {
                messages.iter().rev().find(|message| message.is_assistant()).map(Cow::Borrowed)
            }
            Example::PromptCompletion { completion, .. } => {
                Some(Cow::Owned(Message::new("assistant", completion)))
            }
            Example::Preference { chosen, .. } => Some(Cow::Borrowed(chosen)),
            Example::Text(_) | Example::Tokens { .. } => None,
        }
    }

    /// Both answers of a pair, the preferred one first.
    pub fn answers(&self) -> Option<[&Message; 2]> {
        match self {
            Example::Preference { chosen, rejected, .. } => Some([chosen, rejected]),
            _ => None,
        }
    }

    /// The row's conversations: one, or for a pair with a prompt one with each answer.
    pub(crate) fn conversations(&self) -> Vec<Vec<Message>> {
        match self {
            Example::Preference { prompt, chosen, rejected } if !prompt.is_empty() => {
                [chosen, rejected].map(|answer| prompt.iter().chain([answer]).cloned().collect()).to_vec()
            }
            example => example.messages().into_iter().collect(),
        }
    }

    /// What comes before the last reply. A text, and a pair that does not tell them apart, have no prompt.
    pub(crate) fn prompt(&self) -> Option<Vec<Message>> {
        match self {
            Example::Messages(messages) => {
                let reply = messages.iter().rposition(Message::is_assistant)?;
                Some(messages[..reply].to_vec())
            }
            Example::PromptCompletion { prompt, .. } => Some(vec![Message::new("user", prompt)]),
            Example::Preference { prompt, .. } => Some(prompt.clone()).filter(|prompt| !prompt.is_empty()),
            Example::Text(_) | Example::Tokens { .. } => None,
        }
    }

    /// All texts, each on its own line: for search, lists and comparison.
    pub fn plain_text(&self) -> String {
        let of = |messages: &[Message]| messages.iter().flat_map(Message::texts).collect::<Vec<_>>();
        let lines = match self {
            Example::Messages(messages) => of(messages),
            Example::PromptCompletion { prompt, completion } => vec![prompt.clone(), completion.clone()],
            Example::Text(text) => vec![text.clone()],
            Example::Preference { prompt, chosen, rejected } => {
                let mut lines = of(prompt);
                lines.extend(chosen.texts().chain(rejected.texts()));
                lines
            }
            Example::Tokens { .. } => Vec::new(),
        };
        lines.join("\n")
    }
}

/// A pair's answer as its text where it is nothing more. Rows keep the hash that they had when answers were
/// texts only.
fn answer<S: Serializer>(answer: &Message, serializer: S) -> Result<S::Ok, S::Error> {
    if answer.is_plain() { answer.content.serialize(serializer) } else { answer.serialize(serializer) }
}

/// Length in bytes of the prompt that two plain texts share: their common beginning without a space at its
/// end, and never all of either text (TRL's `extract_prompt`).
pub(crate) fn shared_beginning(chosen: &str, rejected: &str) -> usize {
    let most = chosen.chars().count().min(rejected.chars().count()).saturating_sub(1);
    let same = chosen.char_indices().zip(rejected.chars()).take(most);
    let same = same.take_while(|((_, left), right)| left == right);
    let end = same.last().map_or(0, |((at, character), _)| at + character.len_utf8());
    let shared = &chosen[..end];
    shared.strip_suffix(' ').unwrap_or(shared).len()
}

/// What a row has in addition to its [`Example`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Tools offered to the model, passed to the chat template as `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Variables for the chat template, which override those of the project.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub variables: Map<String, Value>,
    /// Whether its answer is good, if the row has a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<bool>,
    /// The row's value in the column that `data.group_by` names.
    #[serde(skip)]
    pub group: Option<String>,
}

impl Extras {
    /// Whether the row has nothing beside its example.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The label in words; `None` if the row has none.
    pub fn label_name(&self) -> Option<&'static str> {
        label_name(self.label)
    }
}

pub(crate) fn label_name(label: Option<bool>) -> Option<&'static str> {
    label.map(|good| if good { "good answer" } else { "bad answer" })
}

/// The place of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Origin {
    pub file: PathBuf,
    /// Its first line in the file, from 1. In a file without lines, the row's number.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Eval,
}

/// One row of a dataset, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its number in reading order over all files, from 0: training files first, then evaluation files. Rows
    /// that cannot be read and rows in quarantine do not count, so this is the row's index in the list of
    /// rows.
    pub index: usize,
    pub origin: Origin,
    pub split: Split,
    pub example: Example,
    pub extras: Extras,
}

impl Row {
    /// 16 hex digits that depend only on the row's content. The quarantine lists rows by this.
    pub fn hash(&self) -> String {
        format!("{:016x}", hash_of_content(&self.example, &self.extras))
    }

    /// Whether it offers tools or calls one.
    pub(crate) fn has_tools(&self) -> bool {
        self.extras.tools.is_some()
            || self.example.messages().is_some_and(|messages| {
                messages.iter().any(|message| message.role == "tool" || !message.tool_calls.is_empty())
            })
    }
}

/// The first 64 bits of the SHA-256 of the canonical JSON of a row's content, without its label.
pub(crate) fn hash_of_content(example: &Example, extras: &Extras) -> u64 {
    let extras = Extras { label: None, ..extras.clone() };
    let canonical = serde_json::to_vec(&(example, extras)).unwrap_or_default();
    first_bits(&[&canonical])
}

/// The first 16 hex digits of the SHA-256 of `parts`, each preceded by its length.
pub(crate) fn short_hash(parts: &[&[u8]]) -> String {
    format!("{:016x}", first_bits(parts))
}

fn first_bits(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..8].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}
