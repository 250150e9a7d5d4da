//! The loss mask: which part of a rendered conversation the model is to learn. It is found in the text that is
//! really rendered.
//!
//! * `{% generation %}` blocks mark it (as in transformers' `return_assistant_tokens_mask`). A block belongs to
//!   the message whose words it writes.
//! * Otherwise a reply begins where the rendering of the messages before it, with the generation prompt, and the
//!   whole text part (TRL's rule for prompt and completion). What the generation prompt supplies is never
//!   trained.
//! * Where the template writes earlier messages differently once the conversation goes on, a reply is found by
//!   its own words, behind those of the messages before it.
//!
//! A reply ends with its end-of-turn token. What the template writes after that token is not trained, because
//! generation stops before it, unless `data.train_after_end` asks for it. If a place is ambiguous, it is a problem
//! of the row; nothing is guessed.

use std::cell::OnceCell;
use std::ops::Range;

use super::message::inline_reasoning;
use super::template::{Part, Probe, Rendered};
use super::{DataError, Extras, Message, Template, Tokenizer};
use crate::config::{DataSection, Reasoning, TrainOn};
use crate::text::clean_line;

/// Most replies of a row that are located: each needs a rendering of everything before it.
const MAX_SEARCHED: usize = 1024;
/// Characters shown of two texts from where they part.
const SHOWN: usize = 60;
/// Bytes before a reply's words that tell its place where the template has no header for replies.
const ANCHOR: usize = 32;

/// Why there is no mask.
#[derive(Debug)]
pub(super) enum MaskError {
    /// The template failed on a part of the conversation.
    Template(DataError),
    /// The place of a reply is ambiguous.
    Uncertain(String),
}

/// Byte ranges of `whole.text` that are trained on, in order, without overlap.
pub(super) fn trained_spans(
    template: &Template,
    tokenizer: &Tokenizer,
    messages: &[Message],
    extras: &Extras,
    settings: &DataSection,
    train_on: TrainOn,
    whole: &Rendered,
) -> Result<Vec<Range<usize>>, MaskError> {
    let finder = Finder { template, tokenizer, messages, extras, settings, whole, places: OnceCell::new() };
    let all = 0..whole.text.len();
    let spans = if train_on == TrainOn::All {
        let refused = (0..messages.len()).filter(|&index| messages[index].trained == Some(false));
        let refused: Vec<usize> = refused.filter(|&index| finder.is_written(index)).collect();
        let hidden = finder.spans(&refused)?.into_iter().map(|(_, span)| span).collect();
        without(std::iter::once(all).collect(), &joined(hidden))
    } else {
        let mut spans = finder.spans(&wanted(messages, train_on))?;
        if settings.reasoning == Reasoning::Mask {
            spans = finder.without_reasoning(spans);
        }
        joined(spans.into_iter().map(|(_, span)| span).collect())
    };
    Ok(spans)
}

/// The messages that are trained on. What a row says of a message decides; otherwise `data.train_on` does.
pub(super) fn wanted(messages: &[Message], train_on: TrainOn) -> Vec<usize> {
    let last = messages.iter().rposition(Message::is_assistant);
    let by_setting = |index: usize| match train_on {
        TrainOn::All => true,
        TrainOn::Assistant => messages[index].is_assistant(),
        TrainOn::Completion => last == Some(index),
    };
    (0..messages.len())
        .filter(|&index| messages[index].trained.unwrap_or_else(|| by_setting(index)))
        .collect()
}

/// Where a message stands in the text.
#[derive(Debug, Clone, Default)]
struct Place {
    /// The header of a reply.
    header: Option<usize>,
    words: Option<Range<usize>>,
}

struct Finder<'row> {
    template: &'row Template,
    tokenizer: &'row Tokenizer,
    messages: &'row [Message],
    extras: &'row Extras,
    settings: &'row DataSection,
    whole: &'row Rendered,
    /// Where the words of each message are, found in order.
    places: OnceCell<Vec<Place>>,
}

impl Finder<'_> {
    /// The ranges of these messages, each with the message that it belongs to.
    fn spans(&self, wanted: &[usize]) -> Result<Vec<(usize, Range<usize>)>, MaskError> {
        let marked = self.template.marks_generation(self.extras);
        let mut spans = if marked { self.blocks(wanted)? } else { Vec::new() };
        let searched =
            || wanted.iter().copied().filter(|&index| !(marked && self.messages[index].is_assistant()));
        if let Some(index) = searched().nth(MAX_SEARCHED) {
            return Err(self.uncertain(index, "has too many replies before it to be located", None));
        }
        for index in searched() {
            let span =
                if self.messages[index].is_assistant() { self.reply(index)? } else { self.words(index)? };
            spans.push((index, span));
        }
        Ok(spans)
    }

    /// Whether the template writes the words of a message somewhere, as far as is known.
    fn is_written(&self, index: usize) -> bool {
        self.messages[index].is_assistant() || !self.loses(Part::Content(index))
    }

    /// Whether the template leaves a part out, as far as is known.
    fn loses(&self, part: Part) -> bool {
        let probe = self.template.probe(self.messages, self.extras);
        probe.is_some_and(|probe| probe.lost().contains(&part))
    }

    /// The generation blocks of these messages.
    fn blocks(&self, wanted: &[usize]) -> Result<Vec<(usize, Range<usize>)>, MaskError> {
        let blocks = &self.whole.generation;
        let replies: Vec<usize> =
            (0..self.messages.len()).filter(|&index| self.messages[index].is_assistant()).collect();
        let owners = self.owners(&replies);
        let all = replies.iter().all(|reply| wanted.contains(reply));
        if owners.is_none() && all && self.settings.reasoning != Reasoning::Mask {
            // Every block is trained, so it makes no difference which reply wrote it.
            let last = replies.last().copied().unwrap_or(0);
            return Ok(blocks.iter().map(|span| (last, span.clone())).collect());
        }
        let owners = owners.ok_or_else(|| {
            let what = format!(
                "cannot be told from the others: the template wrote {} generation blocks for {} replies",
                blocks.len(),
                replies.len()
            );
            self.uncertain(replies.first().copied().unwrap_or(0), &what, None)
        })?;
        let owned = owners.into_iter().zip(blocks.iter().cloned());
        Ok(owned.filter(|(owner, _)| wanted.contains(owner)).collect())
    }

    /// The message that wrote each generation block.
    fn owners(&self, replies: &[usize]) -> Option<Vec<usize>> {
        let blocks = &self.whole.generation;
        let is_reply = |index: usize| self.messages[index].is_assistant();
        let probed = self.template.probe(self.messages, self.extras).map(|probe| probe.owners(is_reply));
        let probed = probed.filter(|owners| owners.len() == blocks.len());
        if let Some(owners) = probed.and_then(|owners| owners.into_iter().collect::<Option<Vec<_>>>()) {
            return Some(owners);
        }
        (blocks.len() == replies.len()).then(|| replies.to_vec())
    }

    /// The words of a message that is not a reply.
    fn words(&self, index: usize) -> Result<Range<usize>, MaskError> {
        self.places()[index]
            .words
            .clone()
            .ok_or_else(|| self.uncertain(index, "is not rendered word for word", None))
    }

    /// The text of the reply `index` with its end-of-turn token.
    fn reply(&self, index: usize) -> Result<Range<usize>, MaskError> {
        let start = self.start(index)?;
        let whole = self.whole.text.as_str();
        let through = if index + 1 == self.messages.len() {
            Some(whole.len())
        } else {
            let through = self.render(index + 1, false).ok();
            through.filter(|text| whole.starts_with(text.as_str())).map(|text| text.len())
        };
        if let Some(end) = through.filter(|&end| end >= start) {
            return Ok(start..start + self.kept(&whole[start..end]));
        }
        let end = self.end_by_words(index, start)?;
        let is_inside = |place: &Range<usize>| !place.is_empty() && place.start >= start && place.end <= end;
        let others = self.places().iter().enumerate().filter(|(other, _)| *other != index);
        match others
            .filter_map(|(other, place)| Some((other, place.words.as_ref()?)))
            .find(|(_, place)| is_inside(place))
        {
            Some((other, _)) => {
                let what = format!("cannot be told from message {}", other + 1);
                Err(self.uncertain(index, &what, None))
            }
            None => Ok(start..end),
        }
    }

    /// Where the reply `index` begins.
    fn start(&self, index: usize) -> Result<usize, MaskError> {
        let whole = self.whole.text.as_str();
        if index == 0 {
            return self.start_by_words(index, None);
        }
        let prompt = self.render(index, true)?;
        if whole.starts_with(&prompt) {
            return Ok(prompt.len());
        }
        // Up to the generation prompt the two must agree; otherwise the template has rewritten earlier messages.
        match self.render(index, false).ok().filter(|before| prompt.starts_with(before.as_str())) {
            Some(before) if whole.starts_with(&before) => {
                let supplied = &prompt[before.len()..];
                let shared = self.shared_with_prompt(supplied, &whole[before.len()..]);
                Ok(before.len() + shared)
            }
            Some(before) => self.start_by_words(index, Some((&prompt, &prompt[before.len()..]))),
            None => self.start_by_words(index, Some((&prompt, ""))),
        }
    }

    /// Length of what `text` shares with the generation prompt `supplied`. The two may begin alike beyond the
    /// header of a reply (`<think>` and `<tool_call>`), so a part ends where a line, a tag or a special token does.
    fn shared_with_prompt(&self, supplied: &str, text: &str) -> usize {
        let same = supplied.char_indices().zip(text.chars()).take_while(|((_, left), right)| left == right);
        let end = same.last().map_or(0, |((at, character), _)| at + character.len_utf8());
        if supplied[end..].trim().is_empty() {
            return end;
        }
        let header = self.template.reply_header(supplied);
        if header.len() <= end && text.starts_with(header) {
            let tags = supplied[..end].rfind(['>', '\n']).map_or(0, |at| at + 1);
            return header.len().max(tags);
        }
        let is_end = |at: &usize| {
            let before = &supplied[..*at];
            before.ends_with(['>', '\n', ' ']) || self.tokenizer.special_at_end(before).is_some()
        };
        (0..=end).rev().filter(|&at| supplied.is_char_boundary(at)).find(is_end).unwrap_or(0)
    }

    /// Where a reply begins, found by its own words. `prompt` is the rendering of the messages before it, and the
    /// generation prompt at its end.
    fn start_by_words(&self, index: usize, prompt: Option<(&str, &str)>) -> Result<usize, MaskError> {
        let whole = self.whole.text.as_str();
        let Some(place) = self.places()[index].words.clone() else {
            let what = match index {
                0 => "has no message before it, and its words are not in the text",
                _ => {
                    "is not rendered word for word, and the messages before it are rendered differently when the \
                      conversation continues"
                }
            };
            return Err(self.uncertain(index, what, prompt.map(|(prompt, _)| prompt)));
        };
        // Between the words of the message before and its own stand the header of the reply, and what the template
        // puts before its words.
        let others = self.places().iter().enumerate().filter(|(other, _)| *other != index);
        let ends = others.filter_map(|(_, other)| Some(other.words.as_ref()?.end));
        let from = ends.filter(|&end| end <= place.start).max().unwrap_or(0);
        let first = self.render(0, true).unwrap_or_default();
        let supplied = prompt.map_or(first.as_str(), |(_, supplied)| supplied);
        let between = &whole[from..place.start];
        let header = self.template.reply_header(supplied);
        if header.is_empty() {
            return Ok(place.start - (between.len() - between.trim_end_matches(' ').len()));
        }
        let Some(found) = between.rfind(header) else {
            let what = "has no header of a reply before its words";
            return Err(self.uncertain(index, what, prompt.map(|(prompt, _)| prompt)));
        };
        let behind = &whole[from + found..];
        Ok(from + found + self.shared_with_prompt(supplied, behind).max(header.len()))
    }

    /// Where a reply ends that begins at `start` and is followed by other messages.
    fn end_by_words(&self, index: usize, start: usize) -> Result<usize, MaskError> {
        let whole = self.whole.text.as_str();
        let place = self.places()[index].words.clone().filter(|place| place.start >= start);
        let words = place.map(|place| place.end);
        let own = words.unwrap_or(start);
        let others = self.places().iter().enumerate().filter(|(other, _)| *other != index);
        let starts =
            others.flat_map(|(_, place)| [place.header, place.words.as_ref().map(|words| words.start)]);
        let next = starts.flatten().filter(|&at| at > own).min();
        let limit = next.unwrap_or(whole.len()).max(start);
        let from = words.unwrap_or(start).min(limit);
        let behind = &whole[from..limit];
        let token = self.end_token(index);
        if let Some(token) = token.as_deref()
            && let Some(at) = behind.find(token)
        {
            let end = from + at + token.len();
            return Ok(if self.settings.train_after_end {
                end + spaces_at_start(&whole[end..])
            } else {
                end
            });
        }
        let Some(words) = words.filter(|_| self.messages[index].tool_calls.is_empty()) else {
            return Err(self.uncertain(
                index,
                "has no end that can be found: no special token follows it",
                None,
            ));
        };
        // The template ends this turn in another way: with the special token directly behind the words, or none.
        let gap = spaces_at_start(behind);
        let token = self.tokenizer.special_at_start(&behind[gap..]).map_or(0, |(text, _)| gap + text.len());
        Ok(words + token)
    }

    /// The special token with which the turn of a message ends.
    fn end_token(&self, index: usize) -> Option<String> {
        let turn_end = self.template.turn_end(self.tokenizer);
        let probe = self.template.probe(self.messages, self.extras);
        let Some(behind) = probe.as_deref().and_then(|probe| probe.behind(index)) else { return turn_end };
        if let Some(token) = turn_end.filter(|token| behind.contains(token.as_str())) {
            return Some(token);
        }
        let special = self.tokenizer.special_tokens().iter();
        let found = special.filter_map(|(text, _)| Some((behind.find(text.as_str())?, text)));
        found.min_by_key(|(at, text)| (*at, usize::MAX - text.len())).map(|(_, text)| text.clone())
    }

    /// Where each message stands, searched for in the order in which the template writes them, each behind the one
    /// before. The words of a reply are looked for up to the header of the next.
    fn places(&self) -> &[Place] {
        self.places.get_or_init(|| {
            let whole = self.whole.text.as_str();
            let probe = self.template.probe(self.messages, self.extras);
            let header = self.template.any_reply_header();
            let mut from = 0;
            let mut places = vec![Place::default(); self.messages.len()];
            // A template may put a system prompt or a tool's result elsewhere.
            let mut at = 0;
            let mut order: Vec<(usize, usize)> = Vec::with_capacity(self.messages.len());
            for index in 0..self.messages.len() {
                // A message without words stands behind the one before it.
                at = probe.as_deref().and_then(|probe| probe.first_word(index)).unwrap_or(at);
                order.push((at, index));
            }
            order.sort_unstable();
            for (_, index) in order {
                let message = &self.messages[index];
                let place = if message.is_assistant() && !header.is_empty() {
                    self.place_behind(header, from, message)
                } else {
                    let words = find_anchored(whole, from, message, probe.as_deref(), index);
                    Place { header: None, words }
                };
                let header_end = place.header.map(|at| at + header.len());
                from = place.words.as_ref().map(|words| words.end).or(header_end).unwrap_or(from).max(from);
                places[index] = place;
            }
            places
        })
    }

    /// The place of a reply whose header is the next one at or behind `from`.
    fn place_behind(&self, header: &str, from: usize, message: &Message) -> Place {
        let whole = self.whole.text.as_str();
        let Some(found) = whole[from..].find(header).map(|at| from + at) else { return Place::default() };
        let behind = found + header.len();
        let next = whole[behind..].find(header).map_or(whole.len(), |at| behind + at);
        // A reply may spell the header itself.
        let end = if message.content.contains(header) { whole.len() } else { next };
        Place { header: Some(found), words: find_words(&whole[..end], behind, message) }
    }

    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<String, MaskError> {
        self.template
            .render_marked(&self.messages[..count], self.extras, add_generation_prompt)
            .map(|rendered| rendered.text)
            .map_err(MaskError::Template)
    }

    /// Length of `reply` up to its end-of-turn token, or all of it if it does not end with a special token.
    fn kept(&self, reply: &str) -> usize {
        if self.settings.train_after_end {
            return reply.len();
        }
        let trimmed = reply.trim_end();
        if self.tokenizer.special_at_end(trimmed).is_some() { trimmed.len() } else { reply.len() }
    }

    /// `spans` without what the replies think.
    fn without_reasoning(&self, spans: Vec<(usize, Range<usize>)>) -> Vec<(usize, Range<usize>)> {
        let mut kept = Vec::with_capacity(spans.len());
        for (index, span) in spans {
            let is_written = !self.loses(Part::Reasoning(index));
            let hidden =
                self.thoughts(&span, self.messages[index].reasoning.as_deref().filter(|_| is_written));
            let parts = without(std::iter::once(span).collect(), &hidden);
            kept.extend(parts.into_iter().map(|part| (index, part)));
        }
        kept
    }

    /// Where a reply thinks: between the tags at its beginning, or the words of its reasoning.
    fn thoughts(&self, span: &Range<usize>, reasoning: Option<&str>) -> Vec<Range<usize>> {
        const OPEN: &str = "<think>";
        const CLOSE: &str = "</think>";
        let whole = self.whole.text.as_str();
        let text = &whole[span.clone()];
        let header = self.template.any_reply_header();
        let body = text.strip_prefix(header).unwrap_or(text).trim_start();
        // The generation prompt may have opened the block.
        let is_open = body.starts_with(OPEN) || whole[..span.start].trim_end().ends_with(OPEN);
        if is_open && let Some(close) = text.find(CLOSE) {
            let begin = span.start + (text.len() - body.len());
            return std::iter::once(begin..span.start + close + CLOSE.len()).collect();
        }
        let words = reasoning.map(str::trim).filter(|words| !words.is_empty());
        let found = words.and_then(|words| Some((text.find(words)?, words.len())));
        found.map(|(at, length)| span.start + at..span.start + at + length).into_iter().collect()
    }

    /// `other` is a text that should have been how the whole begins.
    fn uncertain(&self, index: usize, what: &str, other: Option<&str>) -> MaskError {
        let parted = other.map_or_else(String::new, |other| self.parted(other));
        MaskError::Uncertain(format!(
            "the loss mask is uncertain: with template {}, message {} ({}) {what}{parted}. Use a template with {{% \
             generation %}} blocks, or train on the whole text with data.train_on = \"all\"",
            self.template.name,
            index + 1,
            clean_line(&self.messages[index].role)
        ))
    }

    /// Both texts from where they part.
    fn parted(&self, other: &str) -> String {
        let whole = self.whole.text.as_str();
        let same = whole.char_indices().zip(other.chars()).take_while(|((_, left), right)| left == right);
        let end = same.last().map_or(0, |((at, character), _)| at + character.len_utf8());
        let shown = |text: &str| format!("{:?}", text.chars().take(SHOWN).collect::<String>());
        format!(
            " (alone they continue with {}, in the whole conversation with {})",
            shown(&other[end..]),
            shown(&whole[end..])
        )
    }
}

/// Where the words of a message stand at or after `from`. A reply without words has an empty place there.
fn find_words(whole: &str, from: usize, message: &Message) -> Option<Range<usize>> {
    let thinks = message.is_assistant().then(|| inline_reasoning(&message.content)).flatten();
    let words = [message.content.trim(), thinks.map_or("", |(_, rest)| rest.trim())];
    if words[0].is_empty() {
        return message.is_assistant().then_some(from..from);
    }
    let found = words.into_iter().filter(|words| !words.is_empty()).filter_map(|words| {
        let at = from + whole.get(from..)?.find(words)?;
        Some((at, at + words.len()))
    });
    // The whole content before its end alone, where both begin at one place.
    found.min_by_key(|&(start, end)| (start, usize::MAX - end)).map(|(start, end)| start..end)
}

/// As [`find_words`], but directly behind what the template writes before this message's words.
fn find_anchored(
    whole: &str,
    from: usize,
    message: &Message,
    probe: Option<&Probe>,
    index: usize,
) -> Option<Range<usize>> {
    let anchor = probe.and_then(|probe| probe.before_content(index, ANCHOR)).unwrap_or_default().trim_end();
    let mut at = from;
    // Nothing tells where a reply without words stands.
    while let Some(place) = find_words(whole, at, message).filter(|place| !place.is_empty()) {
        if whole[from..place.start].trim_end().ends_with(anchor) || anchor.is_empty() {
            return Some(place);
        }
        at = place.start + whole[place.start..].chars().next().map_or(1, char::len_utf8);
    }
    None
}

fn spaces_at_start(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Ranges in order, with those that overlap made one.
fn joined(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_by_key(|span| span.start);
    let mut all: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans {
        match all.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => all.push(span),
        }
    }
    all
}

/// `spans` without `hidden`; both in order.
fn without(spans: Vec<Range<usize>>, hidden: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut kept = Vec::with_capacity(spans.len());
    for span in spans {
        let mut start = span.start;
        for hole in hidden.iter().filter(|hole| hole.start < span.end && hole.end > span.start) {
            if hole.start > start {
                kept.push(start..hole.start);
            }
            start = start.max(hole.end);
        }
        if start < span.end {
            kept.push(start..span.end);
        }
    }
    kept
}

/// Whether each token touches a trained span. The first token is never trained, because nothing precedes it.
pub(super) fn trained_tokens(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> Vec<bool> {
    offsets
        .iter()
        .enumerate()
        .map(|(index, &(start, end))| {
            // Spans are sorted: if the first span that ends after the token's start begins after the token,
            // all later ones do.
            let next = spans.partition_point(|span| span.end <= start);
            index > 0 && start < end && spans.get(next).is_some_and(|span| span.start < end)
        })
        .collect()
}
