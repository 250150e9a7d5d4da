//! The loss mask: which part of a rendered conversation the model is to learn.
//!
//! * If the template has `{% generation %}` blocks, they mark it (as in transformers'
//!   `return_assistant_tokens_mask`).
//! * Otherwise the conversation is rendered up to each reply, with the generation prompt. The whole must begin
//!   with that text, and the reply must follow directly. A reply ends with its end-of-turn token. White space
//!   that the template writes after that token is not trained, because generation stops before it. If this
//!   cannot be verified, it is a problem of the row; nothing is guessed.

use std::collections::HashSet;
use std::ops::Range;

use super::template::Rendered;
use super::{DataError, Extras, Message, Template, Tokenizer};
use crate::config::TrainOn;

/// Most replies of a row that are located: each needs a rendering of everything before it.
const MAX_SEARCHED: usize = 1024;

/// Why there is no mask.
#[derive(Debug)]
pub(super) enum MaskError {
    /// The template failed on a part of the conversation.
    Template(DataError),
    /// The renderings do not agree.
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
        return Err(finder.uncertain(searched[MAX_SEARCHED], "has too many replies before it to be located"));
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
    /// Where the reply `index` begins. The whole must begin with the rendering of the messages before it,
    /// with the generation prompt.
    fn start(&self, index: usize) -> Result<usize, MaskError> {
        if index == 0 {
            return self.first_start();
        }
        let before = self.render(index, true)?;
        if self.whole.text.starts_with(&before) {
            return Ok(before.len());
        }
        Err(self.uncertain(index, "renders differently when the conversation continues"))
    }

    /// Where a reply without messages before it begins. Templates may write a begin-of-text token or a system
    /// prompt only if there are messages, so the generation prompt followed by the reply is searched for.
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
        Err(self.uncertain(0, "has no message before it, and the template cannot render that"))
    }

    /// The text of the reply `index` with its end-of-turn token.
    fn reply(&self, index: usize) -> Result<Range<usize>, MaskError> {
        let start = self.start(index)?;
        let through = self.render(index + 1, false)?;
        let whole = self.whole.text.as_str();
        if whole.starts_with(&through) && through.len() >= start {
            return Ok(start..start + self.without_trailing_space(&whole[start..through.len()]));
        }
        // The template ends a conversation in another way than a turn. The reply must then follow word for
        // word, and ends with the special token after it.
        let content = self.messages[index].content.trim();
        let behind = &whole[start..];
        let lead = behind.len() - behind.trim_start().len();
        if !behind[lead..].starts_with(content) {
            return Err(self.uncertain(index, "is not rendered word for word"));
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

    /// Length of `reply` without the white space after its last token, if that is a special token.
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
