//! Which format a row has, from the names of its fields.

use serde_json::Value;

use super::{Fields, is_missing, names, pairs, parsed};
use crate::algorithms::RowShape;
use crate::config::Format;

/// Fields that a row may lack even if `data.columns` names them.
pub(in super::super) const OPTIONAL_ROLES: &[&str] =
    &["input", "system", "labels", "label", "tools", "history", "attention_mask", "chat_template_kwargs"];
/// Fields of a message, not of a row.
pub(in super::super) const MESSAGE_ROLES: &[&str] =
    &["role", "content", "from", "value", "reasoning_content", "tool_calls", "weight"];

/// Names of fields that well-known datasets give to a prompt and to its answer, in the order in which they
/// are preferred.
const PROMPTS: &[&str] = &["prompt", "instruction", "question", "query", "problem", "input", "inputs"];
const COMPLETIONS: &[&str] =
    &["completion", "response", "answer", "output", "solution", "target", "targets", "outputs"];
/// Names of a text to which an instruction applies.
const CONTEXTS: &[&str] = &["input", "context"];

/// The format of a row, and the fields that stand for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Detected {
    pub(in super::super) format: Format,
    /// Role and column, as in `data.columns`, for names that were understood.
    pub(in super::super) columns: Vec<(&'static str, String)>,
}

impl From<Format> for Detected {
    fn from(format: Format) -> Self {
        Detected { format, columns: Vec::new() }
    }
}

/// The roles that a format reads.
pub(in super::super) fn takes(format: Format) -> &'static [&'static str] {
    match format {
        Format::Auto => &[],
        Format::Messages | Format::ShareGpt => {
            &["messages", "conversations", "system", "tools", "label", "chat_template_kwargs"]
        }
        Format::Alpaca => {
            &["instruction", "input", "output", "history", "system", "tools", "label", "chat_template_kwargs"]
        }
        Format::PromptCompletion => {
            &["prompt", "completion", "history", "system", "tools", "label", "chat_template_kwargs"]
        }
        Format::Text => &["text"],
        Format::Preference => &[
            "prompt",
            "chosen",
            "rejected",
            "messages",
            "conversations",
            "instruction",
            "input",
            "system",
            "tools",
            "chat_template_kwargs",
        ],
        Format::Tokens => &["input_ids", "labels", "attention_mask"],
    }
}

/// Whether a row has the fields without which its format cannot be read.
pub(in super::super) fn has_needed(format: Format, fields: &Fields) -> bool {
    let has = |name: &str| fields.get(name).is_some_and(|value| !is_missing(value));
    match format {
        Format::Messages | Format::ShareGpt => {
            ["messages", "conversations", "conversation"].into_iter().any(has)
        }
        Format::Alpaca => has("instruction") && has("output"),
        Format::PromptCompletion => has("prompt") && has("completion"),
        Format::Auto | Format::Text | Format::Preference | Format::Tokens => true,
    }
}

/// The format of a row with the fields `known`; values distinguish the two kinds of conversation. Some
/// preference datasets repeat the chosen side as a conversation: `wanted` decides between the two.
pub(in super::super) fn detect(
    known: &[&str],
    fields: &Fields,
    wanted: RowShape,
) -> Result<Detected, String> {
    let has = |name: &str| known.contains(&name);
    let is_pair = pairs::sides(has).is_some();
    if wanted == RowShape::Pair && (is_pair || pairs::beside_messages(has).is_some()) {
        return Ok(Format::Preference.into());
    }
    let with_list = ["messages", "conversations", "conversation"];
    if let Some(list) = with_list.iter().find(|name| has(name) && fields.get(**name).is_some_and(|list| !is_missing(list)))
        // Pairs of LLaMA-Factory have the prompt as a conversation.
        && !(is_pair && fields.get("chosen").is_some_and(Value::is_object))
    {
        let list = fields.get(*list).map(parsed).unwrap_or_default();
        let sharegpt = list.get(0).is_some_and(|first| first.get("from").is_some());
        return Ok(if sharegpt { Format::ShareGpt } else { Format::Messages }.into());
    }
    if has("input_ids") {
        return Ok(Format::Tokens.into());
    }
    if is_pair {
        return Ok(Format::Preference.into());
    }
    if has("prompt") && has("completion") {
        return Ok(Format::PromptCompletion.into());
    }
    if has("instruction") && has("output") {
        return Ok(with_context(known, "output"));
    }
    if has("text") {
        return match PROMPTS.iter().find(|name| has(name)) {
            None => Ok(Format::Text.into()),
            Some(prompt) => Err(format!(
                "has {prompt:?} and \"text\", and it is not clear which is learned. If the text answers the prompt, set \
                 data.columns = {{ prompt = {prompt:?}, completion = \"text\" }}; to train on the text alone, set \
                 data.format = \"text\""
            )),
        };
    }
    by_common_names(known, fields)
}

/// Alpaca's format, whose answer has the name `answer`.
fn with_context(known: &[&str], answer: &str) -> Detected {
    let mut columns = Vec::new();
    if let Some(context) = CONTEXTS.iter().find(|name| known.contains(name))
        && *context != "input"
    {
        columns.push(("input", (*context).to_owned()));
    }
    if answer != "output" {
        columns.push(("output", answer.to_owned()));
    }
    Detected { format: Format::Alpaca, columns }
}

/// A prompt and an answer under other names: Dolly's, GSM8K's, those of ms-swift and others.
fn by_common_names(known: &[&str], fields: &Fields) -> Result<Detected, String> {
    let texts = |names: &[&'static str]| -> Vec<&'static str> {
        let is_text = |name: &&str| {
            fields.get(*name).is_some_and(|value| value.is_string() || value.is_array() || value.is_number())
        };
        names.iter().copied().filter(|name| known.contains(name)).filter(is_text).collect()
    };
    let (mut prompts, answers) = (texts(PROMPTS), texts(COMPLETIONS));
    if prompts.contains(&"instruction") {
        // What the instruction is about.
        prompts.retain(|name| *name != "input");
    }
    match (&prompts[..], &answers[..]) {
        (["instruction"], [answer]) => Ok(with_context(known, answer)),
        ([prompt], [answer]) => {
            let columns = [("prompt", *prompt), ("completion", *answer)];
            let columns = columns.into_iter().filter(|(role, column)| role != column);
            let columns = columns.map(|(role, column)| (role, column.to_owned())).collect();
            Ok(Detected { format: Format::PromptCompletion, columns })
        }
        _ if known.len() == 1 => Err(format!(
            "its fields ({}) match no known format. If it is text to learn, set data.columns = {{ text = {:?} }}",
            names(fields),
            known[0]
        )),
        _ if let Some((chosen, rejected)) = likely_sides(known) => Err(format!(
            "its fields ({}) match no known format. If it is a pair of answers, say which is which: data.columns = {{ \
             chosen = {chosen:?}, rejected = {rejected:?} }}",
            names(fields)
        )),
        _ => {
            let prompt = prompts.first().copied().or(known.first().copied()).unwrap_or("question");
            let others = answers.first().copied().or(known.iter().copied().find(|name| *name != prompt));
            Err(format!(
                "its fields ({}) match no known format. Say which is which, such as data.columns = {{ prompt = {prompt:?}, \
                 completion = {:?} }}",
                names(fields),
                others.unwrap_or("answer")
            ))
        }
    }
}

/// Two fields whose names say that one answer is preferred to another.
fn likely_sides<'name>(known: &[&'name str]) -> Option<(&'name str, &'name str)> {
    let says = |name: &str, words: &[&str]| words.iter().any(|word| name.to_lowercase().contains(word));
    let rejected = known
        .iter()
        .copied()
        .find(|name| says(name, &["reject", "dispreferred", "non_preferred", "lose", "worse"]))?;
    let chosen = known
        .iter()
        .copied()
        .find(|name| *name != rejected && says(name, &["chosen", "preferred", "accept", "win", "better"]))?;
    Some((chosen, rejected))
}
