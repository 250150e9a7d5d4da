//! A row → tokens with their loss mask.

use std::ops::Range;

use super::mask::{MaskError, trained_spans, trained_tokens};
use super::{
    DataError, Encoded, Encoding, Example, Message, Row, RowProblem, RowProblemKind, Template, TokenPiece,
    Tokenizer, with_system,
};
use crate::config::{Config, Overflow, TrainOn};

/// The row as the model sees it, cut or refused by `data.max_length`.
///
/// Conversations, pairs and preferred answers go through the chat template; without one, a pair is its prompt and
/// completion joined, then end of text. A text is trained on whole, and ends with end of text. No text gets a second
/// begin of text.
pub fn encode(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Result<Encoded, RowProblem> {
    let whole = encode_whole(row, tokenizer, template, config)?;
    limit(whole, row, config)
}

/// As [`encode`], of whatever length.
pub(super) fn encode_whole(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Result<Encoded, RowProblem> {
    let fail = |kind: RowProblemKind, message: String| RowProblem {
        kind,
        origin: row.origin.clone(),
        row: Some(row.index),
        message,
    };
    let by_tokenizer = |error: DataError| fail(RowProblemKind::Tokenizer, error.to_string());
    let train_on = config.data.train_on;
    match &row.example {
        Example::Tokens { input_ids, labels } => tokens(input_ids, labels, tokenizer).map_err(by_tokenizer),
        Example::Text(text) => plain(text, 0, tokenizer).map_err(by_tokenizer),
        Example::PromptCompletion { prompt, completion } if template.is_none() => {
            let start = if train_on == TrainOn::All { 0 } else { prompt.len() };
            plain(&format!("{prompt}{completion}"), start, tokenizer).map_err(by_tokenizer)
        }
        _ if template.is_none() => Err(fail(
            RowProblemKind::Template,
            format!(
                "a conversation needs a chat template, and the model has none. Set data.template to one of {}, or to a \
                 .jinja file",
                Template::built_in_names().collect::<Vec<_>>().join(", ")
            ),
        )),
        example => {
            let own = example.messages().unwrap_or_default();
            let messages = with_system(&own, &config.data.system);
            let mut extras = row.extras.clone();
            if messages.len() > own.len() {
                if !extras.fields.is_empty() {
                    extras.fields.insert(0, serde_json::Map::new());
                }
                extras.untrained.iter_mut().for_each(|index| *index += 1);
            }
            let rendered = template
                .render_marked(&messages, &extras, false)
                .map_err(|error| fail(RowProblemKind::Template, error.to_string()))?;
            let spans = trained_spans(template, tokenizer, &messages, &extras, train_on, &rendered).map_err(
                |error| match error {
                    MaskError::Template(error) => fail(RowProblemKind::Template, error.to_string()),
                    MaskError::Uncertain(message) => fail(RowProblemKind::Mask, message),
                },
            )?;
            let encoding = tokenizer.encode(&rendered.text, false).map_err(by_tokenizer)?;
            Ok(with_mask(rendered.text, encoding, &spans))
        }
    }
}

/// Cuts or refuses what is longer than `data.max_length`.
pub(super) fn limit(mut encoded: Encoded, row: &Row, config: &Config) -> Result<Encoded, RowProblem> {
    let limit = config.data.max_length;
    if encoded.ids.len() <= limit {
        return Ok(encoded);
    }
    let length = encoded.ids.len();
    let refuse =
        |kind, message| RowProblem { kind, origin: row.origin.clone(), row: Some(row.index), message };
    match config.data.overflow {
        Overflow::Truncate => {
            encoded.truncate(limit);
            Ok(encoded)
        }
        Overflow::Drop => Err(refuse(
            RowProblemKind::Dropped,
            format!("left out: {length} tokens are more than data.max_length = {limit}"),
        )),
        Overflow::Error => Err(refuse(
            RowProblemKind::TooLong,
            format!(
                "{length} tokens are more than data.max_length = {limit}. Raise it, shorten the row, or set \
                 data.overflow = \"truncate\" or \"drop\""
            ),
        )),
    }
}

impl Encoded {
    /// Cuts tokens off behind the first `length`.
    fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.trained.truncate(length);
        self.offsets.truncate(length);
        self.truncated = true;
    }
}

/// Plain text, trained on from byte `start` on, between begin and end of text.
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

/// Puts `ids` in at token `position`; their texts stand from byte `at` on.
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
    }
}

/// Ids as they are; their text is put together from each one's own.
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
    // The label of the first token would be predicted from nothing: the shift drops it.
    let trained = labels.iter().enumerate().map(|(index, &label)| index > 0 && label != -100).collect();
    Ok(Encoded { ids: ids.to_vec(), trained, text, offsets, truncated: false })
}

/// A row's tokens with the text each adds. Joined, the texts are the row's text up to the last token.
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

/// The conversation of a row as the chat template sees it: `data.system` included.
pub fn conversation(row: &Row, config: &Config) -> Option<Vec<Message>> {
    row.example.messages().map(|messages| with_system(&messages, &config.data.system))
}

#[cfg(test)]
mod tests;
