//! Rows of a dataset, whatever file they come from.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::hash::hex;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`; templates may know more.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }

    /// Whether the model says it.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// One row of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Example {
    /// A conversation.
    Messages(Vec<Message>),
    /// What is asked and what is to be answered.
    PromptCompletion {
        /// What is asked.
        prompt: String,
        /// What is to be answered.
        completion: String,
    },
    /// Plain text.
    Text(String),
    /// Two answers to one conversation, the first preferred.
    Preference {
        /// The conversation up to the answer. Empty where both sides are plain texts that hold the prompt themselves: what
        /// they share at their beginning ([`shared_beginning`]).
        prompt: Vec<Message>,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
    /// Token ids with labels as in transformers: -100 = not trained, shifted inside the loss.
    Tokens {
        /// Token ids.
        input_ids: Vec<u32>,
        /// One per id: the id itself, or -100.
        labels: Vec<i64>,
    },
}

impl Example {
    /// The row as a conversation, where it is one: prompt and completion become user and assistant, the preferred answer
    /// closes a preference pair.
    pub fn messages(&self) -> Option<Vec<Message>> {
        match self {
            Example::Messages(messages) => Some(messages.clone()),
            Example::PromptCompletion { prompt, completion } => {
                Some(vec![Message::new("user", prompt), Message::new("assistant", completion)])
            }
            Example::Preference { prompt, chosen, .. } if !prompt.is_empty() => {
                let mut messages = prompt.clone();
                messages.push(Message::new("assistant", chosen));
                Some(messages)
            }
            Example::Preference { .. } | Example::Text(_) | Example::Tokens { .. } => None,
        }
    }

    /// Whether it is a preference pair.
    pub fn is_pair(&self) -> bool {
        matches!(self, Example::Preference { .. })
    }

    /// What the model is to say last: the final assistant reply, the completion or the preferred answer.
    pub fn reply(&self) -> Option<&str> {
        match self {
            Example::Messages(messages) => messages
                .iter()
                .rev()
                .find(|message| message.is_assistant())
                .map(|message| message.content.as_str()),
            Example::PromptCompletion { completion, .. } => Some(completion),
            Example::Preference { chosen, .. } => Some(chosen),
            Example::Text(_) | Example::Tokens { .. } => None,
        }
    }

    /// All that is said, a line each: for search, lists and comparison.
    pub fn plain_text(&self) -> String {
        match self {
            Example::Messages(messages) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
            }
            Example::PromptCompletion { prompt, completion } => format!("{prompt}\n{completion}"),
            Example::Text(text) => text.clone(),
            Example::Preference { prompt, chosen, rejected } => {
                let mut lines: Vec<&str> = prompt.iter().map(|message| message.content.as_str()).collect();
                lines.extend([chosen.as_str(), rejected.as_str()]);
                lines.join("\n")
            }
            Example::Tokens { .. } => String::new(),
        }
    }
}

/// Bytes of the prompt that two plain texts share: their common beginning, without a space at its end and without taking
/// all of either (TRL's `extract_prompt`).
pub(crate) fn shared_beginning(chosen: &str, rejected: &str) -> usize {
    let most = chosen.chars().count().min(rejected.chars().count()).saturating_sub(1);
    let same = chosen.char_indices().zip(rejected.chars()).take(most);
    let same = same.take_while(|((_, left), right)| left == right);
    let end = same.last().map_or(0, |((at, character), _)| at + character.len_utf8());
    let shared = &chosen[..end];
    shared.strip_suffix(' ').unwrap_or(shared).len()
}

/// What a row says beside its [`Example`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Extras {
    /// Tools offered to the model, passed to the chat template as `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Further fields of each message (`tool_calls`, `name`, `reasoning_content` …), passed to the chat template. Empty,
    /// or one per message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Map<String, Value>>,
    /// Indices of assistant messages that the row marks `"weight": 0`: never trained on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untrained: Vec<usize>,
    /// Whether its answer is a good one, where the row says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<bool>,
}

impl Extras {
    /// Whether the answer is a good one, in words; nothing where the row does not say.
    pub fn label_name(&self) -> Option<&'static str> {
        self.label.map(|good| if good { "good answer" } else { "bad answer" })
    }
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// Its first line in the file, from 1; the row's number in a file without lines.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)
    }
}

/// Which part of the dataset a row belongs to.
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
    /// Its number in reading order over all files, from 0: training files first, then evaluation files. Rows that cannot
    /// be read and rows in quarantine do not count, so that it is the row's place in the list of rows.
    pub index: usize,
    /// Where it stands.
    pub origin: Origin,
    /// Trained on or held out.
    pub split: Split,
    /// What it says.
    pub example: Example,
    /// What it says beside.
    pub extras: Extras,
}

impl Row {
    /// 16 hex digits that name the row's content wherever it stands: what the quarantine lists.
    pub fn hash(&self) -> String {
        content_hash(&self.example, &self.extras)
    }
}

/// SHA-256 over the canonical JSON of a row's content, its first 16 hex digits.
pub(crate) fn content_hash(example: &Example, extras: &Extras) -> String {
    let canonical = serde_json::to_vec(&(example, extras)).unwrap_or_default();
    short_hash(&[&canonical])
}

/// The first 16 hex digits of the SHA-256 over `parts`, each preceded by its length.
pub(crate) fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize()[..8])
}
