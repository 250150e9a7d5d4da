//! How many tokens of a row each role says.

use super::{Encoded, Row, Template};
use crate::config::Config;

/// The tokens of each role in the text of a row's first side, in the order in which the roles first speak. Tokens of the
/// template, tool calls, and words that the template writes differently belong to none.
pub(super) fn tokens_of_roles(
    row: &Row,
    side: &Encoded,
    template: &Template,
    config: &Config,
) -> Vec<(String, usize)> {
    let Some(own) = row.example.conversations().into_iter().next() else { return Vec::new() };
    let messages = if template.is_none() { own } else { template.arranged(&own, config) };
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut end = 0;
    for message in &messages {
        for words in message.reasoning.as_deref().into_iter().chain([message.content.as_str()]) {
            let words = words.trim();
            let place = side.text.get(end..).and_then(|rest| rest.find(words)).filter(|_| !words.is_empty());
            let Some(start) = place.map(|place| end + place) else { continue };
            end = start + words.len();
            let before = |place: usize| side.offsets.partition_point(|(from, _)| *from < place);
            let tokens = before(end) - before(start);
            match found.iter_mut().find(|(role, _)| *role == message.role) {
                Some((_, known)) => *known += tokens,
                None => found.push((message.role.clone(), tokens)),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::data::testing::{config, json_lines, tiny};
    use crate::data::{Template, encode, read_dataset};
    use crate::model::SpecialTokens;

    #[test]
    fn tokens_belong_to_the_role_that_says_them() {
        let folder = tempfile::tempdir().unwrap();
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let turns =
            [turn("user", "a b"), turn("assistant", "user"), turn("user", "c"), turn("assistant", "d e f")];
        std::fs::write(folder.path().join("a.jsonl"), json_lines(&[json!({"messages": turns})])).unwrap();
        let config = config("a.jsonl", &["data.eval=0", "data.system=be brief"]);
        let row = read_dataset(&config, folder.path()).unwrap().rows.all().remove(0);
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}";
        let template = Template::compile("own", source, &SpecialTokens::default()).unwrap();
        let tokenizer = tiny("bytelevel");
        let side = encode(&row, &tokenizer, &template, &config).unwrap().remove(0);
        let count = |text: &str| tokenizer.encode(text, false).unwrap().ids.len();
        let found = super::tokens_of_roles(&row, &side, &template, &config);
        let roles: Vec<&str> = found.iter().map(|(role, _)| role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant"]);
        assert!(found[1].1 >= 2 && found[1].1 <= count("a b") + count("c") + 2, "{found:?}");
        assert!(found.iter().map(|(_, tokens)| tokens).sum::<usize>() < side.ids.len());
    }
}
