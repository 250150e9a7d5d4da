//! A turn of a conversation, in the one form into which every dataset format is read.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`; a template may know others.
    pub role: String,
    pub content: String,
    /// What a reply thinks before it answers.
    #[serde(default, rename = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Tools that a reply calls: `{"type": "function", "function": {"name": …, "arguments": {…}}}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// A tool's result that is not a text; `content` is its JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Whether the row says that it is to be trained on, or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<bool>,
    /// All other fields, for the chat template: `name`, `tool_call_id` …
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message {
            role: role.into(),
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            result: None,
            trained: None,
            fields: Map::new(),
        }
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Whether it gives instructions for the whole conversation.
    pub fn is_system(&self) -> bool {
        self.role == "system" || self.role == "developer"
    }

    /// Whether it has nothing but a role and a text.
    pub(crate) fn is_plain(&self) -> bool {
        self.reasoning.is_none()
            && self.tool_calls.is_empty()
            && self.result.is_none()
            && self.trained.is_none()
            && self.fields.is_empty()
    }

    /// Whether it says the same as another message. Neither fields for the template nor weights count.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.role == other.role
            && self.content == other.content
            && self.reasoning == other.reasoning
            && self.tool_calls == other.tool_calls
    }

    /// Its texts: reasoning, content, and each tool call as JSON.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        let calls = self.tool_calls.iter().map(Value::to_string);
        self.reasoning.iter().cloned().chain([self.content.clone()]).chain(calls)
    }

    /// What it says, for people: its content, or else the tool calls of a reply without one.
    pub fn shown(&self) -> String {
        if !self.content.is_empty() || self.tool_calls.is_empty() {
            return self.content.clone();
        }
        self.tool_calls.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
    }
}

/// The name and the arguments of a tool call.
pub(crate) fn call_parts(call: &Value) -> (Option<&str>, Option<&Value>) {
    let function = call.get("function").unwrap_or(call);
    (function.get("name").and_then(Value::as_str), function.get("arguments"))
}

/// Splits a reply into the reasoning that it holds between `<think>` and `</think>`, and the rest. The first
/// tag may be missing, where the generation prompt writes it.
pub(crate) fn inline_reasoning(content: &str) -> Option<(&str, &str)> {
    let (before, rest) = content.split_once("</think>")?;
    let reasoning = before.split_once("<think>").map_or(before, |(_, reasoning)| reasoning);
    Some((reasoning, rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plain_message_is_written_as_role_and_content() {
        let plain = Message::new("user", "a");
        assert_eq!(serde_json::to_value(&plain).unwrap(), json!({"role": "user", "content": "a"}));
        let full = json!({
            "role": "assistant", "content": "", "reasoning_content": "b", "name": "Ann",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        });
        let message: Message = serde_json::from_value(full.clone()).unwrap();
        assert_eq!(message.fields.len(), 1);
        assert_eq!(serde_json::to_value(&message).unwrap(), full);
        assert!(plain.is_plain() && !message.is_plain());
    }

    #[test]
    fn reasoning_in_a_text_is_split_off() {
        assert_eq!(inline_reasoning("<think>\na\n</think>\n\nb"), Some(("\na\n", "\n\nb")));
        assert_eq!(inline_reasoning("a</think>b"), Some(("a", "b")));
        assert_eq!(inline_reasoning("<think>a"), None);
    }
}
