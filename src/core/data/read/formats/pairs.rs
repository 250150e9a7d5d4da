//! Preference pairs: the forms of TRL, OpenAI, LLaMA-Factory, Argilla and ms-swift.

use serde_json::{Map, Value};

use super::{Reader, kind, parsed, parsed_list, tools, turns};
use crate::data::example::shared_beginning;
use crate::data::{Example, Extras, Message};

const NO_PROMPT: &str = "no \"prompt\", and \"chosen\" and \"rejected\" have no common beginning";

/// Names of the two sides.
const SIDES: &[(&str, &str)] = &[
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
];
/// Names of a reply that could have followed in place of the last one of the row's conversation.
const REJECTED_BESIDE_MESSAGES: &[&str] = &["rejected_response", "rejected_messages"];

/// Whether a field is a side of a pair under one of these names.
pub(in crate::data) fn is_side(name: &str) -> bool {
    SIDES.iter().any(|(chosen, rejected)| name == *chosen || name == *rejected)
        || REJECTED_BESIDE_MESSAGES.contains(&name)
}

/// The names of the two sides among the fields of a row.
pub(super) fn sides(has: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    SIDES.iter().copied().find(|(chosen, rejected)| has(chosen) && has(rejected))
}

/// The names of a conversation and of what could have followed in place of its last reply.
pub(super) fn beside_messages(has: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    let rejected = REJECTED_BESIDE_MESSAGES.iter().copied().find(|rejected| has(rejected))?;
    has("messages").then_some(("messages", rejected))
}

impl Reader {
    /// The prompt is in a field of its own, or at the beginning of both sides.
    pub(super) fn preference(&mut self) -> Result<(Example, Extras), String> {
        let has = |name: &str| self.fields.contains_key(name);
        let names = sides(has).or_else(|| beside_messages(has));
        let (chosen_name, rejected_name) = names.unwrap_or(("chosen", "rejected"));
        let chosen = parsed_list(self.needed(chosen_name)?);
        let rejected = parsed_list(self.needed(rejected_name)?);
        let mut offered = None;
        let prompt = self.asked(&mut offered)?;
        let system = self.system()?;
        let tools = self.tools()?.or(offered);
        let extras = Extras { tools, ..Extras::default() };
        if let (None, None, Value::String(chosen), Value::String(rejected)) =
            (&prompt, &system, &chosen, &rejected)
        {
            if shared_beginning(chosen, rejected) == 0 {
                return Err(NO_PROMPT.to_owned());
            }
            let answer = |text: &String| Message::new("assistant", text);
            let (chosen, rejected) = (answer(chosen), answer(rejected));
            return Ok((Example::Preference { prompt: Vec::new(), chosen, rejected }, extras));
        }
        let mut chosen = turns::conversation_or_text(&chosen, chosen_name, "assistant")?;
        let is_text = !turns::is_one(&rejected);
        let mut rejected = turns::conversation_or_text(&rejected, rejected_name, "assistant")?;
        // Only the reply that could have followed, without the conversation before it.
        if chosen_name == "messages" && (is_text || rejected.len() == 1) {
            let before = chosen.len().saturating_sub(1);
            rejected.splice(..0, chosen[..before].iter().cloned());
        }
        let most = chosen.len().min(rejected.len()).saturating_sub(1);
        let shared = chosen.iter().zip(&rejected).take(most);
        let shared = shared.take_while(|(left, right)| left.says_the_same(right)).count();
        let before: Vec<Message> = chosen.drain(..shared).collect();
        rejected.drain(..shared);
        let mut prompt = match prompt {
            // A text prompt beside whole conversations is only for people to read, if they say it too.
            Some(prompt) if prompt.is_text && !before.is_empty() => {
                let text =
                    prompt.messages.into_iter().next().map(|message| message.content).unwrap_or_default();
                if !before.iter().any(|message| message.content.trim() == text.trim()) {
                    self.fields.insert("prompt".to_owned(), text.into());
                }
                before
            }
            Some(prompt) => joined(prompt.messages, before),
            None => before,
        };
        if prompt.is_empty() {
            return Err(NO_PROMPT.to_owned());
        }
        if let Some(system) = system
            && !prompt[0].is_system()
        {
            prompt.insert(0, system);
        }
        let (chosen, rejected) = (answer(chosen, chosen_name)?, answer(rejected, rejected_name)?);
        Ok((Example::Preference { prompt, chosen, rejected }, extras))
    }

    /// The prompt of a pair where it has a field of its own, and the tools of OpenAI's `input`.
    fn asked(&mut self, offered: &mut Option<Value>) -> Result<Option<Asked>, String> {
        if let Some(instruction) = self.optional_text("instruction")? {
            let input = self.optional_text("input")?;
            let text = [Some(instruction), input].into_iter().flatten().collect::<Vec<_>>().join("\n\n");
            return Ok(Some(Asked { messages: vec![Message::new("user", text)], is_text: true }));
        }
        let Some(key) = self.first_of(&["prompt", "input", "conversations", "messages", "question", "query"])
        else {
            return Ok(None);
        };
        let mut value = parsed_list(self.needed(key)?);
        if let Value::Object(mut input) = parsed(&value)
            && let Some(messages) = input.shift_remove("messages")
        {
            let tools = input.shift_remove("tools").unwrap_or_default();
            if !tools.is_null() {
                *offered = tools::offered(&tools).map_err(|reason| format!("\"{key}.tools\" {reason}"))?;
            }
            self.put_back(key, input);
            value = parsed_list(messages);
        }
        let is_text = !turns::is_one(&value);
        if is_text && value.is_object() {
            return Err(format!("{key:?} is {} where text or messages are expected", kind(&value)));
        }
        Ok(Some(Asked { messages: turns::conversation_or_text(&value, key, "user")?, is_text }))
    }

    /// Members of an object that were not read become fields of the row, so that they are reported.
    fn put_back(&mut self, key: &str, members: Map<String, Value>) {
        for (name, value) in members {
            self.fields.insert(format!("{key}.{name}"), value);
        }
    }
}

/// The prompt of a pair.
struct Asked {
    messages: Vec<Message>,
    /// Whether it was one text.
    is_text: bool,
}

/// The prompt, with the beginning that both sides share.
fn joined(mut messages: Vec<Message>, mut before: Vec<Message>) -> Vec<Message> {
    let repeated = before.len() >= messages.len()
        && messages.iter().zip(&before).all(|(left, right)| left.says_the_same(right));
    if repeated {
        return before;
    }
    messages.append(&mut before);
    messages
}

/// The one reply that only this side has.
fn answer(messages: Vec<Message>, name: &str) -> Result<Message, String> {
    let mut messages = messages.into_iter();
    match (messages.next(), messages.next()) {
        (Some(message), None) if message.is_assistant() => Ok(Message { trained: None, ..message }),
        _ => Err(format!(
            "{name:?} must end in exactly one assistant message that differs from the other side"
        )),
    }
}
