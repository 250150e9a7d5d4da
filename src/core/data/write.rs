//! Rows in the forms of dataset files: the way back from a [`Row`] to JSON.

use serde_json::{Map, Value, json};

use super::read::reread;
use super::{Example, Extras, Message, Row};
use crate::algorithms::RowShape;

// What a form may have no place for.
const WEIGHTS: &str = "weights";
const REASONING: &str = "reasoning";
const FIELDS: &str = "other fields of messages";
const GROUP: &str = "the column of data.group_by";

// Why a form cannot hold a row.
const PAIR: &str = "a preference pair has two replies";
const TEXT: &str = "a plain text has no prompt and no reply";
const TOKENS: &str = "token ids have no text";
const NO_PAIR: &str = "there is no rejected reply";
const NO_TEXT: &str = "only a plain text can be one";
const NO_REPLY: &str = "it does not end in a prompt and its reply";
const TOOL_CALLS: &str = "it calls tools";
const TURNS: &str = "user and assistant do not take turns";
const ROLE: &str = "a message has a role that the form does not know";
const DIFFERENT: &str = "it would be read as something else";

/// A form of dataset rows that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OpenAI's: `messages`, a list of `role` and `content`.
    Messages,
    /// ShareGPT's: `conversations`, a list of `from` and `value`.
    ShareGpt,
    /// TRL's `prompt` and `completion`: texts, or lists of messages.
    PromptCompletion,
    /// `instruction`, `input` and `output`, with `system` and `history` where there are any.
    Alpaca,
    /// TRL's `prompt`, `chosen` and `rejected`.
    Preference,
    /// `text` alone.
    Text,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 6] =
        [Self::Messages, Self::ShareGpt, Self::PromptCompletion, Self::Alpaca, Self::Preference, Self::Text];

    /// Its name, as in `data.format`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt-completion",
            Self::Alpaca => "alpaca",
            Self::Preference => "preference",
            Self::Text => "text",
        }
    }

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }
}

/// A row in another form.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Its fields: one line of a JSON Lines file.
    pub fields: Map<String, Value>,
    /// What the row had and the form has no place for.
    pub dropped: Vec<&'static str>,
}

/// Writes a row in a form. Reading it again gives the same row, except for what was dropped; a row of which that is
/// not so is refused, with the reason.
pub fn written(row: &Row, form: Form) -> Result<Written, &'static str> {
    let mut dropped = Vec::new();
    let mut example = row.example.clone();
    let mut fields = Map::new();
    match form {
        Form::Messages => {
            let messages = conversation(&example)?;
            fields.insert("messages".to_owned(), turns(&messages));
        }
        Form::ShareGpt => {
            let messages = conversation(&example)?;
            fields.insert("conversations".to_owned(), Value::Array(sharegpt(&messages)?));
        }
        Form::PromptCompletion => fields = prompt_completion(&conversation(&example)?)?,
        Form::Alpaca => {
            let messages = plain(conversation(&example)?, &mut dropped)?;
            fields = alpaca(&messages)?;
            example = Example::Messages(messages);
        }
        Form::Preference => fields = preference(&example)?,
        Form::Text => match &example {
            Example::Text(text) => {
                fields.insert("text".to_owned(), text.as_str().into());
            }
            Example::Tokens { .. } => return Err(TOKENS),
            _ => return Err(NO_TEXT),
        },
    }
    surround(&mut fields, &row.extras, form);
    if row.extras.group.is_some() {
        dropped.push(GROUP);
    }
    let wanted = match (form, row.extras.label) {
        (Form::Preference, _) => RowShape::Pair,
        (_, Some(_)) => RowShape::LabelledAnswer,
        (_, None) => RowShape::Answer,
    };
    let extras = Extras { group: None, ..row.extras.clone() };
    match reread(fields.clone(), wanted) {
        Ok(read) if says_the_same(&read.example, &example) && read.extras == extras => {
            Ok(Written { fields, dropped })
        }
        _ => Err(DIFFERENT),
    }
}

/// Whether two examples are one conversation, or equal.
fn says_the_same(one: &Example, other: &Example) -> bool {
    if one == other {
        return true;
    }
    let of = |example: &Example| if example.is_pair() { None } else { example.messages() };
    matches!((of(one), of(other)), (Some(one), Some(other)) if one == other)
}

/// The messages of a row that is one conversation.
fn conversation(example: &Example) -> Result<Vec<Message>, &'static str> {
    match example {
        Example::Messages(messages) => Ok(messages.clone()),
        Example::PromptCompletion { prompt, completion } => {
            Ok(vec![Message::new("user", prompt), Message::new("assistant", completion)])
        }
        Example::Preference { .. } => Err(PAIR),
        Example::Text(_) => Err(TEXT),
        Example::Tokens { .. } => Err(TOKENS),
    }
}

/// Messages in OpenAI's form.
fn turns(messages: &[Message]) -> Value {
    messages.iter().map(turn).collect()
}

fn turn(message: &Message) -> Value {
    let mut turn = Map::new();
    turn.insert("role".to_owned(), message.role.as_str().into());
    turn.insert("content".to_owned(), content(message));
    if !message.tool_calls.is_empty() {
        turn.insert("tool_calls".to_owned(), message.tool_calls.clone().into());
    }
    add_rest(message, &mut turn);
    Value::Object(turn)
}

fn content(message: &Message) -> Value {
    message.result.clone().unwrap_or_else(|| message.content.as_str().into())
}

/// What a message has beside who says what.
fn add_rest(message: &Message, turn: &mut Map<String, Value>) {
    if let Some(reasoning) = &message.reasoning {
        turn.insert("reasoning_content".to_owned(), reasoning.as_str().into());
    }
    add_weight(message, turn);
    for (name, value) in &message.fields {
        if !turn.contains_key(name) {
            turn.insert(name.clone(), value.clone());
        }
    }
}

fn add_weight(message: &Message, turn: &mut Map<String, Value>) {
    if let Some(trained) = message.trained {
        turn.insert("weight".to_owned(), u8::from(trained).into());
    }
}

/// Messages in ShareGPT's form, where calls of tools are turns of their own.
fn sharegpt(messages: &[Message]) -> Result<Vec<Value>, &'static str> {
    let mut turns = Vec::new();
    let mut follows_reply = false;
    for message in messages {
        let from = match message.role.as_str() {
            "user" => "human",
            "assistant" => "gpt",
            "tool" => "observation",
            known @ ("system" | "developer") => known,
            _ => return Err(ROLE),
        };
        let calls: Vec<Value> = message.tool_calls.iter().map(bare_call).collect();
        let only_calls = message.content.is_empty()
            && message.reasoning.is_none()
            && message.fields.is_empty()
            && !calls.is_empty();
        // Calls belong to the reply that they follow.
        if !only_calls || follows_reply {
            let mut turn = Map::new();
            turn.insert("from".to_owned(), from.into());
            turn.insert("value".to_owned(), content(message));
            add_rest(message, &mut turn);
            turns.push(Value::Object(turn));
        }
        let value = match calls.as_slice() {
            [] => None,
            [call] => Some(call.to_string()),
            calls => Some(Value::from(calls).to_string()),
        };
        if let Some(value) = value {
            let mut turn = Map::new();
            turn.insert("from".to_owned(), "function_call".into());
            turn.insert("value".to_owned(), value.into());
            add_weight(message, &mut turn);
            turns.push(Value::Object(turn));
        }
        follows_reply = message.is_assistant();
    }
    Ok(turns)
}

/// A tool call as `{"name", "arguments"}`, with its id if it has one.
fn bare_call(call: &Value) -> Value {
    let mut bare = call.get("function").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(id) = call.get("id") {
        bare.insert("id".to_owned(), id.clone());
    }
    Value::Object(bare)
}

/// Texts where the row is a question and its answer, otherwise lists of messages.
fn prompt_completion(messages: &[Message]) -> Result<Map<String, Value>, &'static str> {
    let (prompt, completion) = match messages {
        [asked, reply] if is_plain(asked, "user") && is_plain(reply, "assistant") => {
            (content(asked), content(reply))
        }
        [prompt @ .., reply] if reply.is_assistant() && !prompt.is_empty() => {
            (turns(prompt), json!([turn(reply)]))
        }
        _ => return Err(NO_REPLY),
    };
    let mut fields = Map::new();
    fields.insert("prompt".to_owned(), prompt);
    fields.insert("completion".to_owned(), completion);
    Ok(fields)
}

fn is_plain(message: &Message, role: &str) -> bool {
    message.role == role && message.is_plain()
}

/// The same messages with nothing but role and text.
fn plain(messages: Vec<Message>, dropped: &mut Vec<&'static str>) -> Result<Vec<Message>, &'static str> {
    if messages.iter().any(|message| message.role == "tool" || !message.tool_calls.is_empty()) {
        return Err(TOOL_CALLS);
    }
    let has = |what: fn(&Message) -> bool| messages.iter().any(what);
    let lost = [
        (WEIGHTS, has(|message| message.trained.is_some())),
        (REASONING, has(|message| message.reasoning.is_some())),
        (FIELDS, has(|message| !message.fields.is_empty())),
    ];
    dropped.extend(lost.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    Ok(messages.into_iter().map(|message| Message::new(message.role, message.content)).collect())
}

/// Plain messages in Alpaca's form, with `system` and `history` as LLaMA-Factory has them.
fn alpaca(messages: &[Message]) -> Result<Map<String, Value>, &'static str> {
    let (system, turns) = match messages {
        [first, turns @ ..] if first.role == "system" => (Some(&first.content), turns),
        turns => (None, turns),
    };
    let mut exchanges = Vec::new();
    for exchange in turns.chunks(2) {
        match exchange {
            [asked, reply] if asked.role == "user" && reply.is_assistant() => {
                exchanges.push((asked.content.as_str(), reply.content.as_str()));
            }
            _ => return Err(TURNS),
        }
    }
    let Some(((asked, reply), earlier)) = exchanges.split_last() else { return Err(NO_REPLY) };
    let mut fields = Map::new();
    if let Some(system) = system {
        fields.insert("system".to_owned(), system.as_str().into());
    }
    fields.insert("instruction".to_owned(), (*asked).into());
    fields.insert("input".to_owned(), "".into());
    fields.insert("output".to_owned(), (*reply).into());
    if !earlier.is_empty() {
        let history = earlier.iter().map(|(asked, reply)| json!([asked, reply])).collect();
        fields.insert("history".to_owned(), history);
    }
    Ok(fields)
}

/// A pair in TRL's form: texts where prompt and answers are nothing more, otherwise lists of messages.
fn preference(example: &Example) -> Result<Map<String, Value>, &'static str> {
    let (prompt, chosen, rejected) = match example {
        Example::Preference { prompt, chosen, rejected } => (prompt, chosen, rejected),
        Example::Text(_) => return Err(TEXT),
        Example::Tokens { .. } => return Err(TOKENS),
        Example::Messages(_) | Example::PromptCompletion { .. } => return Err(NO_PAIR),
    };
    let are_texts = chosen.is_plain() && rejected.is_plain();
    let (prompt, is_text) = match prompt.as_slice() {
        // Both texts begin with it.
        [] => (None, true),
        [only] if are_texts && is_plain(only, "user") => (Some(content(only)), true),
        messages => (Some(turns(messages)), false),
    };
    let side = |answer: &Message| if is_text { content(answer) } else { json!([turn(answer)]) };
    let mut fields = Map::new();
    if let Some(prompt) = prompt {
        fields.insert("prompt".to_owned(), prompt);
    }
    fields.insert("chosen".to_owned(), side(chosen));
    fields.insert("rejected".to_owned(), side(rejected));
    Ok(fields)
}

/// Adds what a row has beside its example. Tools that read ShareGPT and Alpaca have tools as JSON text.
fn surround(fields: &mut Map<String, Value>, extras: &Extras, form: Form) {
    if let Some(tools) = &extras.tools {
        let is_text = matches!(form, Form::ShareGpt | Form::Alpaca);
        let tools = if is_text { tools.to_string().into() } else { tools.clone() };
        fields.insert("tools".to_owned(), tools);
    }
    if let Some(label) = extras.label {
        fields.insert("label".to_owned(), label.into());
    }
    if !extras.variables.is_empty() {
        fields.insert("chat_template_kwargs".to_owned(), extras.variables.clone().into());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::*;
    use crate::data::testing::config;
    use crate::data::{Dataset, read_dataset};

    /// What the product reads from these rows.
    fn read(rows: &[Map<String, Value>], settings: &[&str]) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
        fs::write(folder.path().join("a.jsonl"), lines.join("\n")).unwrap();
        let settings: Vec<&str> = settings.iter().copied().chain(["data.eval=0"]).collect();
        read_dataset(&config("a.jsonl", &settings), folder.path()).unwrap()
    }

    fn rows(values: &[Value], settings: &[&str]) -> Vec<Row> {
        let fields: Vec<_> = values.iter().map(|value| value.as_object().unwrap().clone()).collect();
        let dataset = read(&fields, settings);
        assert_eq!(dataset.problems, []);
        dataset.rows.all()
    }

    fn one(value: &Value) -> Row {
        rows(std::slice::from_ref(value), &[]).remove(0)
    }

    /// Conversations with all that one may have.
    fn conversations() -> Vec<Value> {
        let call = json!({"name": "f", "arguments": {"a": [1, 2.5, null]}});
        let called = json!({"type": "function", "function": call, "id": "c1"});
        let ask = |text: &str| json!({"role": "user", "content": text});
        let say = |text: &str| json!({"role": "assistant", "content": text});
        let system = json!({"role": "system", "content": "Be brief."});
        vec![
            json!({"messages": [ask("a"), say("b")]}),
            json!({"messages": [system, ask("a\n<é>"), say("b"), ask("[\"c\"]"), say("{\"d\": 1}")]}),
            json!({"messages": [ask("a"), {"role": "assistant", "content": "b", "reasoning_content": "so"}]}),
            json!({"messages": [ask("a"), {"role": "assistant", "content": "b", "weight": 0}, ask("c"),
                {"role": "assistant", "content": "d", "weight": 1, "name": "Ann"}], "label": false}),
            json!({"messages": [ask("a"), say("b")], "tools": [call], "chat_template_kwargs": {"x": true}}),
            json!({"messages": [ask("a"), {"role": "assistant", "content": "", "tool_calls": [called]},
                {"role": "tool", "content": {"b": 1}, "tool_call_id": "c1"}, say("c")]}),
            json!({"messages": [ask("a"), {"role": "assistant", "content": "wait", "tool_calls": [called, call]},
                {"role": "tool", "content": "b"}, say("c")]}),
            json!({"messages": [ask("a"), say("b"), {"role": "assistant", "content": "", "tool_calls": [call]}]}),
        ]
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = rows(&conversations(), &[]);
        for form in [Form::Messages, Form::ShareGpt, Form::PromptCompletion] {
            let written: Vec<Written> = all.iter().map(|row| written(row, form).unwrap()).collect();
            assert!(written.iter().all(|written| written.dropped.is_empty()), "{form:?}");
            let fields: Vec<_> = written.into_iter().map(|written| written.fields).collect();
            let again = read(&fields, &[]);
            assert_eq!((again.problems.len(), again.unused.len()), (0, 0), "{form:?}");
            for (row, again) in all.iter().zip(&again.rows.all()) {
                assert_eq!(row.example.messages(), again.example.messages(), "{form:?}");
                assert_eq!(row.extras, again.extras, "{form:?}");
            }
        }
        let same = |row: &Row| written(row, Form::Messages).map(|written| Value::Object(written.fields));
        assert_eq!(same(&all[3]), Ok(conversations()[3].clone()));
    }

    #[test]
    fn pairs_texts_and_labels_are_read_again() {
        let ask = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]);
        let call = json!([{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]);
        let pairs = [
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            json!({"prompt": ask, "chosen": "b", "rejected": "c", "tools": [{"name": "f"}]}),
            json!({"prompt": "a", "chosen": call, "rejected": "c"}),
            json!({"chosen": "Q: a A: b", "rejected": "Q: a A: c"}),
        ];
        let texts = [json!({"text": "a"}), json!({"text": "[{\"b\": 1}]", "chat_template_kwargs": {"x": 1}})];
        let labels = [
            json!({"prompt": "a", "completion": "b", "label": true}),
            json!({"prompt": "a", "completion": "c", "label": false}),
        ];
        for (values, form, setting) in [
            (&pairs[..], Form::Preference, "train.algorithm=dpo"),
            (&texts[..], Form::Text, "train.algorithm=sft"),
            (&labels[..], Form::PromptCompletion, "train.algorithm=kto"),
            (&labels[..], Form::Alpaca, "train.algorithm=kto"),
        ] {
            let all = rows(values, &[setting]);
            let fields: Vec<_> = all.iter().map(|row| written(row, form).unwrap().fields).collect();
            let again = read(&fields, &[setting]);
            assert_eq!(again.problems, []);
            assert_eq!(again.rows.all(), all, "{form:?}");
        }
    }

    #[test]
    fn alpaca_drops_what_it_has_no_place_for() {
        let all = rows(&conversations(), &[]);
        let told: Vec<_> =
            all.iter().map(|row| written(row, Form::Alpaca).map(|written| written.dropped)).collect();
        assert_eq!(
            told,
            [
                Ok(vec![]),
                Ok(vec![]),
                Ok(vec![REASONING]),
                Ok(vec![WEIGHTS, FIELDS]),
                Ok(vec![]),
                Err(TOOL_CALLS),
                Err(TOOL_CALLS),
                Err(TOOL_CALLS),
            ]
        );
        let fields = Value::Object(written(&all[1], Form::Alpaca).unwrap().fields);
        assert_eq!(
            fields,
            json!({"system": "Be brief.", "instruction": "[\"c\"]", "input": "", "output": "{\"d\": 1}",
                "history": [["a\n<é>", "b"]]})
        );
    }

    #[test]
    fn a_row_that_a_form_cannot_hold_is_refused() {
        let pair = one(&json!({"prompt": "a", "chosen": "b", "rejected": "c"}));
        let text = one(&json!({"text": "a"}));
        let tokens = one(&json!({"input_ids": [1, 2]}));
        let asked = one(&json!({"messages": [{"role": "user", "content": "a"}]}));
        let twice = [json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": "b"})];
        let twice = one(&json!({"messages": [twice[0], twice[0], twice[1]]}));
        let role = one(&json!({"messages": [{"role": "critic", "content": "a"}]}));
        for (row, form, reason) in [
            (&pair, Form::Messages, PAIR),
            (&pair, Form::Text, NO_TEXT),
            (&text, Form::ShareGpt, TEXT),
            (&text, Form::Preference, TEXT),
            (&tokens, Form::Alpaca, TOKENS),
            (&tokens, Form::Text, TOKENS),
            (&asked, Form::PromptCompletion, NO_REPLY),
            (&asked, Form::Preference, NO_PAIR),
            (&twice, Form::Alpaca, TURNS),
            (&role, Form::ShareGpt, ROLE),
        ] {
            assert_eq!(written(row, form), Err(reason), "{form:?}");
        }
        // As a text it would be taken for a list of messages.
        let listed = "[{\"role\": \"user\", \"content\": \"x\"}]";
        let listed = one(&json!({"messages": [
            {"role": "user", "content": listed}, {"role": "assistant", "content": "b"},
        ]}));
        assert_eq!(written(&listed, Form::PromptCompletion), Err(DIFFERENT));
        assert!(written(&listed, Form::Messages).is_ok());
    }

    #[test]
    fn every_form_has_a_name() {
        for form in Form::ALL {
            assert_eq!(Form::from_name(form.name()), Some(form));
        }
        assert_eq!(Form::from_name("tokens"), None);
    }
}
