//! Checks of single rows.

mod advice;
mod encoding;
mod markdown;
mod outliers;
mod replies;
#[cfg(test)]
mod sample_data;
mod secrets;

use std::borrow::Cow;

use regex::Regex;

use super::near::{Signature, signature};
use super::read::prompt_key;
use super::{Encoded, Example, Message, ProblemKind, Row, Severity, Template, Tokenizer, row_tokens};
use crate::config::{Config, ObjectiveKind, TrainOn};
use crate::hash::fnv1a;

pub(super) use advice::{Sizes, advice};
pub(super) use outliers::{length_preference, outliers};

/// Shortest special token that is searched for in texts, in bytes.
const MIN_SPECIAL: usize = 3;
/// The end-of-turn token must be among this many tokens at the end of a reply: templates may write white
/// space after it.
const REPLY_END: usize = 3;

/// The patterns searched for in every row.
pub(super) struct Checks<'tokenizer> {
    tokenizer: &'tokenizer Tokenizer,
    special: Option<Regex>,
    replies: replies::Replies,
    secrets: secrets::Secrets,
    stop: Vec<u32>,
    train_on: TrainOn,
    /// Whether the objective wants replies that are JSON.
    wants_json: bool,
    /// What the template writes before a reply.
    header: String,
}

/// What the checks found in a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// A hash of all that the row says, tools and system prompts included, without case and spacing.
    pub(super) key: u64,
    /// As `key`, of what stands before the last reply; `None` if the row has no prompt.
    pub(super) asked: Option<u64>,
    /// A hash of the prompt's words without system prompts and tools.
    pub(super) prompt: Option<u64>,
    pub(super) signature: Option<Signature>,
    /// What is suspicious in its texts.
    pub(super) found: Vec<Found>,
}

/// Something suspicious in a row's texts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) kind: ProblemKind,
    pub(super) severity: Severity,
    pub(super) what: String,
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
    /// Whether nothing but special tokens and white space is trained in one of its replies.
    pub(super) says_nothing: bool,
    /// Whether a reply writes its thoughts, and whether there are any.
    pub(super) thinks: Option<bool>,
}

impl<'tokenizer> Checks<'tokenizer> {
    pub(super) fn new(
        tokenizer: &'tokenizer Tokenizer,
        template: &Template,
        config: &Config,
        stop: Vec<u32>,
    ) -> Self {
        let texts: Vec<String> = tokenizer
            .special_tokens()
            .iter()
            .filter(|(text, _)| text.len() >= MIN_SPECIAL)
            .map(|(text, _)| regex::escape(text))
            .collect();
        Checks {
            tokenizer,
            special: Regex::new(&texts.join("|")).ok().filter(|_| !texts.is_empty()),
            replies: replies::Replies::new(),
            secrets: secrets::Secrets::new(),
            stop,
            train_on: config.data.train_on,
            wants_json: config.objective.kind == ObjectiveKind::Json,
            header: template.any_reply_header().to_owned(),
        }
    }

    /// `signs` whether the row is compared for near-duplicates.
    pub(super) fn row(&self, row: &Row, signs: bool) -> Facts {
        if let Example::Tokens { input_ids, .. } = &row.example {
            return Facts {
                key: fnv1a(input_ids.iter().flat_map(|id| id.to_le_bytes())),
                ..Facts::default()
            };
        }
        let texts = texts(&row.example);
        let all = everything(row);
        let asked = row.example.prompt().map(|prompt| {
            let texts: Vec<String> = prompt.iter().flat_map(said).chain(offered(row)).collect();
            fnv1a(normalised(&texts).bytes())
        });
        Facts {
            key: fnv1a(normalised(&all).bytes()),
            asked,
            prompt: prompt_key(row),
            signature: if signs { signature(&normalised(&texts)) } else { None },
            found: self.found(row, &all),
        }
    }

    /// What is suspicious in a row that says `all` of this.
    fn found(&self, row: &Row, all: &[String]) -> Vec<Found> {
        use ProblemKind as Kind;
        use Severity::{Note, Warning};
        let mut found = Vec::new();
        let mut add =
            |kind: Kind, severity: Severity, what: String| found.push(Found { kind, severity, what });
        let first = |check: &dyn Fn(&str) -> Option<String>| all.iter().find_map(|text| check(text));
        let replies: Vec<_> = replies(&row.example).collect();
        if replies.iter().any(|reply| reply.content.trim().is_empty() && reply.tool_calls.is_empty()) {
            add(Kind::EmptyReply, Warning, "its reply is empty".to_owned());
        }
        if let Some(broken) = first(&|text| broken(text).map(ToOwned::to_owned)) {
            add(Kind::BrokenText, Warning, broken);
        }
        if let Some(token) = first(&|text| Some(self.special.as_ref()?.find(text)?.as_str().to_owned())) {
            let what = format!("its text spells {token}, which becomes that special token");
            add(Kind::SpecialTokenInText, Warning, what);
        }
        if let Some(piece) = first(&encoding::mojibake) {
            add(
                Kind::Mojibake,
                Warning,
                format!("holds {piece}: it was decoded with the wrong character set"),
            );
        }
        if all.iter().any(|text| encoding::escaped(text)) {
            let what = "holds escapes such as \\n or &amp; where characters are meant";
            add(Kind::EscapedText, Note, what.to_owned());
        }
        if let Some(secret) = first(&|text| self.secrets.secret(text).map(ToOwned::to_owned)) {
            add(Kind::Secret, Warning, format!("holds {secret}; a model can repeat what it learned"));
        }
        if let Some(personal) = first(&|text| self.secrets.personal(text).map(ToOwned::to_owned)) {
            add(Kind::PersonalData, Note, format!("holds {personal}"));
        }
        if all.iter().any(|text| replies::repetition(text).is_some()) {
            add(Kind::Repetition, Warning, "repeats the same words again and again".to_owned());
        }
        // Answers that are to be avoided may be bad.
        let Some(reply) = replies.first().filter(|_| row.extras.label != Some(false)) else { return found };
        let reply = reply.content.as_str();
        if self.replies.refusal(reply) {
            add(Kind::Refusal, Note, "its reply declines to answer".to_owned());
        }
        if let Some(what) = self.replies.boilerplate(reply) {
            add(Kind::Boilerplate, Warning, what.to_owned());
        }
        if replies::unclosed_fence(reply) {
            add(Kind::UnclosedFence, Warning, "a code fence in its reply is never closed".to_owned());
        }
        if self.wants_json
            && let Some(reason) = replies::broken_json(reply)
        {
            let what = format!("the objective wants JSON, and its reply is not: {reason}");
            add(Kind::BrokenJson, Warning, what);
        }
        let prompt = row.example.prompt().and_then(|prompt| prompt.last().cloned());
        if prompt.as_ref().is_some_and(|prompt| prompt.role == "user" && prompt.content.trim().is_empty()) {
            add(Kind::EmptyPrompt, Note, "its prompt is empty".to_owned());
        }
        if prompt.is_some_and(|prompt| replies::echoes(&prompt.content, reply)) {
            add(Kind::EchoedPrompt, Warning, "its reply repeats the prompt".to_owned());
        }
        found
    }

    pub(super) fn tokens(&self, row: &Row, sides: &[Encoded]) -> TokenFacts {
        let facts = sides.iter().map(|side| self.side(row, side)).reduce(|one, other| TokenFacts {
            trained: one.trained.min(other.trained),
            same_sides: false,
            double_bos: one.double_bos || other.double_bos,
            says_nothing: one.says_nothing || other.says_nothing,
            thinks: one.thinks.into_iter().chain(other.thinks).reduce(|one, other| one || other),
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
            says_nothing: has_reply && self.train_on != TrainOn::All && self.says_nothing(encoded),
            thinks: thinks(encoded),
        }
    }

    /// Whether a reply is nothing but the token that ends it. The trained parts of one reply count together.
    fn says_nothing(&self, encoded: &Encoded) -> bool {
        let (mut said, mut ended, mut gap) = (String::new(), false, false);
        let mut is_nothing = false;
        let mut finish = |said: &mut String| {
            // A generation block may open at the header of the reply.
            let words = said.strip_prefix(self.header.as_str()).unwrap_or(said).trim();
            is_nothing |= words.is_empty();
            said.clear();
        };
        for piece in row_tokens(encoded) {
            if !piece.trained {
                gap = true;
                continue;
            }
            if ended && gap {
                finish(&mut said);
                ended = false;
            }
            gap = false;
            if self.stop.contains(&piece.id) {
                ended = true;
            } else {
                said.push_str(&piece.text);
            }
        }
        finish(&mut said);
        is_nothing
    }
}

/// The replies that the model is to prefer or avoid: the last one, or those of both sides.
fn replies(example: &Example) -> impl Iterator<Item = Cow<'_, Message>> {
    let rejected = example.answers().map(|[_, rejected]| Cow::Borrowed(rejected));
    example.reply().into_iter().chain(rejected)
}

/// The texts of a row without system messages, which are often the same in all rows.
fn texts(example: &Example) -> Vec<String> {
    let said = |messages: &[Message]| -> Vec<String> {
        messages.iter().filter(|message| !message.is_system()).flat_map(Message::texts).collect()
    };
    match example {
        Example::Messages(messages) => said(messages),
        Example::PromptCompletion { prompt, completion } => vec![prompt.clone(), completion.clone()],
        Example::Text(text) => vec![text.clone()],
        Example::Preference { prompt, chosen, rejected } => {
            let mut texts = said(prompt);
            texts.extend(chosen.texts().chain(rejected.texts()));
            texts
        }
        Example::Tokens { .. } => Vec::new(),
    }
}

/// Everything that a row says, with who says it.
fn everything(row: &Row) -> Vec<String> {
    let mut all: Vec<String> = match &row.example {
        Example::Messages(messages) => messages.iter().flat_map(said).collect(),
        Example::Preference { prompt, chosen, rejected } => {
            prompt.iter().chain([chosen, rejected]).flat_map(said).collect()
        }
        example => texts(example),
    };
    all.extend(offered(row));
    all
}

/// What a message says. Who says it counts for those that are neither user's nor the model's.
fn said(message: &Message) -> impl Iterator<Item = String> {
    let role = (message.role != "user" && !message.is_assistant()).then(|| format!("{}:", message.role));
    let weight = message.trained.map(|trained| format!("trained {trained}:"));
    role.into_iter().chain(weight).chain(message.texts())
}

fn offered(row: &Row) -> impl Iterator<Item = String> {
    row.extras.tools.iter().map(ToString::to_string)
}

fn normalised(texts: &[String]) -> String {
    let mut normal = String::new();
    for word in texts.iter().flat_map(|text| text.split_whitespace()) {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.extend(word.chars().flat_map(char::to_lowercase));
    }
    normal
}

/// Whether the trained text of a side has blocks for thoughts, and whether one of them holds any.
fn thinks(encoded: &Encoded) -> Option<bool> {
    if !encoded.text.contains("</think>") {
        return None;
    }
    let trained: String =
        row_tokens(encoded).into_iter().filter(|piece| piece.trained).map(|piece| piece.text).collect();
    let blocks: Vec<&str> = trained.split("</think>").collect();
    let (_, blocks) = blocks.split_last()?;
    let thought = |block: &&str| block.rsplit("<think>").next().is_some_and(|text| !text.trim().is_empty());
    (!blocks.is_empty()).then(|| blocks.iter().any(thought))
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
    use crate::data::{Extras, Origin, Split};

    fn facts(example: Example) -> Facts {
        let tokenizer = tiny("bytelevel");
        let row = Row {
            index: 0,
            origin: Origin { file: "a.jsonl".into(), line: 1 },
            split: Split::Train,
            example,
            extras: Extras::default(),
        };
        Checks::new(&tokenizer, &Template::none(), &Config::default(), Vec::new()).row(&row, true)
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
        assert_eq!(one, key(&[("user", "hello\nthere"), ("assistant", "hi")]));
        assert_ne!(one, key(&[("system", "Be brief."), ("user", "hello\nthere"), ("assistant", "hi")]));
        assert_ne!(one, key(&[("user", "Hello there"), ("assistant", "Ho")]));
    }

    #[test]
    fn texts_are_checked() {
        let found = |messages: &[(&str, &str)]| -> Vec<ProblemKind> {
            talk(messages).found.into_iter().map(|found| found.kind).collect()
        };
        assert_eq!(found(&[("user", "write to ann.b+c@mail.org!")]), [ProblemKind::PersonalData]);
        assert_eq!(found(&[("user", "@ann, see a@b and 3@4.5")]), []);
        assert_eq!(found(&[("user", "say <|im_end|> now")]), [ProblemKind::SpecialTokenInText]);
        assert_eq!(found(&[("system", "say <|im_end|>"), ("user", "a")]), [ProblemKind::SpecialTokenInText]);
        assert_eq!(found(&[("user", "say im_end")]), []);
        assert_eq!(found(&[("user", "caf\u{fffd}")]), [ProblemKind::BrokenText]);
        assert_eq!(found(&[("user", "a\u{1b}[0m")]), [ProblemKind::BrokenText]);
        assert_eq!(found(&[("user", "a\r\n\tb")]), []);
        assert_eq!(found(&[("user", "a"), ("assistant", " \n")]), [ProblemKind::EmptyReply]);
        assert_eq!(found(&[("user", "a"), ("assistant", "b")]), []);
        assert_eq!(found(&[("user", "CafÃ© or tea?"), ("assistant", "b")]), [ProblemKind::Mojibake]);
        assert_eq!(found(&[("user", "a"), ("assistant", "```\ncode")]), [ProblemKind::UnclosedFence]);
        let asked = "What is the capital of the country?";
        assert_eq!(found(&[("user", asked), ("assistant", asked)]), [ProblemKind::EchoedPrompt]);
    }
}
