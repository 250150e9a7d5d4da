//! The conversation that a template gets: the row's messages under the project's rules for system prompts and
//! reasoning. Training and prompts for replies both come through here.

use super::Template;
use crate::config::{Config, Reasoning, SystemRole};
use crate::data::Message;
use crate::data::message::inline_reasoning;

/// Between a system prompt and the user message that it is put into.
const BETWEEN: &str = "\n\n";

impl Template {
    /// The messages as they are rendered: with `data.system`, with the system prompt put into the first user
    /// message where `data.system_role` or the template wants that, and without reasoning that
    /// `data.reasoning` drops.
    pub fn arranged(&self, messages: &[Message], config: &Config) -> Vec<Message> {
        let mut messages = with_system(messages, &config.data.system);
        if messages.iter().any(|message| message.role == "developer") && !self.mentions("developer") {
            for message in messages.iter_mut().filter(|message| message.role == "developer") {
                "system".clone_into(&mut message.role);
            }
        }
        if self.merges_system(&messages, config) {
            merge_system(&mut messages);
        }
        if config.data.reasoning == Reasoning::DropHistory {
            drop_history(&mut messages);
        }
        messages
    }

    /// Whether the system prompt of these messages is put into the first user message.
    pub(crate) fn merges_system(&self, messages: &[Message], config: &Config) -> bool {
        if self.is_none() || messages.first().is_none_or(|first| first.role != "system") {
            return false;
        }
        match config.data.system_role {
            SystemRole::Merge => true,
            SystemRole::Auto => self.compiled.as_ref().is_some_and(|compiled| compiled.habits.refuses_system),
        }
    }
}

/// `messages` with `system` before them, unless it is empty or they have a system message.
pub fn with_system(messages: &[Message], system: &str) -> Vec<Message> {
    let mut all = Vec::with_capacity(messages.len() + 1);
    if !system.is_empty() && messages.first().is_none_or(|message| !message.is_system()) {
        all.push(Message::new("system", system));
    }
    all.extend_from_slice(messages);
    all
}

fn merge_system(messages: &mut Vec<Message>) {
    let Some(user) = messages.iter().position(|message| message.role == "user") else { return };
    let system = messages.remove(0).content;
    let asked = &mut messages[user - 1].content;
    *asked =
        if system.trim().is_empty() { std::mem::take(asked) } else { format!("{system}{BETWEEN}{asked}") };
}

/// Removes what replies think, up to the last user message.
fn drop_history(messages: &mut [Message]) {
    let last = messages.iter().rposition(|message| message.role == "user").unwrap_or(0);
    for message in messages[..last].iter_mut().filter(|message| message.is_assistant()) {
        message.reasoning = None;
        if let Some((_, rest)) = inline_reasoning(&message.content) {
            message.content = rest.trim_start().to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::config;
    use crate::model::SpecialTokens;

    fn template(source: &str) -> Template {
        Template::compile("test", source, &SpecialTokens::default()).unwrap()
    }

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    const WITHOUT_SYSTEM: &str = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                                  {% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";

    fn talk() -> Vec<Message> {
        vec![Message::new("system", "Be brief."), Message::new("user", "a"), Message::new("assistant", "b")]
    }

    fn rendered(template: &Template, messages: &[Message], settings: &[&str]) -> String {
        template.render(&template.arranged(messages, &config("a.jsonl", settings)), false).unwrap()
    }

    #[test]
    fn a_system_prompt_is_merged_where_asked_or_needed() {
        assert_eq!(rendered(&template(PLAIN), &talk(), &[]), "[system]Be brief.[user]a[assistant]b");
        let merged = "[user]Be brief.\n\na[assistant]b";
        assert_eq!(rendered(&template(PLAIN), &talk(), &["data.system_role=merge"]), merged);
        assert_eq!(rendered(&template(WITHOUT_SYSTEM), &talk(), &[]), merged);
        assert_eq!(rendered(&template(WITHOUT_SYSTEM), &talk()[1..], &["data.system=\"Be brief.\""]), merged);
        let failing = template("{{ raise_exception('never') }}");
        assert!(!failing.merges_system(&talk(), &config("a.jsonl", &[])));
    }

    #[test]
    fn developer_becomes_system_where_the_template_has_no_such_role() {
        let mut messages = talk();
        messages[0].role = "developer".to_owned();
        assert!(rendered(&template(PLAIN), &messages, &[]).starts_with("[system]Be brief."));
        let knows = format!("{{# developer #}}{PLAIN}");
        assert!(rendered(&template(&knows), &messages, &[]).starts_with("[developer]Be brief."));
    }

    #[test]
    fn reasoning_of_earlier_turns_is_dropped() {
        let thinks = |role: &str, reasoning: &str, content: &str| Message {
            reasoning: Some(reasoning.to_owned()),
            ..Message::new(role, content)
        };
        let messages = [
            Message::new("user", "a"),
            thinks("assistant", "why", "b"),
            Message::new("assistant", "<think>\nwell\n</think>\n\nc"),
            Message::new("user", "d"),
            thinks("assistant", "last", "e"),
        ];
        let config = config("a.jsonl", &["data.reasoning=drop-history"]);
        let arranged = template(PLAIN).arranged(&messages, &config);
        assert_eq!(arranged[1], Message::new("assistant", "b"));
        assert_eq!(arranged[2], Message::new("assistant", "c"));
        assert_eq!(arranged[4], messages[4]);
    }
}
