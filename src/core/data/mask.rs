//! The loss mask, decided once: which part of a rendered conversation the model is to learn.
//!
//! * `{% generation %}` blocks say it where the template has them (as transformers' `return_assistant_tokens_mask`).
//! * Otherwise by rendering the conversation up to each reply, with the generation prompt: that text must be how the
//!   whole begins, and the reply must stand right behind it. The reply ends with its end-of-turn token; white space that
//!   the template writes behind that token is not trained, since generation stops before it. What cannot be verified so
//!   is a problem of the row, never a guess.

use std::collections::HashSet;
use std::ops::Range;

use super::template::Rendered;
use super::{DataError, Extras, Message, Template, Tokenizer};
use crate::config::TrainOn;

/// Most replies of a row that are looked for: finding one renders everything up to it.
const MAX_SEARCHED: usize = 1024;

/// Why a mask cannot be given.
#[derive(Debug)]
pub(super) enum MaskError {
    /// The template failed on a part of the conversation.
    Template(DataError),
    /// What it rendered does not fit together.
    Uncertain(String),
}

/// Byte ranges of `whole.text` that are trained on, in order, without overlap.
pub(super) fn trained_spans(
    template: &Template,
    tokenizer: &Tokenizer,
    messages: &[Message],
    extras: &Extras,
    train_on: TrainOn,
    whole: &Rendered,
) -> Result<Vec<Range<usize>>, MaskError> {
    let replies: Vec<usize> = messages
        .iter()
        .enumerate()
        .filter(|(_, message)| message.is_assistant())
        .map(|(index, _)| index)
        .collect();
    let wanted: Vec<usize> = match train_on {
        TrainOn::All => return Ok(std::iter::once(0..whole.text.len()).collect()),
        TrainOn::Assistant => replies.clone(),
        TrainOn::Completion => replies.last().copied().into_iter().collect(),
    };
    let untrained: HashSet<usize> = extras.untrained.iter().copied().collect();
    let wanted: Vec<usize> = wanted.into_iter().filter(|index| !untrained.contains(index)).collect();
    if template.marks_generation() && wanted == replies {
        return Ok(whole.generation.clone());
    }
    let finder = Finder { template, tokenizer, messages, extras, whole };
    let searched = if template.marks_generation() { &replies } else { &wanted };
    if searched.len() > MAX_SEARCHED {
        return Err(
            finder.uncertain(searched[MAX_SEARCHED], "is too far behind in its conversation to be found")
        );
    }
    if !template.marks_generation() {
        return wanted.into_iter().map(|index| finder.reply(index)).collect();
    }
    // A block belongs to the last reply that begins before it.
    let starts = replies.iter().map(|&index| finder.start(index)).collect::<Result<Vec<_>, _>>()?;
    let mut spans = Vec::new();
    for span in &whole.generation {
        let owner = starts.iter().rposition(|&start| start <= span.start).map(|position| replies[position]);
        if owner.is_some_and(|index| wanted.contains(&index)) {
            spans.push(span.clone());
        }
    }
    Ok(spans)
}

struct Finder<'row> {
    template: &'row Template,
    tokenizer: &'row Tokenizer,
    messages: &'row [Message],
    extras: &'row Extras,
    whole: &'row Rendered,
}

impl Finder<'_> {
    /// Where the reply `index` begins: the conversation before it, with the generation prompt, must be how the whole
    /// begins.
    fn start(&self, index: usize) -> Result<usize, MaskError> {
        if index == 0 {
            return self.first_start();
        }
        let before = self.render(index, true)?;
        if self.whole.text.starts_with(&before) {
            return Ok(before.len());
        }
        Err(self.uncertain(index, "renders otherwise when the conversation goes on"))
    }

    /// Where a reply begins that nothing precedes. Templates may write a begin of text or a system prompt only where there
    /// are messages, so the generation prompt is looked for, with the reply right behind it.
    fn first_start(&self) -> Result<usize, MaskError> {
        let content = self.messages[0].content.trim();
        let prompt = self.render(0, true).unwrap_or_default();
        let whole = self.whole.text.as_str();
        if !prompt.is_empty()
            && let Some(at) = whole.find(&prompt)
            && whole[at + prompt.len()..].trim_start().starts_with(content)
        {
            return Ok(at + prompt.len());
        }
        Err(self.uncertain(0, "has nothing before it, which the template does not provide for"))
    }

    /// The text of the reply `index` with its end-of-turn token.
    fn reply(&self, index: usize) -> Result<Range<usize>, MaskError> {
        let start = self.start(index)?;
        let through = self.render(index + 1, false)?;
        let whole = self.whole.text.as_str();
        if whole.starts_with(&through) && through.len() >= start {
            return Ok(start..start + self.without_trailing_space(&whole[start..through.len()]));
        }
        // The template closes a conversation otherwise than a turn; the reply must then stand where it begins, word for
        // word, and ends with the special token behind it.
        let content = self.messages[index].content.trim();
        let behind = &whole[start..];
        let lead = behind.len() - behind.trim_start().len();
        if !behind[lead..].starts_with(content) {
            return Err(self.uncertain(index, "is not written as it stands in the row"));
        }
        let end = lead + content.len();
        let gap = behind[end..].len() - behind[end..].trim_start().len();
        let token =
            self.tokenizer.special_at_start(&behind[end + gap..]).map_or(0, |(text, _)| gap + text.len());
        Ok(start..start + end + token)
    }

    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<String, MaskError> {
        self.template
            .render_marked(&self.messages[..count], self.extras, add_generation_prompt)
            .map(|rendered| rendered.text)
            .map_err(MaskError::Template)
    }

    /// Length of `reply` without the white space behind its last token, if that is a special one.
    fn without_trailing_space(&self, reply: &str) -> usize {
        let trimmed = reply.trim_end();
        if self.tokenizer.special_at_end(trimmed).is_some() { trimmed.len() } else { reply.len() }
    }

    fn uncertain(&self, index: usize, what: &str) -> MaskError {
        MaskError::Uncertain(format!(
            "the loss mask is uncertain: with template {}, message {} {what}. Use a template with {{% generation %}} \
             blocks (data.template: {}) or data.train_on = \"all\"",
            self.template.name,
            index + 1,
            Template::built_in_names().collect::<Vec<_>>().join(", ")
        ))
    }
}

/// One per token: whether it touches a trained span. The first token is never trained: nothing precedes it.
pub(super) fn trained_tokens(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> Vec<bool> {
    offsets
        .iter()
        .enumerate()
        .map(|(index, &(start, end))| {
            // Spans stand in order: where the first that ends behind the token's start lies behind the token, all do.
            let next = spans.partition_point(|span| span.end <= start);
            index > 0 && start < end && spans.get(next).is_some_and(|span| span.start < end)
        })
        .collect()
}
