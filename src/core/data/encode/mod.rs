//! Converts a row to tokens with a loss mask.

use std::ops::Range;

use super::example::shared_beginning;
use super::mask::{MaskError, trained_spans, trained_tokens};
use super::{
    DataError, Encoded, Encoding, Example, Message, Row, RowProblem, RowProblemKind, Template, TokenPiece,
    Tokenizer, with_system,
};
use crate::config::{Config, Overflow, TrainOn};

/// The sides of a row as the model sees them, truncated or refused by `data.max_length`.
///
/// Conversations, prompt-completion pairs and both sides of a preference pair use the chat template. Without
/// one, a prompt-completion pair is its prompt and completion joined, followed by end of text. A text is
/// trained on as a whole and ends with end of text. No text gets a second begin of text. For a preference
/// pair, only the answers are trained on, as with TRL's `completion_mask`, and they end like replies of a
/// conversation.
pub fn encode(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Result<Vec<Encoded>, RowProblem> {
    let whole = encode_whole(row, tokenizer, template, config)?;
    limit(whole, row, config)
}

/// As [`encode`], but without a length limit.
pub(super) fn encode_whole(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Result<Vec<Encoded>, RowProblem> {
    let encoder = Encoder { row, tokenizer, template, config };
    let only = match &row.example {
        Example::Preference { prompt, chosen, rejected } => {
            let shared = shared_beginning(chosen, rejected);
            let side = |answer: &str, good: bool| {
                encoder.side(prompt, answer, shared).map(|side| Encoded { label: Some(good), ..side })
            };
            return Ok(vec![side(chosen, true)?, side(rejected, false)?]);
        }
        Example::Tokens { input_ids, labels } => tokens(input_ids, labels, tokenizer)
            .map_err(|error| encoder.fail(RowProblemKind::Tokenizer, error.to_string())),
        Example::Text(text) => encoder.plain(text, 0),
        Example::PromptCompletion { prompt, completion } if template.is_none() => {
            let start = if config.data.train_on == TrainOn::All { 0 } else { prompt.len() };
            encoder.plain(&format!("{prompt}{completion}"), start)
        }
        example => encoder.conversation(&example.messages().unwrap_or_default(), config.data.train_on),
    };
    only.map(|side| vec![Encoded { label: row.extras.label, ..side }])
}

/// Encodes one row.
struct Encoder<'row> {
    row: &'row Row,
    tokenizer: &'row Tokenizer,
    template: &'row Template,
    config: &'row Config,
}

impl Encoder<'_> {
    fn fail(&self, kind: RowProblemKind, message: String) -> RowProblem {
        RowProblem { kind, origin: self.row.origin.clone(), row: Some(self.row.index), message }
    }

    fn plain(&self, text: &str, start: usize) -> Result<Encoded, RowProblem> {
        plain(text, start, self.tokenizer)
            .map_err(|error| self.fail(RowProblemKind::Tokenizer, error.to_string()))
    }

    /// One side of a preference pair. `shared` is the byte at which a text that contains its own prompt
    /// continues after it.
    fn side(&self, prompt: &[Message], answer: &str, shared: usize) -> Result<Encoded, RowProblem> {
        match prompt {
            [] => self.plain(answer, shared),
            [asked] if self.template.is_none() => {
                self.plain(&format!("{}{answer}", asked.content), asked.content.len())
            }
            _ => {
                let reply = Message::new("assistant", answer);
                let messages: Vec<Message> = prompt.iter().cloned().chain([reply]).collect();
                self.conversation(&messages, TrainOn::Completion)
            }
        }
    }

    fn conversation(&self, own: &[Message], train_on: TrainOn) -> Result<Encoded, RowProblem> {
        let Self { row, tokenizer, template, config } = *self;
        if template.is_none() {
            return Err(self.fail(
                RowProblemKind::Template,
                format!(
                    "a conversation needs a chat template, and the model has none. Set data.template to one of {}, or \
                     to a .jinja file",
                    Template::built_in_names().collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        let messages = with_system(own, &config.data.system);
        let mut extras = row.extras.clone();
        if messages.len() > own.len() {
            if !extras.fields.is_empty() {
                extras.fields.insert(0, serde_json::Map::new());
            }
            extras.untrained.iter_mut().for_each(|index| *index += 1);
        }
        let rendered = template
            .render_marked(&messages, &extras, false)
            .map_err(|error| self.fail(RowProblemKind::Template, error.to_string()))?;
        let spans =
            trained_spans(template, tokenizer, &messages, &extras, train_on, &rendered).map_err(|error| {
                match error {
                    MaskError::Template(error) => self.fail(RowProblemKind::Template, error.to_string()),
                    MaskError::Uncertain(message) => self.fail(RowProblemKind::Mask, message),
                }
            })?;
        let encoding = tokenizer
            .encode(&rendered.text, false)
            .map_err(|error| self.fail(RowProblemKind::Tokenizer, error.to_string()))?;
        Ok(with_mask(rendered.text, encoding, &spans))
    }
}

/// Number of tokens of a row's longest side.
pub(super) fn longest(sides: &[Encoded]) -> usize {
    sides.iter().map(|side| side.ids.len()).max().unwrap_or(0)
}

/// Truncates or refuses rows longer than `data.max_length`, by their longest side.
pub(super) fn limit(mut sides: Vec<Encoded>, row: &Row, config: &Config) -> Result<Vec<Encoded>, RowProblem> {
    let limit = config.data.max_length;
    let length = longest(&sides);
    if length <= limit {
        return Ok(sides);
    }
    let what = if sides.len() > 1 { "tokens of a side" } else { "tokens" };
    let refuse =
        |kind, message| RowProblem { kind, origin: row.origin.clone(), row: Some(row.index), message };
    match config.data.overflow {
        Overflow::Truncate => {
            for side in &mut sides {
                side.truncate(limit);
            }
            Ok(sides)
        }
        Overflow::Drop => Err(refuse(
            RowProblemKind::Dropped,
            format!("left out: {length} {what} are more than data.max_length = {limit}"),
        )),
        Overflow::Error => Err(refuse(
            RowProblemKind::TooLong,
            format!(
                "{length} {what} are more than data.max_length = {limit}. Raise it, shorten the row, or set \
                 data.overflow = \"truncate\" or \"drop\""
            ),
        )),
    }
}

impl Encoded {
    /// Drops the tokens after the first `length`.
    fn truncate(&mut self, length: usize) {
        if self.ids.len() > length {
            self.ids.truncate(length);
            self.trained.truncate(length);
            self.offsets.truncate(length);
            self.truncated = true;
        }
    }
}

/// Plain text, trained on from byte `start`, between begin and end of text.
fn plain(text: &str, start: usize, tokenizer: &Tokenizer) -> Result<Encoded, DataError> {
    let mut encoding = tokenizer.encode(text, false)?;
    let mut text = text.to_owned();
    let mut start = start;
    let before = tokenizer.ids_before();
    if !before.is_empty() && !encoding.ids.starts_with(before) {
        let lead: String = before.iter().map(|&id| tokenizer.token_text(id)).collect();
        for (from, to) in &mut encoding.offsets {
            *from += lead.len();
            *to += lead.len();
        }
        start += lead.len();
        put_in(&mut encoding, 0, before, 0, tokenizer);
        text.insert_str(0, &lead);
    }
    let eos = tokenizer.eos();
    let after = if tokenizer.ids_after().is_empty() { eos.as_slice() } else { tokenizer.ids_after() };
    if !after.is_empty() && !encoding.ids.ends_with(after) {
        let end = encoding.ids.len();
        put_in(&mut encoding, end, after, text.len(), tokenizer);
        text.extend(after.iter().map(|&id| tokenizer.token_text(id)));
    }
    tokenizer.check_ids(&encoding.ids)?;
    let spans: Vec<Range<usize>> = std::iter::once(start..text.len()).collect();
    Ok(with_mask(text, encoding, &spans))
}

/// Inserts `ids` at token `position`; their text starts at byte `at`.
fn put_in(encoding: &mut Encoding, position: usize, ids: &[u32], at: usize, tokenizer: &Tokenizer) {
    let mut from = at;
    let ranges: Vec<(usize, usize)> = ids
        .iter()
        .map(|&id| {
            let range = (from, from + tokenizer.token_text(id).len());
            from = range.1;
            range
        })
        .collect();
    encoding.offsets.splice(position..position, ranges);
    encoding.ids.splice(position..position, ids.iter().copied());
}

fn with_mask(text: String, encoding: Encoding, spans: &[Range<usize>]) -> Encoded {
    Encoded {
        trained: trained_tokens(&encoding.offsets, spans),
        ids: encoding.ids,
        offsets: encoding.offsets,
        text,
        truncated: false,
        label: None,
    }
}

/// Given token ids. Their text is joined from that of each token.
fn tokens(ids: &[u32], labels: &[i64], tokenizer: &Tokenizer) -> Result<Encoded, DataError> {
    tokenizer.check_ids(ids)?;
    let mut text = String::new();
    let offsets = ids
        .iter()
        .map(|&id| {
            let start = text.len();
            text.push_str(&tokenizer.token_text(id));
            (start, text.len())
        })
        .collect();
    // The first token has nothing before it to predict it from, so the shift drops its label.
    let trained = labels.iter().enumerate().map(|(index, &label)| index > 0 && label != -100).collect();
    Ok(Encoded { ids: ids.to_vec(), trained, text, offsets, truncated: false, label: None })
}

/// A side's tokens with the text that each adds. Joined, the texts are the side's text up to the last token.
pub fn row_tokens(encoded: &Encoded) -> Vec<TokenPiece> {
    let mut shown = 0;
    encoded
        .ids
        .iter()
        .zip(&encoded.offsets)
        .zip(&encoded.trained)
        .map(|((&id, &(_, end)), &trained)| {
            let end = end.max(shown);
            let text = encoded.text.get(shown..end).unwrap_or_default().to_owned();
            shown = end;
            TokenPiece { id, text, trained }
        })
        .collect()
}

/// The conversation of a row as the chat template sees it, with `data.system`.
pub fn conversation(row: &Row, config: &Config) -> Option<Vec<Message>> {
    row.example.messages().map(|messages| with_system(&messages, &config.data.system))
}

#[cfg(test)]
mod tests;
