//! The messages of a conversation, as datasets write them: OpenAI's `{"role", "content"}`, ShareGPT's `{"from",
//! "value"}`, and the variants in use.

use serde_json::Value;

use super::{Fields, kind, names, parsed, tools, truth};
use crate::data::Message;
use crate::json::python_text;
use crate::text::clean_line;

/// Longest role of a message, in bytes.
const MAX_ROLE: usize = 64;
/// Names under which datasets keep what a reply thinks before it answers.
const REASONING: &[&str] = &["reasoning_content", "reasoning", "thinking"];
/// Names under which datasets say whether a message is trained on: OpenAI, axolotl (two), ms-swift, LLaMA-Factory.
pub(in crate::data) const WEIGHTS: &[&str] = &["weight", "train", "training", "loss", "loss_weight"];

/// The messages of a list, or what is wrong with one. `key` is the name of the list, for messages.
pub(super) fn messages(list: &Value, key: &str) -> Result<Vec<Message>, String> {
    let list = match parsed(list) {
        Value::Array(list) => list,
        one @ Value::Object(_) => vec![one],
        other => return Err(format!("{key:?} is {} where a list of messages is expected", kind(&other))),
    };
    if list.is_empty() {
        return Err(format!("{key:?} is empty"));
    }
    let mut all: Vec<Message> = Vec::with_capacity(list.len());
    for (index, element) in list.into_iter().enumerate() {
        let Value::Object(fields) = element else {
            return Err(format!("{key}[{index}] is {} where an object is expected", kind(&element)));
        };
        if fields.contains_key("human") && fields.contains_key("assistant") {
            let exchange = exchange(fields).map_err(|reason| format!("{key}[{index}] {reason}"))?;
            all.extend(exchange);
            continue;
        }
        let (message, is_call) = message(fields).map_err(|reason| format!("{key}[{index}] {reason}"))?;
        // Calls in turns of their own belong to the reply that they follow.
        match all.last_mut() {
            Some(last) if is_call && last.is_assistant() && last.trained == message.trained => {
                last.tool_calls.extend(message.tool_calls);
                last.reasoning = last.reasoning.take().or(message.reasoning);
                for (name, value) in message.fields {
                    last.fields.entry(name).or_insert(value);
                }
            }
            _ => all.push(message),
        }
    }
    Ok(all)
}

/// Whether a value is a conversation, not a text.
pub(super) fn is_one(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.first().is_none_or(is_message),
        other => is_message(other),
    }
}

pub(super) fn is_message(value: &Value) -> bool {
    value.get("role").is_some() || value.get("from").is_some()
}

/// A conversation, or a text as one message of a `role`.
pub(super) fn conversation_or_text(value: &Value, name: &str, role: &str) -> Result<Vec<Message>, String> {
    if is_one(value) {
        return messages(value, name);
    }
    let content = text(value).map_err(|reason| format!("{name:?} {reason}"))?;
    Ok(vec![Message::new(role, content)])
}

/// ms-swift's `{"human", "assistant"}`.
fn exchange(mut fields: Fields) -> Result<Vec<Message>, String> {
    let trained = weight(&mut fields)?;
    let mut part = |name: &str| {
        let value = fields.shift_remove(name).filter(|value| !value.is_null());
        let read = |value: Value| text(&value).map_err(|reason| format!("has a {name:?} that {reason}"));
        value.map(read).transpose()
    };
    let system = part("system")?.map(|system| Message::new("system", system));
    let asked = Message::new("user", part("human")?.unwrap_or_default());
    let mut reply = Message::new("assistant", part("assistant")?.unwrap_or_default());
    reply.trained = trained;
    reply.fields = remaining(fields);
    Ok(system.into_iter().chain([asked, reply]).collect())
}

/// A message, and whether it is a turn that only calls a tool.
fn message(mut fields: Fields) -> Result<(Message, bool), String> {
    let speaks = if fields.contains_key("role") { "role" } else { "from" };
    let written = match fields.shift_remove(speaks) {
        Some(Value::String(role)) => role,
        Some(other) => return Err(format!("has a {speaks:?} that is {}", kind(&other))),
        None => return Err(format!("has no \"role\" (has {})", names(&fields))),
    };
    let role = match speaker(&written) {
        Some(role) => role.to_owned(),
        None if speaks == "from" => {
            return Err(format!("is from {:?}, which is not a known speaker", clean_line(&written)));
        }
        None if written.is_empty() || written.len() > MAX_ROLE => {
            let shown: String = written.chars().take(20).collect();
            return Err(format!("has the role {:?}", clean_line(&shown)));
        }
        None => written,
    };
    let key = if fields.contains_key("content") { "content" } else { "value" };
    let given = fields.shift_remove(key).filter(|value| !value.is_null());
    let trained = weight(&mut fields)?;
    if role == CALL {
        let calls = tools::calls(&given.unwrap_or_default())
            .map_err(|reason| format!("is a tool call that cannot be read: it {reason}"))?;
        if calls.is_empty() {
            return Err("is a tool call without a call".to_owned());
        }
        let mut message = Message { tool_calls: calls, trained, ..Message::new("assistant", "") };
        thoughts(&mut fields, &mut message)?;
        message.fields = remaining(fields);
        return Ok((message, true));
    }
    let calls = called(&mut fields)?;
    let mut message = Message { trained, ..Message::new(role, "") };
    match given {
        Some(value) => {
            content(&value, &mut message).map_err(|reason| format!("has a {key:?} that {reason}"))?;
        }
        None if !calls.is_empty()
            || REASONING.iter().any(|name| fields.get(*name).is_some_and(Value::is_string)) => {}
        None => return Err(format!("has no \"content\" (has {})", names(&fields))),
    }
    message.tool_calls.extend(calls);
    thoughts(&mut fields, &mut message)?;
    message.fields = remaining(fields);
    Ok((message, false))
}

/// Takes what a message thinks from its fields.
fn thoughts(fields: &mut Fields, message: &mut Message) -> Result<(), String> {
    for name in REASONING {
        let Some(value) = fields.shift_remove(*name).filter(|value| !value.is_null()) else { continue };
        let reasoning = text(&value).map_err(|reason| format!("has a {name:?} that {reason}"))?;
        if reasoning.trim().is_empty() {
            continue;
        }
        if message.reasoning.as_ref().is_some_and(|other| *other != reasoning) {
            return Err(format!("has a {name:?} and other reasoning that says something else"));
        }
        message.reasoning = Some(reasoning);
    }
    Ok(())
}

/// In place of a role: a turn that calls a tool.
const CALL: &str = "tool_call";

/// The role of a speaker by a name in common use.
fn speaker(name: &str) -> Option<&'static str> {
    Some(match name.trim().to_lowercase().as_str() {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" | "ai" => "assistant",
        "tool" | "function" | "observation" | "function_response" | "tool_response" | "tool_result"
        | "ipython" => "tool",
        "function_call" | "tool_call" => CALL,
        _ => return None,
    })
}

/// The calls in a message's `tool_calls`, or in OpenAI's older `function_call`.
fn called(fields: &mut Fields) -> Result<Vec<Value>, String> {
    let mut all = Vec::new();
    for name in ["tool_calls", "function_call"] {
        let Some(value) = fields.shift_remove(name) else { continue };
        all.extend(tools::calls(&value).map_err(|reason| format!("has a {name:?} that {reason}"))?);
    }
    Ok(all)
}

fn remaining(mut fields: Fields) -> Fields {
    fields.retain(|_, value| !value.is_null());
    fields
}

/// Whether a message says that it is trained on.
fn weight(fields: &mut Fields) -> Result<Option<bool>, String> {
    let mut found: Option<bool> = None;
    for name in WEIGHTS {
        let Some(value) = fields.shift_remove(*name).filter(|value| !value.is_null()) else { continue };
        let said = match &value {
            Value::Bool(said) => Some(*said),
            Value::Number(number) => truth(&number.to_string()),
            Value::String(text) => truth(text),
            _ => None,
        };
        let Some(said) = said else {
            return Err(format!(
                "has {name:?} = {}, and a message is either trained on or not; write 1 or 0",
                clean_line(&value.to_string())
            ));
        };
        if found.is_some_and(|earlier| earlier != said) {
            return Err(format!("has a {name:?} that contradicts another of {}", WEIGHTS.join(", ")));
        }
        found = Some(said);
    }
    Ok(found)
}

/// A text, or a list of text parts, joined.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        // A dataset's numbers, such as the answer to a sum.
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(parts) if parts.len() > 1 && parts.iter().all(Value::is_string) => Err(format!(
            "is a list of {} texts where one is expected; give each a row of its own",
            parts.len()
        )),
        Value::Array(parts) => {
            let mut message = Message::new("user", "");
            self::parts(parts, &mut message)?;
            if !message.tool_calls.is_empty() || message.reasoning.is_some() {
                return Err("has a part that is not text".to_owned());
            }
            Ok(message.content)
        }
        other => Err(format!("is {} where text is expected", kind(other))),
    }
}

fn content(value: &Value, message: &mut Message) -> Result<(), String> {
    match value {
        Value::String(text) => message.content.clone_from(text),
        Value::Number(number) if message.role != "tool" => message.content = number.to_string(),
        Value::Array(list) if message.role != "tool" || list.iter().all(is_part) => parts(list, message)?,
        _ if message.role == "tool" => {
            message.content = python_text(value);
            message.result = Some(value.clone());
        }
        other => return Err(format!("is {} where text is expected", kind(other))),
    }
    Ok(())
}

fn is_part(value: &Value) -> bool {
    let has = |name: &str| value.get(name).is_some_and(Value::is_string);
    value.is_string()
        || (has("type")
            && (has("text") || has("content") || has("value") || value.get("image_url").is_some()))
}

/// Parts of a content: text, what the reply thinks, and calls of tools (Anthropic's `tool_use`, LLaMA-Factory's
/// `tool_call`).
fn parts(parts: &[Value], message: &mut Message) -> Result<(), String> {
    let mut reasoning = String::new();
    for part in parts {
        let name = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let of = |names: &[&str]| {
            let said = names.iter().find_map(|name| part.get(*name).filter(|said| !said.is_null()));
            match said {
                Some(Value::String(text)) => Ok(text.clone()),
                // Mistral's thoughts are parts themselves.
                Some(Value::Array(list))
                    if !list.iter().any(|inner| inner.get("type") == part.get("type")) =>
                {
                    text(&Value::Array(list.clone()))
                        .map_err(|reason| format!("has a part of type {:?} that {reason}", clean_line(name)))
                }
                _ => Err(format!("has a part of type {:?} without text", clean_line(name))),
            }
        };
        match name {
            "text" | "input_text" | "output_text" => match part {
                Value::String(text) => message.content.push_str(text),
                _ => message.content.push_str(&of(&["text", "value", "content"])?),
            },
            "refusal" => message.content.push_str(&of(&["refusal", "text"])?),
            "thinking" | "reasoning" => {
                reasoning.push_str(&of(&["thinking", "reasoning", "text", "value", "content"])?);
            }
            "tool_use" | "tool_call" | "function_call" => {
                // A table fills the members that a part does not have with nulls.
                let given = |name: &&str| part.get(*name).filter(|inside| !inside.is_null());
                let inside = ["value", "tool_call", "function_call"].iter().find_map(given);
                let calls = tools::calls(inside.unwrap_or(part))
                    .map_err(|reason| format!("has a part of type {name:?} that {reason}"))?;
                if calls.is_empty() {
                    return Err(format!("has a part of type {name:?} without a call"));
                }
                message.tool_calls.extend(calls);
            }
            other => {
                return Err(format!(
                    "has a part of type {:?}; only text can be trained on",
                    clean_line(other)
                ));
            }
        }
    }
    if !reasoning.is_empty() {
        message.reasoning = Some(reasoning);
    }
    Ok(())
}
