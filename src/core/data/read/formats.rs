//! The meaning of a row's fields.

use serde_json::{Map, Value};

use super::MAX_ROW_VALUES;
use crate::algorithms::RowShape;
use crate::config::Format;
use crate::data::example::shared_beginning;
use crate::data::{Example, Extras, Message};
use crate::json;
use crate::text::clean_line;

/// Fields that a row may lack even if `data.columns` names them.
pub(super) const OPTIONAL_ROLES: &[&str] = &["input", "system", "labels", "label"];
/// Fields of a message, not of a row.
pub(super) const MESSAGE_ROLES: &[&str] = &["role", "content", "from", "value"];

/// Most field names in one message.
const SHOWN_FIELDS: usize = 8;
/// Longest role of a message, in bytes.
const MAX_ROLE: usize = 64;

type Fields = Map<String, Value>;

/// The format of a row with the fields `names`; values distinguish the two kinds of conversation. Some
/// preference datasets repeat the chosen side as a conversation: `wanted` decides between the two.
pub(super) fn detect(names: &[&str], fields: &Fields, wanted: RowShape) -> Option<Format> {
    let has = |name: &str| names.contains(&name);
    if wanted == RowShape::Pair && has("chosen") && has("rejected") {
        return Some(Format::Preference);
    }
    if has("messages") || has("conversations") {
        let list = fields.get("messages").or_else(|| fields.get("conversations"))?;
        let list = parsed(list);
        let sharegpt = list.get(0).is_some_and(|first| first.get("from").is_some());
        return Some(if sharegpt { Format::ShareGpt } else { Format::Messages });
    }
    if has("input_ids") {
        Some(Format::Tokens)
    } else if has("chosen") && has("rejected") {
        Some(Format::Preference)
    } else if has("prompt") && has("completion") {
        Some(Format::PromptCompletion)
    } else if has("instruction") && has("output") {
        Some(Format::Alpaca)
    } else if has("text") {
        Some(Format::Text)
    } else {
        None
    }
}

/// A row's fields as an example, or what is wrong with them. A label is kept if rows with labels are
/// `wanted`, or if it marks a bad answer.
pub(super) fn shape(format: Format, fields: Fields, wanted: RowShape) -> Result<(Example, Extras), String> {
    let label = if is_answer(format) { label(&fields, wanted == RowShape::LabelledAnswer) } else { None };
    let label = label.filter(|&good| !good || wanted == RowShape::LabelledAnswer);
    example(format, fields).map(|(example, extras)| (example, Extras { label, ..extras }))
}

fn example(format: Format, fields: Fields) -> Result<(Example, Extras), String> {
    let mut row = Reader { fields };
    match format {
        Format::Messages => row.conversation(&["messages", "conversations"], openai_message),
        Format::ShareGpt => row.conversation(&["conversations", "messages"], sharegpt_message),
        Format::Alpaca => row.alpaca(),
        Format::PromptCompletion => row.prompt_completion(),
        Format::Text => Ok((Example::Text(row.text("text")?), Extras::default())),
        Format::Preference => row.preference(),
        Format::Tokens => row.tokens(),
        Format::Auto => Err("its format is unknown".to_owned()),
    }
}

/// Whether rows of a format end with an answer that is learned.
fn is_answer(format: Format) -> bool {
    matches!(format, Format::Messages | Format::ShareGpt | Format::Alpaca | Format::PromptCompletion)
}

/// Whether a row says that its answer is a good one (TRL's `label`). A table without types has it as text. A number means a
/// label only where one is `wanted`: elsewhere it is as often a class.
fn label(fields: &Fields, wanted: bool) -> Option<bool> {
    let text = match fields.get("label")? {
        Value::Bool(good) => return Some(*good),
        Value::Number(number) if wanted => number.to_string(),
        Value::String(text) => text.trim().to_lowercase(),
        _ => return None,
    };
    match text.as_str() {
        "true" => Some(true),
        "false" => Some(false),
        "1" if wanted => Some(true),
        "0" if wanted => Some(false),
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

/// A message with its fields for the template, and whether it is trained on.
struct Turn {
    message: Message,
    fields: Fields,
    trained: bool,
}

struct Reader {
    fields: Fields,
}

impl Reader {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.shift_remove(name).filter(|value| !value.is_null())
    }

    fn needed(&mut self, name: &str) -> Result<Value, String> {
        self.take(name).ok_or_else(|| {
            format!(
                "no {name:?} (has {}). If it has another name, set data.columns = {{ {name} = \"…\" }}",
                names(&self.fields)
            )
        })
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        let value = self.needed(name)?;
        content(&value).map_err(|reason| format!("{name:?} {reason}"))
    }

    fn optional_text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.take(name)
            .map(|value| content(&value).map_err(|reason| format!("{name:?} {reason}")))
            .transpose()
            .map(|text| text.filter(|text| !text.is_empty()))
    }

    fn conversation(
        &mut self,
        keys: &[&str],
        message: fn(Fields) -> Result<Turn, String>,
    ) -> Result<(Example, Extras), String> {
        let key = keys.iter().find(|key| self.fields.contains_key(**key)).unwrap_or(&keys[0]);
        let list = self.needed(key)?;
        let mut turns = turns(&list, key, message)?;
        if let Some(system) = self.optional_text("system")?
            && turns.first().is_none_or(|turn| turn.message.role != "system")
        {
            let message = Message::new("system", system);
            turns.insert(0, Turn { message, fields: Fields::new(), trained: true });
        }
        let tools = self.tools()?;
        Ok(assemble(turns, tools))
    }

    fn tools(&mut self) -> Result<Option<Value>, String> {
        let tools =
            self.take("tools").map(|tools| parsed(&tools)).filter(|tools| tools != &Value::Array(Vec::new()));
        match &tools {
            Some(tools) if !tools.is_array() => {
                Err(format!("\"tools\" is {} where a list is expected", kind(tools)))
            }
            _ => Ok(tools),
        }
    }

    fn alpaca(&mut self) -> Result<(Example, Extras), String> {
        let mut prompt = self.text("instruction")?;
        if let Some(input) = self.optional_text("input")? {
            prompt.push_str("\n\n");
            prompt.push_str(&input);
        }
        let completion = self.text("output")?;
        let system = self.optional_text("system")?;
        let history = self.take("history").filter(|history| history != &Value::Array(Vec::new()));
        if system.is_none() && history.is_none() {
            return Ok((Example::PromptCompletion { prompt, completion }, Extras::default()));
        }
        let mut messages: Vec<Message> =
            system.map(|system| Message::new("system", system)).into_iter().collect();
        for pair in parsed(&history.unwrap_or_default()).as_array().into_iter().flatten() {
            match (pair.get(0).and_then(Value::as_str), pair.get(1).and_then(Value::as_str)) {
                (Some(asked), Some(answered)) => {
                    messages.extend([Message::new("user", asked), Message::new("assistant", answered)]);
                }
                _ => return Err("\"history\" is not a list of [question, answer] pairs".to_owned()),
            }
        }
        messages.extend([Message::new("user", prompt), Message::new("assistant", completion)]);
        Ok((Example::Messages(messages), Extras::default()))
    }

    fn prompt_completion(&mut self) -> Result<(Example, Extras), String> {
        let prompt = parsed_list(self.needed("prompt")?);
        let completion = parsed_list(self.needed("completion")?);
        if !prompt.is_array() && !completion.is_array() {
            return Ok((
                Example::PromptCompletion {
                    prompt: content(&prompt).map_err(|reason| format!("\"prompt\" {reason}"))?,
                    completion: content(&completion).map_err(|reason| format!("\"completion\" {reason}"))?,
                },
                Extras::default(),
            ));
        }
        let mut all = conversation_or_text(&prompt, "prompt", "user")?;
        all.extend(conversation_or_text(&completion, "completion", "assistant")?);
        Ok(assemble(all, None))
    }

    /// TRL's preference format: the prompt is in its own field, or at the beginning of both sides.
    fn preference(&mut self) -> Result<(Example, Extras), String> {
        let chosen = parsed_list(self.needed("chosen")?);
        let rejected = parsed_list(self.needed("rejected")?);
        let prompt = self.take("prompt").map(parsed_list);
        let (None, Value::String(chosen), Value::String(rejected)) = (&prompt, &chosen, &rejected) else {
            let tools = self.tools()?;
            return preference_of_messages(prompt.as_ref(), &chosen, &rejected, tools);
        };
        if shared_beginning(chosen, rejected) == 0 {
            return Err(NO_PROMPT.to_owned());
        }
        let (chosen, rejected) = (chosen.clone(), rejected.clone());
        Ok((Example::Preference { prompt: Vec::new(), chosen, rejected }, Extras::default()))
    }

    fn tokens(&mut self) -> Result<(Example, Extras), String> {
        let ids = self.needed("input_ids")?;
        let mut input_ids: Vec<u32> = integers(&ids, "input_ids")?
            .into_iter()
            .map(|id| {
                u32::try_from(id).map_err(|_| format!("\"input_ids\" contains {id}, which is not a token id"))
            })
            .collect::<Result<_, _>>()?;
        let mut labels = match self.take("labels") {
            Some(labels) => integers(&labels, "labels")?,
            None => input_ids.iter().map(|&id| i64::from(id)).collect(),
        };
        if labels.len() != input_ids.len() {
            return Err(format!("{} input_ids, but {} labels", input_ids.len(), labels.len()));
        }
        if let Some(mask) = self.take("attention_mask") {
            let mask = integers(&mask, "attention_mask")?;
            let used = mask.iter().take_while(|&&attended| attended == 1).count();
            if mask.len() != input_ids.len() || mask[used..].iter().any(|&attended| attended != 0) {
                return Err(
                    "\"attention_mask\" must be 1 for each id, then 0 for padding at the end".to_owned()
                );
            }
            input_ids.truncate(used);
            labels.truncate(used);
        }
        for (position, (&id, &label)) in input_ids.iter().zip(&labels).enumerate() {
            if label != -100 && label != i64::from(id) {
                return Err(format!(
                    "label {label} at position {position} is neither -100 nor the id {id} at the same place (labels \
                     are shifted inside the loss)"
                ));
            }
        }
        Ok((Example::Tokens { input_ids, labels }, Extras::default()))
    }
}

fn assemble(turns: Vec<Turn>, tools: Option<Value>) -> (Example, Extras) {
    let (messages, extras) = apart(turns, tools);
    (Example::Messages(messages), extras)
}

/// Splits turns into messages and the additional data of turns.
fn apart(turns: Vec<Turn>, tools: Option<Value>) -> (Vec<Message>, Extras) {
    let untrained =
        turns.iter().enumerate().filter(|(_, turn)| !turn.trained).map(|(index, _)| index).collect();
    let any_fields = turns.iter().any(|turn| !turn.fields.is_empty());
    let (messages, fields): (Vec<Message>, Vec<Fields>) =
        turns.into_iter().map(|turn| (turn.message, turn.fields)).unzip();
    let fields = if any_fields { fields } else { Vec::new() };
    (messages, Extras { tools, fields, untrained, label: None })
}

/// A preference pair in which at least one part is a list of messages, or whose prompt has its own field.
fn preference_of_messages(
    prompt: Option<&Value>,
    chosen: &Value,
    rejected: &Value,
    tools: Option<Value>,
) -> Result<(Example, Extras), String> {
    let mut chosen = conversation_or_text(chosen, "chosen", "assistant")?;
    let mut rejected = conversation_or_text(rejected, "rejected", "assistant")?;
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    let shared = chosen.iter().zip(&rejected).take(most);
    let shared = shared.take_while(|(left, right)| left.message == right.message).count();
    let mut before: Vec<Turn> = chosen.drain(..shared).collect();
    rejected.drain(..shared);
    let prompt = match prompt {
        // A text prompt given with whole conversations is only for people to read.
        Some(prompt) if prompt.is_array() || before.is_empty() => {
            let mut turns = conversation_or_text(prompt, "prompt", "user")?;
            let repeated = before.len() >= turns.len()
                && turns.iter().zip(&before).all(|(left, right)| left.message == right.message);
            if !repeated {
                turns.append(&mut before);
                before = turns;
            }
            before
        }
        _ => before,
    };
    if prompt.is_empty() {
        return Err(NO_PROMPT.to_owned());
    }
    let (chosen, rejected) = (answer(chosen, "chosen")?, answer(rejected, "rejected")?);
    let (prompt, mut extras) = apart(prompt, tools);
    if !extras.fields.is_empty() {
        extras.fields.push(Fields::new());
    }
    extras.untrained.clear();
    Ok((Example::Preference { prompt, chosen, rejected }, extras))
}

const NO_PROMPT: &str = "no \"prompt\", and \"chosen\" and \"rejected\" have no common beginning";

/// The one reply that only this side has.
fn answer(turns: Vec<Turn>, name: &str) -> Result<String, String> {
    let mut turns = turns.into_iter();
    match (turns.next(), turns.next()) {
        (Some(turn), None) if turn.fields.contains_key("tool_calls") => {
            Err(format!("{name:?} calls tools, and replies of a pair can only be texts; leave the row out"))
        }
        (Some(turn), None) if turn.message.is_assistant() => Ok(turn.message.content),
        _ => Err(format!(
            "{name:?} must end in exactly one assistant message that differs from the other side"
        )),
    }
}

fn turns(list: &Value, key: &str, message: fn(Fields) -> Result<Turn, String>) -> Result<Vec<Turn>, String> {
    let list = parsed(list);
    let Value::Array(list) = list else {
        return Err(format!("{key:?} is {} where a list of messages is expected", kind(&list)));
    };
    if list.is_empty() {
        return Err(format!("{key:?} is empty"));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, element)| {
            let turn = match element {
                Value::Object(fields) => message(fields),
                other => Err(format!("is {} where an object is expected", kind(&other))),
            };
            turn.map_err(|reason| format!("{key}[{index}] {reason}"))
        })
        .collect()
}

/// A list of objects that a table stores as JSON text. A text that only begins with a bracket stays a text.
pub(super) fn parsed_list(value: Value) -> Value {
    let list = parsed(&value);
    let holds_objects = list.as_array().and_then(|list| list.first()).is_some_and(Value::is_object);
    if holds_objects { list } else { value }
}

fn conversation_or_text(value: &Value, name: &str, role: &str) -> Result<Vec<Turn>, String> {
    if value.is_array() {
        return turns(value, name, openai_message);
    }
    let content = content(value).map_err(|reason| format!("{name:?} {reason}"))?;
    Ok(vec![Turn { message: Message::new(role, content), fields: Fields::new(), trained: true }])
}

/// OpenAI's `{"role", "content"}`. The content may be a list of text parts, or missing if there are tool
/// calls. A message with `"weight": 0` is not trained on.
fn openai_message(mut fields: Fields) -> Result<Turn, String> {
    let role = match fields.shift_remove("role") {
        Some(Value::String(role)) => role,
        Some(other) => return Err(format!("has a role that is {}", kind(&other))),
        None => return Err(format!("has no \"role\" (has {})", names(&fields))),
    };
    let content = match fields.shift_remove("content").filter(|value| !value.is_null()) {
        Some(value) => content(&value).map_err(|reason| format!("has a content that {reason}"))?,
        None if fields.contains_key("tool_calls") => String::new(),
        None => return Err("has no \"content\"".to_owned()),
    };
    turn(&role, content, fields)
}

/// `{"from", "value"}`, with the speaker names in common use.
fn sharegpt_message(mut fields: Fields) -> Result<Turn, String> {
    if fields.contains_key("role") && !fields.contains_key("from") {
        return openai_message(fields);
    }
    let from = match fields.shift_remove("from") {
        Some(Value::String(from)) => from,
        Some(other) => return Err(format!("is from {}", kind(&other))),
        None => return Err(format!("has no \"from\" (has {})", names(&fields))),
    };
    let role = match from.to_lowercase().as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" | "function_call" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        _ => return Err(format!("is from {:?}, which is not a known speaker", clean_line(&from))),
    };
    let value = fields.shift_remove("value").unwrap_or_default();
    let content = content(&value).map_err(|reason| format!("has a value that {reason}"))?;
    turn(role, content, fields)
}

fn turn(role: &str, content: String, mut fields: Fields) -> Result<Turn, String> {
    if role.is_empty() || role.len() > MAX_ROLE {
        return Err(format!("has the role {:?}", clean_line(&role.chars().take(20).collect::<String>())));
    }
    let weight = fields.shift_remove("weight").and_then(|weight| weight.as_f64());
    fields.retain(|_, value| !value.is_null());
    Ok(Turn { message: Message::new(role, content), fields, trained: weight != Some(0.0) })
}

/// A text, or a list of text parts (`"…"` or `{"type": "text", "text": "…"}`), joined.
fn content(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| {
                let text = part.as_str().or_else(|| {
                    let is_text = part.get("type").is_none_or(|kind| kind == "text");
                    part.get("text").filter(|_| is_text)?.as_str()
                });
                text.ok_or_else(|| "has a part that is not text; only text can be trained on".to_owned())
            })
            .collect(),
        other => Err(format!("is {} where text is expected", kind(other))),
    }
}

fn integers(value: &Value, name: &str) -> Result<Vec<i64>, String> {
    let list = parsed(value);
    let numbers: Option<Vec<i64>> =
        list.as_array().and_then(|list| list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>());
    numbers.ok_or_else(|| format!("{name:?} is not a list of whole numbers"))
}
