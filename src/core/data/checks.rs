//! Checks of single rows.

use regex::Regex;

use super::near::{Signature, signature};
use super::{Encoded, Example, Row, Tokenizer};
use crate::hash::fnv1a;

/// Shortest special token that is searched for in texts, in bytes.
const MIN_SPECIAL: usize = 3;
/// The end-of-turn token must be among this many tokens at the end of a reply: templates may write white
/// space after it.
const REPLY_END: usize = 3;

/// The patterns searched for in every row.
pub(super) struct Checks<'tokenizer> {
    tokenizer: &'tokenizer Tokenizer,
    email: Option<Regex>,
    special: Option<Regex>,
    stop: Vec<u32>,
}

/// What the checks found in a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// A hash of the row's texts without system messages, case and spacing; equal for rows with the same
    /// words.
    pub(super) key: u64,
    pub(super) signature: Option<Signature>,
    /// Whether the row has a reply and it is empty; for a preference pair, whether either reply is.
    pub(super) empty_reply: bool,
    /// What is broken in its text.
    pub(super) broken: Option<&'static str>,
    /// A special token that its text contains.
    pub(super) special: Option<String>,
    pub(super) email: bool,
}

/// What the checks found in a row's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TokenFacts {
    /// Number of trained tokens; for several sides, that of the side with the fewest.
    pub(super) trained: usize,
    /// Whether the row has several sides, all with the same tokens.
    pub(super) same_sides: bool,
    pub(super) double_bos: bool,
    /// `None` if the row has no reply.
    pub(super) end_trained: Option<bool>,
}

impl<'tokenizer> Checks<'tokenizer> {
    pub(super) fn new(tokenizer: &'tokenizer Tokenizer, stop: Vec<u32>) -> Self {
        let texts: Vec<String> = tokenizer
            .special_tokens()
            .iter()
            .filter(|(text, _)| text.len() >= MIN_SPECIAL)
            .map(|(text, _)| regex::escape(text))
            .collect();
        Checks {
            tokenizer,
            email: Regex::new(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}").ok(),
            special: Regex::new(&texts.join("|")).ok().filter(|_| !texts.is_empty()),
            stop,
        }
    }

    pub(super) fn row(&self, row: &Row) -> Facts {
        if let Example::Tokens { input_ids, .. } = &row.example {
            return Facts {
                key: fnv1a(input_ids.iter().flat_map(|id| id.to_le_bytes())),
                ..Facts::default()
            };
        }
        let texts = texts(&row.example);
        let normal = normalised(&texts);
        let any = |pattern: &Option<Regex>| {
            let pattern = pattern.as_ref()?;
            texts.iter().find_map(|text| pattern.find(text)).map(|found| found.as_str().to_owned())
        };
        Facts {
            key: fnv1a(normal.bytes()),
            signature: signature(&normal),
            empty_reply: replies(&row.example).any(|reply| reply.trim().is_empty())
                && row.extras.fields.iter().all(|fields| !fields.contains_key("tool_calls")),
            broken: texts.iter().find_map(|text| broken(text)),
            special: any(&self.special),
            email: any(&self.email).is_some(),
        }
    }

    pub(super) fn tokens(&self, row: &Row, sides: &[Encoded]) -> TokenFacts {
        let facts = sides.iter().map(|side| self.side(row, side)).reduce(|one, other| TokenFacts {
            trained: one.trained.min(other.trained),
            same_sides: false,
            double_bos: one.double_bos || other.double_bos,
            end_trained: one
                .end_trained
                .into_iter()
                .chain(other.end_trained)
                .reduce(|one, other| one && other),
        });
        let same_sides = sides.len() > 1 && sides.windows(2).all(|pair| pair[0].ids == pair[1].ids);
        TokenFacts { same_sides, ..facts.unwrap_or_default() }
    }

    fn side(&self, row: &Row, encoded: &Encoded) -> TokenFacts {
        let bos = self.tokenizer.bos();
        let has_reply = row.example.reply().is_some() && !encoded.truncated;
        let last = encoded.trained.iter().rposition(|&trained| trained);
        let end_trained = last.filter(|_| has_reply).map(|last| {
            let from = (last + 1).saturating_sub(REPLY_END);
            (from..=last).any(|at| encoded.trained[at] && self.stop.contains(&encoded.ids[at]))
        });
        TokenFacts {
            trained: encoded.trained.iter().filter(|&&trained| trained).count(),
            same_sides: false,
            double_bos: bos.is_some()
                && encoded.ids.len() > 1
                && encoded.ids[..2].iter().all(|&id| Some(id) == bos),
            end_trained,
        }
    }
}

/// The texts that the model is to prefer or avoid: the last reply, or both sides' replies.
fn replies(example: &Example) -> impl Iterator<Item = &str> {
    let rejected = match example {
        Example::Preference { rejected, .. } => Some(rejected.as_str()),
        _ => None,
    };
    example.reply().into_iter().chain(rejected)
}

/// The texts of a row without system messages, which are often the same in all rows.
fn texts(example: &Example) -> Vec<&str> {
    match example {
        Example::Messages(messages) => messages
            .iter()
            .filter(|message| message.role != "system")
            .map(|message| message.content.as_str())
            .collect(),
        Example::PromptCompletion { prompt, completion } => vec![prompt, completion],
        Example::Text(text) => vec![text],
        Example::Preference { prompt, chosen, rejected } => prompt
            .iter()
            .filter(|message| message.role != "system")
            .map(|message| message.content.as_str())
            .chain([chosen.as_str(), rejected.as_str()])
            .collect(),
        Example::Tokens { .. } => Vec::new(),
    }
}

fn normalised(texts: &[&str]) -> String {
    let mut normal = String::new();
    for word in texts.iter().flat_map(|text| text.split_whitespace()) {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.extend(word.chars().flat_map(char::to_lowercase));
    }
    normal
}

fn broken(text: &str) -> Option<&'static str> {
    text.chars().find_map(|character| match character {
        '\u{fffd}' => Some("contains U+FFFD, which marks text that was decoded wrongly"),
        '\n' | '\r' | '\t' => None,
        control if control.is_control() => Some("contains control characters"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::tiny;
    use crate::data::{Extras, Message, Origin, Split};

    fn facts(example: Example) -> Facts {
        let tokenizer = tiny("bytelevel");
        let row = Row {
            index: 0,
            origin: Origin { file: "a.jsonl".into(), line: 1 },
            split: Split::Train,
            example,
            extras: Extras::default(),
        };
        Checks::new(&tokenizer, Vec::new()).row(&row)
    }

    fn talk(messages: &[(&str, &str)]) -> Facts {
        facts(Example::Messages(
            messages.iter().map(|&(role, content)| Message::new(role, content)).collect(),
        ))
    }

    #[test]
    fn equal_words_have_the_same_key() {
        let key = |messages: &[(&str, &str)]| talk(messages).key;
        let one = key(&[("user", "Hello  there"), ("assistant", "Hi")]);
        assert_eq!(one, key(&[("system", "Be brief."), ("user", "hello\nthere"), ("assistant", "hi")]));
        assert_ne!(one, key(&[("user", "Hello there"), ("assistant", "Ho")]));
    }

    #[test]
    fn texts_are_checked() {
        assert!(talk(&[("user", "write to ann.b+c@mail.example.org!")]).email);
        assert!(!talk(&[("user", "@ann, see a@b and 3@4.5")]).email);
        assert_eq!(talk(&[("user", "say <|im_end|> now")]).special.as_deref(), Some("<|im_end|>"));
        assert_eq!(talk(&[("user", "say im_end")]).special, None);
        assert_eq!(
            talk(&[("user", "caf\u{fffd}")]).broken,
            Some("contains U+FFFD, which marks text that was decoded wrongly")
        );
        assert_eq!(talk(&[("user", "a\u{1b}[0m")]).broken, Some("contains control characters"));
        assert_eq!(talk(&[("user", "a\r\n\tb")]).broken, None);
        assert!(talk(&[("user", "a"), ("assistant", " \n")]).empty_reply);
        assert!(!talk(&[("user", "a"), ("assistant", "b")]).empty_reply);
        assert!(!talk(&[("user", "a")]).empty_reply);
    }
}
