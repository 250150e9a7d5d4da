//! Whether everything in a row stands in the text that is rendered from it.

use std::cell::OnceCell;
use std::collections::HashSet;

use super::message::{call_parts, inline_reasoning};
use super::template::Part;
use super::{Encoded, Extras, Message, Row, Template};
use crate::config::Config;
use crate::text::clean_line;

/// Longest tool name shown.
const SHOWN_NAME: usize = 40;

/// Something that a row says and that its text lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// Such as `the content of message 1 (system)`.
    pub(super) what: String,
    /// What to do; a sentence.
    pub(super) remedy: &'static str,
    /// Whether it is what an earlier reply thought, which many templates leave out on purpose.
    pub(super) is_history: bool,
}

/// What the template leaves out of a row with these sides.
pub(super) fn lost(row: &Row, sides: &[Encoded], template: &Template, config: &Config) -> Vec<Lost> {
    if template.is_none() {
        return Vec::new();
    }
    let mut all: Vec<Lost> = Vec::new();
    for (own, side) in row.example.conversations().iter().zip(sides) {
        let messages = template.arranged(own, config);
        for part in lost_parts(template, &messages, &row.extras, &side.text) {
            let found = describe(part, &messages, own.len(), &row.extras);
            if !all.contains(&found) {
                all.push(found);
            }
        }
    }
    all
}

fn lost_parts(template: &Template, messages: &[Message], extras: &Extras, text: &str) -> Vec<Part> {
    let mut lost: Vec<Part> = Vec::new();
    let text = Spaced { text, spaced: OnceCell::new() };
    for (index, message) in messages.iter().enumerate() {
        let thinks = message.is_assistant().then(|| inline_reasoning(&message.content)).flatten();
        let (inline, words) =
            thinks.map_or((None, message.content.as_str()), |(inline, rest)| (Some(inline), rest));
        // The template may write an object in a form of its own.
        if message.result.is_none() && !text.has(words) {
            lost.push(Part::Content(index));
        }
        let reasoning = message.reasoning.as_deref().into_iter().chain(inline);
        if reasoning.into_iter().any(|words| !text.has(words)) {
            lost.push(Part::Reasoning(index));
        }
    }
    // A word that is also said elsewhere stands in the text by chance. Marks do not.
    match template.probe(messages, extras) {
        // Fields of messages are reported for all rows together.
        Some(probe) => lost.extend(probe.lost().iter().filter(|part| !matches!(part, Part::Field(..)))),
        None => {
            for (index, message) in messages.iter().enumerate() {
                for (position, call) in message.tool_calls.iter().enumerate() {
                    let (name, _) = call_parts(call);
                    if name.is_some_and(|name| !text.has(name)) {
                        lost.push(Part::CallName(index, position));
                    }
                }
            }
        }
    }
    lost.sort_unstable();
    lost.dedup();
    // Of what is left out as a whole, the parts need no mention.
    let whole: HashSet<Part> = lost.iter().copied().collect();
    lost.retain(|part| match *part {
        Part::CallArguments(index, position) => !whole.contains(&Part::CallName(index, position)),
        Part::Description(index) => !whole.contains(&Part::Tool(index)),
        _ => true,
    });
    lost
}

/// A text, and the same with single spaces once that is asked for.
struct Spaced<'text> {
    text: &'text str,
    spaced: OnceCell<String>,
}

impl Spaced<'_> {
    /// Whether `words` stand in the text: as they are, as part of a JSON text, or with other white space.
    fn has(&self, words: &str) -> bool {
        let words = words.trim();
        if words.is_empty() || self.text.contains(words) {
            return true;
        }
        let escaped = serde_json::Value::from(words).to_string();
        if self.text.contains(&escaped[1..escaped.len() - 1]) {
            return true;
        }
        let spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.spaced.get_or_init(|| spaced(self.text)).contains(&spaced(words))
    }
}

/// In words, with the number that a message has in its row of `own` messages.
fn describe(part: Part, messages: &[Message], own: usize, extras: &Extras) -> Lost {
    let of = |index: usize| {
        // The project's system prompt stands before the row's messages; one that is merged is no message any more.
        match (index + 1 + own).checked_sub(messages.len()) {
            Some(number) if number > 0 => format!("message {number} ({})", clean_line(&messages[index].role)),
            _ => "data.system".to_owned(),
        }
    };
    let called = |index: usize, position: usize| {
        let name = messages[index].tool_calls.get(position).and_then(|call| call_parts(call).0);
        shown(name.unwrap_or("?"))
    };
    let offered = |index: usize| {
        let tool = extras.tools.as_ref().and_then(|tools| tools.get(index));
        let name = tool.and_then(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str());
        shown(name.unwrap_or("?"))
    };
    let followed = |index: usize| messages[index + 1..].iter().any(|message| message.role == "user");
    let mut is_history = false;
    let what = match part {
        Part::Content(index) => format!("the content of {}", of(index)),
        Part::Reasoning(index) => {
            is_history = followed(index);
            format!("the reasoning of {}", of(index))
        }
        Part::CallName(index, position) => {
            format!("the call of tool {} in {}", called(index, position), of(index))
        }
        Part::CallArguments(index, position) => {
            format!("the arguments of the call of tool {} in {}", called(index, position), of(index))
        }
        Part::Tool(index) => format!("the offered tool {}", offered(index)),
        Part::Description(index) => format!("the description of the offered tool {}", offered(index)),
        Part::Field(index, _) => format!("a field of {}", of(index)),
    };
    let remedy = match part {
        Part::Content(index) if messages[index].is_system() => {
            "Set data.system_role = \"merge\" to put it into the first user message"
        }
        Part::CallName(..) | Part::CallArguments(..) | Part::Tool(_) | Part::Description(_) => {
            "No built-in template writes tools: set data.template to the .jinja file of a model that was taught to use \
             them"
        }
        _ => "Set data.template to one that writes it, or quarantine the rows",
    };
    Lost { what, remedy, is_history }
}

fn shown(name: &str) -> String {
    format!("{:?}", clean_line(&name.chars().take(SHOWN_NAME).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::SpecialTokens;

    fn lost_of(source: &str, messages: &serde_json::Value, tools: Option<serde_json::Value>) -> Vec<String> {
        let template = Template::compile("test", source, &SpecialTokens::default()).unwrap();
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
        let extras = Extras { tools, ..Extras::default() };
        let text = template.render_marked(&messages, &extras, false).unwrap().text;
        let parts = lost_parts(&template, &messages, &extras, &text);
        parts.into_iter().map(|part| describe(part, &messages, messages.len(), &extras).what).collect()
    }

    const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}";

    #[test]
    fn nothing_is_lost_where_everything_is_written() {
        let talk = json!([
            {"role": "system", "content": " Be brief.\n"},
            {"role": "user", "content": "a  b\nc"},
            {"role": "assistant", "content": "<think>\nwell\n</think>\n\nd"},
        ]);
        assert_eq!(lost_of(PLAIN, &talk, None), [] as [&str; 0]);
    }

    #[test]
    fn tools_and_calls_that_the_template_does_not_know_are_lost() {
        let tools = json!([{"type": "function", "function": {"name": "stock", "parameters": {}}}]);
        let talk = json!([
            {"role": "user", "content": "stock of K-7? call stock with K-7"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "stock", "arguments": {"item": "K-7"}}}]},
        ]);
        assert_eq!(
            lost_of(PLAIN, &talk, Some(tools.clone())),
            ["the call of tool \"stock\" in message 2 (assistant)", "the offered tool \"stock\"",]
        );
        let knows_tools = format!("{{{{ tools | tojson }}}}{PLAIN}");
        assert_eq!(lost_of(&knows_tools, &talk, Some(tools.clone())).len(), 1);
        let names_calls = "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls \
                           %}{{ c.function.name }}{% endfor %}{% endfor %}";
        assert_eq!(
            lost_of(names_calls, &talk, Some(tools)),
            ["the arguments of the call of tool \"stock\" in message 2 (assistant)"]
        );
    }

    #[test]
    fn short_contents_and_system_prompts_are_missed_too() {
        let source = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let talk = json!([
            {"role": "system", "content": "a"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]);
        assert_eq!(lost_of(source, &talk, None), ["the content of message 1 (system)"]);
    }

    #[test]
    fn reasoning_that_is_cut_out_is_lost() {
        let source =
            "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}{% endfor %}";
        let talk = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>why</think>b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "reasoning_content": "because"},
        ]);
        assert_eq!(
            lost_of(source, &talk, None),
            ["the reasoning of message 2 (assistant)", "the reasoning of message 4 (assistant)"]
        );
    }
}
