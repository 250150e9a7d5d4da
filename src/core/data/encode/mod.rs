//! Converts a row to tokens with a loss mask.

use std::ops::Range;

use super::example::shared_beginning;
use super::mask::{MaskError, trained_spans, trained_tokens};
use super::{
    DataError, Encoded, EncodedRow, Encoding, Example, Message, Row, RowProblem, RowProblemKind, Template,
    TokenPiece, Tokenizer,
};
use crate::config::{Config, Overflow, Reasoning, TrainOn};

/// The sides of a row as the model sees them, truncated or refused by `data.max_length`. A text that
/// `data.overflow = "split"` cuts into several sequences is whole.
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
            let shared = shared_beginning(&chosen.content, &rejected.content);
            let side = |answer: &Message, good: bool| {
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
    fn side(&self, prompt: &[Message], answer: &Message, shared: usize) -> Result<Encoded, RowProblem> {
        match prompt {
            [] => self.plain(&answer.content, shared),
            [asked] if self.template.is_none() && answer.is_plain() => {
                self.plain(&format!("{}{}", asked.content, answer.content), asked.content.len())
            }
            _ => {
                let untold = |message: &Message| Message { trained: None, ..message.clone() };
                let messages: Vec<Message> = prompt.iter().chain([answer]).map(untold).collect();
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
        let messages = template.arranged(own, config);
        let extras = &row.extras;
        let rendered = template
            .render_marked(&messages, extras, false)
            .map_err(|error| self.fail(RowProblemKind::Template, error.to_string()))?;
        let spans = trained_spans(template, tokenizer, &messages, extras, &config.data, train_on, &rendered);
        let spans = spans.map_err(|error| match error {
            MaskError::Template(error) => self.fail(RowProblemKind::Template, error.to_string()),
            MaskError::Uncertain(message) => self.fail(RowProblemKind::Mask, message),
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
        Overflow::Split if is_split(row, config) => Ok(sides),
        Overflow::Truncate | Overflow::Split => {
            for side in &mut sides {
                side.truncate(limit);
            }
            Ok(sides)
        }
        Overflow::KeepEnd => {
            for side in &mut sides {
                side.keep_end(limit);
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

/// Whether `data.overflow` cuts this row into as many sequences as it fills.
fn is_split(row: &Row, config: &Config) -> bool {
    config.data.overflow == Overflow::Split
        && matches!(row.example, Example::Text(_) | Example::Tokens { .. })
}

/// A row as sequences for training: one, or for a long text that is split as many as it fills. A later one begins
/// with the tokens that the tokenizer puts before a text, or with the last token of the sequence before, so that
/// every token is learned once.
pub(super) fn sequences(
    row: &Row,
    sides: Vec<Encoded>,
    tokenizer: &Tokenizer,
    config: &Config,
) -> Vec<EncodedRow> {
    let limit = config.data.max_length;
    if longest(&sides) <= limit || !is_split(row, config) {
        return vec![EncodedRow::new(row.index, sides)];
    }
    let before = tokenizer.ids_before();
    let mut parts = Vec::new();
    for side in sides {
        let mut at = 0;
        while at < side.ids.len() {
            let (mut ids, mut trained) = (Vec::with_capacity(limit), Vec::with_capacity(limit));
            if at > 0 {
                let lead =
                    if before.is_empty() || before.len() >= limit { &side.ids[at - 1..at] } else { before };
                ids.extend_from_slice(lead);
                trained.resize(lead.len(), false);
            }
            let end = side.ids.len().min(at + limit - ids.len());
            ids.extend_from_slice(&side.ids[at..end]);
            trained.extend_from_slice(&side.trained[at..end]);
            at = end;
            parts.push(EncodedRow::of_one_side(row.index, ids, trained));
        }
    }
    parts
}

impl Encoded {
    /// Drops the tokens before the last `length`.
    fn keep_end(&mut self, length: usize) {
        if self.ids.len() <= length {
            return;
        }
        let cut = self.ids.len() - length;
        self.ids.drain(..cut);
        self.trained.drain(..cut);
        self.offsets.drain(..cut);
        self.truncated = true;
        // Nothing precedes it any more.
        if let Some(first) = self.trained.first_mut() {
            *first = false;
        }
        let start = self.offsets.first().map_or(0, |&(start, _)| start);
        self.text.drain(..start);
        for (from, to) in &mut self.offsets {
            *from = from.saturating_sub(start);
            *to = to.saturating_sub(start);
        }
        self.across =
            self.across.filter(|(from, _)| *from >= start).map(|(from, to)| (from - start, to - start));
    }

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
    let trained = trained_tokens(&encoding.offsets, spans);
    let is_across =
        |&(start, end): &(usize, usize)| spans.iter().any(|span| start < span.start && span.start < end);
    let across = encoding.offsets.iter().position(is_across);
    Encoded {
        across: across.map(|token| encoding.offsets[token]),
        trained,
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
    Ok(Encoded { ids: ids.to_vec(), trained, text, offsets, across: None, truncated: false, label: None })
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

/// The last reply of a row as the template writes it, without special tokens; `None` if the row has none or cannot
/// be used.
pub fn written_reply(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Option<String> {
    let messages = row.example.messages()?;
    let untold = messages.into_iter().map(|message| Message { trained: None, ..message }).collect();
    let row = Row { example: Example::Messages(untold), ..row.clone() };
    let mut config = config.clone();
    config.data.train_on = TrainOn::Completion;
    config.data.reasoning = Reasoning::Train;
    let side = encode_whole(&row, tokenizer, template, &config).ok()?.into_iter().next()?;
    let ids = side.ids.iter().zip(&side.trained).filter(|(_, trained)| **trained).map(|(&id, _)| id);
    tokenizer.decode(&ids.collect::<Vec<_>>(), true).ok()
}

/// The conversation of a row as the chat template gets it.
pub fn conversation(row: &Row, template: &Template, config: &Config) -> Option<Vec<Message>> {
    row.example.messages().map(|messages| template.arranged(&messages, config))
}

#[cfg(test)]
mod tests;
