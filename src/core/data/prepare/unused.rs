//! Fields that rows have and nothing reads.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::config::{Config, Format};
use crate::data::read::{WEIGHTS, is_side};
use crate::data::template::Part;
use crate::data::{Origin, PlacedHead, Row, Severity, Template, UnusedField};

/// Most names of fields and variables that are kept.
const MAX_NAMES: usize = 100;

/// Something that the template does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    /// A field of a message.
    Field(String),
    /// A variable that a row sets for the template.
    Variable(String),
}

/// What the template does not read of all rows.
#[derive(Default)]
pub(super) struct AllUnread {
    pub(super) found: Vec<Counted>,
    /// Whether there are other names, which were too many to keep.
    pub(super) has_more: bool,
}

pub(super) struct Counted {
    pub(super) what: Unread,
    /// Number of messages with the field, or of rows with the variable.
    pub(super) count: usize,
    /// The first row that has it.
    pub(super) first: Origin,
}

/// How grave it is that nothing reads a field of rows, and what it may be meant as; a text that follows
/// directly.
pub(super) fn hint(field: &UnusedField) -> (Severity, String) {
    let name = field.name.to_lowercase();
    let meant = match name.as_str() {
        "label" | "kto_tag" | "rating" | "liked" => {
            "if it says which answers are good, set train.algorithm = \"kto\" and data.columns = { label = … }"
        }
        name if is_side(name) => "preference pairs need train.algorithm = \"dpo\"",
        name if name == "train_on" || WEIGHTS.contains(&name) => {
            "weights are read from each message, as \"weight\": 0 or 1"
        }
        "system" | "system_prompt" | "persona" | "instructions" => {
            "if it is a system prompt, set data.columns = { system = … } with rows that have a prompt"
        }
        "tools" | "functions" | "tool_calls" => {
            "tools are read from conversations, prompts with completions and preference pairs"
        }
        "thinking" | "reasoning" | "reasoning_content" | "rationale" | "thought" | "cot" => {
            "reasoning is read from each message, as \"reasoning_content\""
        }
        "context" | "input" | "document" | "documents" | "passage" | "background" => {
            "if it belongs to the prompt, set data.columns = { input = … } with an instruction and an output"
        }
        "history" => "earlier turns are read beside a prompt and a completion",
        "prompt" | "completion" | "response" | "answer" | "output" | "question" | "instruction" | "query"
        | "text" => {
            if field.format == Format::Messages || field.format == Format::ShareGpt {
                // Many datasets repeat parts of the conversation.
                return (Severity::Note, "; the conversation is read instead".to_owned());
            }
            "say which field is which with data.columns"
        }
        _ => return (Severity::Note, String::new()),
    };
    (Severity::Warning, format!("; {meant}"))
}

/// Finds the fields of messages and the variables of rows that the template does not read. Of a field that is a text this is tried; of others, the
/// template must at least name them.
pub(super) struct RowFields<'a> {
    template: &'a Template,
    config: &'a Config,
    /// Whether the template names a field or a variable.
    named: Mutex<HashMap<String, bool>>,
}

impl<'a> RowFields<'a> {
    pub(super) fn new(template: &'a Template, config: &'a Config) -> Self {
        Self { template, config, named: Mutex::default() }
    }

    /// What is not read of a row: a field once for each message that has it.
    pub(super) fn unread(&self, row: &Row) -> Vec<Unread> {
        let template = self.template;
        let set = row.extras.variables.keys().filter(|name| !self.is_named(name));
        let mut found: Vec<Unread> = set.cloned().map(Unread::Variable).collect();
        if template.is_none() {
            return found;
        }
        for messages in row.example.conversations() {
            if messages.iter().all(|message| message.fields.is_empty()) {
                continue;
            }
            let messages = template.arranged(&messages, self.config);
            let probe = template.probe(&messages, &row.extras);
            for (index, message) in messages.iter().enumerate() {
                for (position, (name, value)) in message.fields.iter().enumerate() {
                    let is_read = match &probe {
                        Some(probe) if value.is_string() => {
                            !probe.lost().contains(&Part::Field(index, position))
                        }
                        _ => self.is_named(name),
                    };
                    if !is_read {
                        found.push(Unread::Field(name.clone()));
                    }
                }
            }
        }
        found
    }

    fn is_named(&self, name: &str) -> bool {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_named) = named.get(name) {
            return *is_named;
        }
        let is_named = self.template.mentions(name);
        // Names come from the data.
        if named.len() < MAX_NAMES {
            named.insert(name.to_owned(), is_named);
        }
        is_named
    }
}

/// What is not read of all rows, in the order in which it occurs.
pub(super) fn counted<'row>(
    unread: impl IntoIterator<Item = (&'row PlacedHead<'row>, &'row [Unread])>,
) -> AllUnread {
    let mut all = AllUnread::default();
    for (row, unread) in unread {
        for what in unread {
            if let Some(counted) = all.found.iter_mut().find(|counted| counted.what == *what) {
                counted.count += 1;
            } else if all.found.len() < MAX_NAMES {
                all.found.push(Counted { what: what.clone(), count: 1, first: row.origin() });
            } else {
                all.has_more = true;
            }
        }
    }
    all
}
