//! Suites: prompts that every evaluation uses.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::EvalError;
use super::error::io_error;
use crate::data::{Extras, Message, extras_of};
use crate::hash::hex;
use crate::{files, json};

/// A suite is read by people; anything larger is not a suite.
const SUITE_LIMIT: u64 = 64 << 20;

/// Most values in one line.
const ROW_VALUES: usize = 1 << 20;

/// A file of prompts: JSON lines, each `{"prompt": TEXT}` or `{"messages": [{"role", "content"} …]}`, with
/// `"expected"` (a text, or any JSON value) if the right reply is known. If `messages` ends with the
/// assistant's message, that is the expected reply. `"tools"` and `"chat_template_kwargs"` go to the chat template, as in
/// rows of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    pub path: PathBuf,
    /// In order; at least one.
    pub prompts: Vec<SuitePrompt>,
    /// SHA-256 of the file.
    pub fingerprint: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuitePrompt {
    /// The conversation to be answered; ends with the user's message.
    pub messages: Vec<Message>,
    /// The right reply, if it is known.
    pub expected: Option<String>,
    /// Tools and variables for the chat template.
    pub extras: Extras,
    /// Line in the file, from 1.
    pub line: usize,
}

impl Suite {
    /// Reads a suite. All problems are reported together.
    pub fn load(path: &Path) -> Result<Self, EvalError> {
        let (file, _) = files::open(path).map_err(io_error("read", path))?;
        let mut reader = BufReader::new(file.take(SUITE_LIMIT));
        let (mut prompts, mut problems) = (Vec::new(), Vec::new());
        let mut digest = Sha256::new();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            if reader.read_until(b'\n', &mut text).map_err(io_error("read", path))? == 0 {
                break;
            }
            digest.update(&text);
            if text.trim_ascii().is_empty() {
                continue;
            }
            match prompt(&text, line) {
                Ok(prompt) => prompts.push(prompt),
                Err(problem) => problems.push((line, problem)),
            }
        }
        if prompts.is_empty() && problems.is_empty() {
            problems.push((0, "the suite is empty; write a line such as {\"prompt\": \"…\"}".to_owned()));
        }
        if problems.is_empty() {
            Ok(Self { path: path.to_owned(), prompts, fingerprint: hex(digest.finalize()) })
        } else {
            Err(EvalError::Suite { path: path.to_owned(), problems })
        }
    }
}

impl SuitePrompt {
    /// A prompt typed by the user.
    pub fn typed(text: impl Into<String>) -> Self {
        let messages = vec![Message::new("user", text)];
        Self { messages, expected: None, extras: Extras::default(), line: 0 }
    }

    /// The text of the last message.
    pub fn text(&self) -> &str {
        self.messages.last().map_or("", |message| &message.content)
    }

    /// The conversation, with a system prompt before it unless it has one or `system` is empty.
    pub fn conversation(&self, system: &str) -> Vec<Message> {
        let has_own = self.messages.first().is_some_and(|message| message.role == "system");
        let before = (!has_own && !system.is_empty()).then(|| Message::new("system", system));
        before.into_iter().chain(self.messages.iter().cloned()).collect()
    }
}

fn prompt(text: &[u8], line: usize) -> Result<SuitePrompt, String> {
    let row: Value = json::from_slice(text, ROW_VALUES).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(row) = row else { return Err("not a JSON object".to_owned()) };
    let mut expected = match row.get("expected") {
        None | Some(Value::Null) => None,
        Some(Value::String(expected)) => Some(expected.clone()),
        Some(expected) => Some(expected.to_string()),
    };
    let mut messages: Vec<Message> = match (row.get("prompt"), row.get("messages")) {
        (Some(Value::String(prompt)), None) => vec![Message::new("user", prompt)],
        (None, Some(messages)) => serde_json::from_value(messages.clone())
            .map_err(|error| format!("`messages` is not a list of {{\"role\", \"content\"}}: {error}"))?,
        (Some(_), Some(_)) => return Err("has both `prompt` and `messages`; keep one".to_owned()),
        (Some(_), None) => return Err("`prompt` is not a string".to_owned()),
        (None, None) => return Err("has neither `prompt` nor `messages`".to_owned()),
    };
    if messages.last().is_some_and(Message::is_assistant)
        && let Some(reply) = messages.pop()
    {
        let is_bad = row.get("label") == Some(&Value::Bool(false));
        expected = expected.or(Some(reply.content).filter(|_| !is_bad));
    }
    match messages.last() {
        None => Err("has no message to answer".to_owned()),
        Some(last) if last.role == "user" || last.role == "tool" => {
            Ok(SuitePrompt { messages, expected, extras: extras_of(&row)?, line })
        }
        Some(last) => Err(format!(
            "ends with a message of `{}`; the last one must be the user's",
            crate::text::clean_line(&last.role)
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damage, damaged};

    fn load(text: &str) -> Result<Suite, EvalError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        std::fs::write(&path, text).unwrap();
        Suite::load(&path)
    }

    #[test]
    fn prompts_may_have_either_form() {
        let suite = load(concat!(
            r#"{"prompt": "hi", "expected": {"a": 1}}"#,
            "\n\n",
            r#"{"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ho"}]}"#,
            "\n",
            r#"{"messages": [{"role": "user", "content": "hu"}, {"role": "assistant", "content": "ha"}]}"#,
        ))
        .unwrap();
        let seen: Vec<_> = suite
            .prompts
            .iter()
            .map(|prompt| (prompt.text(), prompt.expected.as_deref(), prompt.line))
            .collect();
        assert_eq!(seen, [("hi", Some(r#"{"a":1}"#), 1), ("ho", None, 3), ("hu", Some("ha"), 4)]);
        assert_eq!(suite.prompts[0].conversation("S")[0], Message::new("system", "S"));
        assert_eq!(suite.prompts[0].conversation("").len(), 1);
        assert_eq!(suite.prompts[1].conversation("S")[0].content, "be kind");
        assert_eq!(suite.fingerprint.len(), 64);
    }

    #[test]
    fn tools_and_template_variables_are_read_as_in_rows() {
        let suite = load(concat!(
            r#"{"prompt": "hi", "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"enable_thinking": false}}"#,
            "\n",
            r#"{"prompt": "ho", "tools": []}"#,
        ))
        .unwrap();
        let extras = &suite.prompts[0].extras;
        assert_eq!(extras.tools.as_ref().unwrap()[0]["function"]["name"], "f");
        assert_eq!(extras.variables["enable_thinking"], false);
        assert!(suite.prompts[1].extras.is_empty());
        let error = load(r#"{"prompt": "hi", "chat_template_kwargs": 3}"#).unwrap_err().to_string();
        assert!(error.contains("chat_template_kwargs"), "{error}");
    }

    #[test]
    fn all_problems_are_reported_with_their_lines() {
        let error = load(concat!(
            "nonsense\n",
            "[1]\n",
            "{}\n",
            r#"{"prompt": 3}"#,
            "\n",
            r#"{"prompt": "a", "messages": []}"#,
            "\n",
            r#"{"messages": []}"#,
            "\n",
            r#"{"messages": [{"role": "system", "content": "x"}]}"#,
            "\n",
            r#"{"messages": [{"role": "user"}]}"#,
            "\n",
            r#"{"prompt": "fine"}"#,
        ))
        .unwrap_err();
        let EvalError::Suite { problems, .. } = &error else { panic!("{error}") };
        assert_eq!(problems.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(error.to_string().contains("prompts.jsonl:3: has neither"), "{error}");
        assert!(load("\n\n").unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn the_sample_projects_suite_is_valid() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sample-data/tickets/prompts.jsonl");
        let suite = Suite::load(Path::new(path)).unwrap();
        assert_eq!(suite.prompts.len(), 12);
        assert!(suite.prompts.iter().all(|prompt| prompt.expected.is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_suite_is_refused_or_ends_with_a_question(damage in damage()) {
            let text = br#"{"prompt": "hi", "expected": {"a": 1}}
{"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ho"}]}
{"messages": [{"role": "user", "content": "hu"}, {"role": "assistant", "content": "ha"}]}"#;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("prompts.jsonl");
            std::fs::write(&path, damaged(text, &damage)).unwrap();
            if let Ok(suite) = Suite::load(&path) {
                prop_assert!(!suite.prompts.is_empty());
                for prompt in suite.prompts {
                    prop_assert!(prompt.messages.last().is_some_and(|last| !last.is_assistant()));
                }
            }
        }
    }
}
