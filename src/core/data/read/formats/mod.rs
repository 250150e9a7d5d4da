//! The meaning of a row's fields.

mod columns;
mod pairs;
mod tokens;
mod tools;
mod turns;

use serde_json::{Map, Value};

use super::MAX_ROW_VALUES;
use crate::algorithms::RowShape;
use crate::config::Format;
use crate::data::{Example, Extras, Message};
use crate::json;
use crate::text::clean_line;

pub(super) use columns::{Detected, MESSAGE_ROLES, OPTIONAL_ROLES, detect, has_needed, takes};
pub(in crate::data) use pairs::is_side;
pub(in crate::data) use turns::WEIGHTS;

/// Most field names in one message.
const SHOWN_FIELDS: usize = 8;

type Fields = Map<String, Value>;

/// A row that was read.
#[derive(Debug)]
pub(in crate::data) struct Shaped {
    pub(in crate::data) example: Example,
    pub(in crate::data) extras: Extras,
    /// The names of fields that nothing reads.
    pub(in crate::data) unused: Vec<String>,
}

/// A row's fields as an example, or what is wrong with them. A label is kept if rows with labels are
/// `wanted`, or if it marks a bad answer.
pub(super) fn shape(format: Format, mut fields: Fields, wanted: RowShape) -> Result<Shaped, String> {
    refuse_media(&mut fields)?;
    let label = if is_answer(format) { label(&mut fields, wanted == RowShape::LabelledAnswer) } else { None };
    let label = label.filter(|&good| !good || wanted == RowShape::LabelledAnswer);
    let mut row = Reader { names: names(&fields), fields };
    let has_template = takes(format).contains(&"chat_template_kwargs");
    let variables = if has_template { row.variables()? } else { Map::new() };
    let (example, extras) = row.example(format)?;
    row.fields.retain(|_, value| !value.is_null());
    let unused = row.fields.keys().cloned().collect();
    Ok(Shaped { example, extras: Extras { variables, label, ..extras }, unused })
}

/// What a row has beside its conversation: tools and variables for the template.
pub(super) fn extras(fields: &Fields) -> Result<Extras, String> {
    let mut row = Reader { names: names(fields), fields: fields.clone() };
    Ok(Extras { variables: row.variables()?, tools: row.tools()?, ..Extras::default() })
}

/// Whether rows of a format end with an answer that is learned.
pub(super) fn is_answer(format: Format) -> bool {
    matches!(format, Format::Messages | Format::ShareGpt | Format::Alpaca | Format::PromptCompletion)
}

/// Removes the fields for images, sound and video where they are empty, and refuses them otherwise.
fn refuse_media(fields: &mut Fields) -> Result<(), String> {
    for name in ["images", "image", "videos", "video", "audios", "audio"] {
        let Some(value) = fields.get(name) else { continue };
        let is_empty = match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty() || text == "[]",
            _ => false,
        };
        if !is_empty {
            return Err(format!(
                "has {name:?}, and only text can be trained on here; leave the row out, or remove the field if the \
                 text stands without it"
            ));
        }
        fields.shift_remove(name);
    }
    Ok(())
}

/// Whether a row says that its answer is a good one (TRL's `label`, LLaMA-Factory's `kto_tag`). A table
/// without types has it as text. A number means a label only where one is `wanted`: elsewhere it is as often
/// a class, and stays a field that nothing reads.
fn label(fields: &mut Fields, wanted: bool) -> Option<bool> {
    let is_given = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
    let name = ["label", "kto_tag"].into_iter().find(is_given)?;
    let good = match fields.get(name)? {
        Value::Bool(good) => Some(*good),
        Value::Number(number) if wanted => truth(&number.to_string()),
        Value::String(text) => {
            let text = text.trim().to_lowercase();
            truth(&text).filter(|_| wanted || text == "true" || text == "false")
        }
        _ => None,
    };
    if good.is_some() {
        fields.shift_remove(name);
    }
    good
}

/// What a word or number says in place of true or false.
fn truth(text: &str) -> Option<bool> {
    match text.trim().to_lowercase().as_str() {
        "true" | "1" | "1.0" => Some(true),
        "false" | "0" | "0.0" => Some(false),
        _ => None,
    }
}

/// The names of a row's fields, for messages.
pub(super) fn names(fields: &Fields) -> String {
    let mut names: Vec<String> =
        fields.keys().take(SHOWN_FIELDS).map(|name| clean_line(name).into_owned()).collect();
    if fields.len() > SHOWN_FIELDS {
        names.push("…".to_owned());
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The type of a JSON value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A list or object that a table stores as JSON text, parsed; other values unchanged.
fn parsed(value: &Value) -> Value {
    match value {
        Value::String(text) if text.trim_start().starts_with(['[', '{']) => {
            json::from_slice(text.as_bytes(), MAX_ROW_VALUES).unwrap_or_else(|_| value.clone())
        }
        other => other.clone(),
    }
}

/// A list of objects, or one message, that a table stores as JSON text. A text that only begins with a bracket
/// stays a text.
pub(super) fn parsed_list(value: Value) -> Value {
    let list = parsed(&value);
    let holds_objects = list.as_array().and_then(|list| list.first()).is_some_and(Value::is_object);
    if holds_objects || turns::is_message(&list) { list } else { value }
}

/// Whether a value says nothing: null, or a text without words, as tables pad rows.
pub(super) fn is_missing(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

/// The fields of a row; those that were read are taken out.
struct Reader {
    fields: Fields,
    /// The names of all its fields, for messages.
    names: String,
}

impl Reader {
    /// The value of a field; null counts as missing.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.shift_remove(key).filter(|value| !value.is_null())
    }

    fn needed(&mut self, key: &str) -> Result<Value, String> {
        let is_null = self.fields.contains_key(key);
        self.take(key).ok_or_else(|| {
            if is_null {
                return format!("its {key:?} is null");
            }
            format!(
                "no {key:?} (has {}). If it has another name, set data.columns = {{ {key} = \"…\" }}",
                self.names
            )
        })
    }

    fn text(&mut self, key: &str) -> Result<String, String> {
        let value = self.needed(key)?;
        turns::text(&value).map_err(|reason| format!("{key:?} {reason}"))
    }

    /// A text that may be missing or empty.
    fn optional_text(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let text = turns::text(&value).map_err(|reason| format!("{key:?} {reason}"))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The first of `keys` that the row has.
    fn first_of<'key>(&self, keys: &[&'key str]) -> Option<&'key str> {
        keys.iter().copied().find(|key| self.fields.get(*key).is_some_and(|value| !value.is_null()))
    }

    fn system(&mut self) -> Result<Option<Message>, String> {
        let key = self.first_of(&["system", "system_prompt"]);
        let text = key.map(|key| self.optional_text(key)).transpose()?.flatten();
        Ok(text.map(|text| Message::new("system", text)))
    }

    fn tools(&mut self) -> Result<Option<Value>, String> {
        let Some(key) = self.first_of(&["tools", "functions"]) else { return Ok(None) };
        let value = self.needed(key)?;
        tools::offered(&value).map_err(|reason| format!("{key:?} {reason}"))
    }

    /// TRL's `chat_template_kwargs`.
    fn variables(&mut self) -> Result<Map<String, Value>, String> {
        let Some(value) = self.take("chat_template_kwargs") else { return Ok(Map::new()) };
        match parsed(&value) {
            Value::Object(mut variables) => {
                variables.retain(|_, value| !value.is_null());
                Ok(variables)
            }
            Value::String(text) if text.trim().is_empty() => Ok(Map::new()),
            other => Err(format!("\"chat_template_kwargs\" is {} where an object is expected", kind(&other))),
        }
    }

    fn example(&mut self, format: Format) -> Result<(Example, Extras), String> {
        match format {
            Format::Messages => self.conversation(&["messages", "conversations", "conversation"]),
            Format::ShareGpt => self.conversation(&["conversations", "messages", "conversation"]),
            Format::Alpaca => self.alpaca(),
            Format::PromptCompletion => self.prompt_completion(),
            Format::Text => Ok((Example::Text(self.text("text")?), Extras::default())),
            Format::Preference => self.preference(),
            Format::Tokens => self.tokens(),
            Format::Auto => Err("its format is unknown".to_owned()),
        }
    }

    fn conversation(&mut self, keys: &[&str]) -> Result<(Example, Extras), String> {
        let key = keys.iter().find(|key| self.fields.get(**key).is_some_and(|value| !is_missing(value)));
        let key = key.unwrap_or(&keys[0]);
        // What another of these names holds is padding.
        self.fields
            .retain(|name, value| name == key || !(keys.contains(&name.as_str()) && is_missing(value)));
        let list = self.needed(key)?;
        let messages = turns::messages(&list, key)?;
        let (messages, extras) = self.surrounded(messages)?;
        Ok((Example::Messages(messages), extras))
    }

    /// Messages with the row's own system prompt before them, and its tools.
    fn surrounded(&mut self, mut messages: Vec<Message>) -> Result<(Vec<Message>, Extras), String> {
        if messages.first().is_none_or(|message| !message.is_system())
            && let Some(system) = self.system()?
        {
            messages.insert(0, system);
        }
        Ok((messages, Extras { tools: self.tools()?, ..Extras::default() }))
    }

    fn alpaca(&mut self) -> Result<(Example, Extras), String> {
        let mut prompt = self.text("instruction")?;
        if let Some(input) = self.optional_text("input")? {
            if !prompt.is_empty() {
                prompt.push_str("\n\n");
            }
            prompt.push_str(&input);
        }
        let completion = self.text("output")?;
        self.answered(prompt, completion)
    }

    /// A prompt and its completion, with the row's system prompt, tools and earlier turns if it has any.
    fn answered(&mut self, prompt: String, completion: String) -> Result<(Example, Extras), String> {
        let mut before = Vec::new();
        if let Some(history) = self.take("history") {
            let wrong = "\"history\" is not a list of [question, answer] pairs";
            let history = match parsed(&history) {
                Value::Array(pairs) => pairs,
                Value::String(text) if text.trim().is_empty() => Vec::new(),
                _ => return Err(wrong.to_owned()),
            };
            for pair in &history {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(asked), Value::String(answered)]) => {
                        before.extend([Message::new("user", asked), Message::new("assistant", answered)]);
                    }
                    _ => return Err(wrong.to_owned()),
                }
            }
        }
        let (mut messages, extras) = self.surrounded(before)?;
        if messages.is_empty() && extras.tools.is_none() {
            return Ok((Example::PromptCompletion { prompt, completion }, extras));
        }
        messages.extend([Message::new("user", prompt), Message::new("assistant", completion)]);
        Ok((Example::Messages(messages), extras))
    }

    fn prompt_completion(&mut self) -> Result<(Example, Extras), String> {
        let prompt = parsed_list(self.needed("prompt")?);
        let completion = parsed_list(self.needed("completion")?);
        if turns::is_one(&prompt) || turns::is_one(&completion) {
            let mut all = turns::conversation_or_text(&prompt, "prompt", "user")?;
            all.extend(turns::conversation_or_text(&completion, "completion", "assistant")?);
            let (messages, extras) = self.surrounded(all)?;
            return Ok((Example::Messages(messages), extras));
        }
        let prompt = turns::text(&prompt).map_err(|reason| format!("\"prompt\" {reason}"))?;
        let completion = turns::text(&completion).map_err(|reason| format!("\"completion\" {reason}"))?;
        self.answered(prompt, completion)
    }
}
