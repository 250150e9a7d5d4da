//! Evaluation: a model's replies, and the comparison of a run with its base model.

mod compare;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use luthier_core::config::Config;
use luthier_core::data::{self, Extras, Message, Row as DataRow};

pub use compare::{Comparison, Request, SideReport, compare};

use crate::base::Base;
use crate::error::Result;
use crate::generation::{self, Ended, Sampling};
use crate::in_halves::in_halves;
use crate::layers::Adapter;

/// Rows generated at the same time.
const ROWS_AT_ONCE: usize = 24;

/// A prompt to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The last message, as shown to people.
    pub shown: String,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The expected reply, if there is one.
    pub expected: Option<String>,
}

impl Question {
    /// From a conversation up to the model's reply, with a row's tools and template variables.
    pub fn new(
        base: &Base,
        config: &Config,
        messages: &[Message],
        extras: &Extras,
        expected: Option<String>,
    ) -> Result<Self> {
        let shown = messages.last().map(Message::shown).unwrap_or_default();
        Ok(Self { shown, prompt: base.prompt(messages, extras, config)?, expected })
    }

    /// From a row of the dataset whose last message is the model's; `None` for other rows. An answer labelled
    /// as bad, or with a weight of 0, is not an expected reply.
    pub fn of_row(base: &Base, config: &Config, row: &DataRow) -> Result<Option<Self>> {
        let Some(messages) = row.example.messages() else { return Ok(None) };
        match messages.split_last() {
            Some((reply, before)) if reply.is_assistant() && !before.is_empty() => {
                Self::new(base, config, before, &row.extras, expected(base, config, row, reply)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The same with another system prompt instead of the row's own.
    pub fn of_row_with_system(
        base: &Base,
        config: &Config,
        row: &DataRow,
        system: &str,
    ) -> Result<Option<Self>> {
        let Some(mut messages) = row.example.messages() else { return Ok(None) };
        messages.retain(|message| !message.is_system());
        messages.insert(0, Message::new("system", system));
        match messages.split_last() {
            Some((reply, before)) if reply.is_assistant() && before.len() > 1 => {
                Self::new(base, config, before, &row.extras, expected(base, config, row, reply)).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// The reply that the row has. One that thinks or calls tools is what the template makes of it, since that is what the
/// model writes.
fn expected(base: &Base, config: &Config, row: &DataRow, reply: &Message) -> Option<String> {
    if row.extras.label == Some(false) || reply.trained == Some(false) {
        return None;
    }
    if reply.reasoning.is_none() && reply.tool_calls.is_empty() {
        return Some(reply.content.clone());
    }
    let written = data::written_reply(row, &base.tokenizer, &base.template, config);
    Some(written.unwrap_or_else(|| reply.content.clone()))
}

/// Reply length and sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replying {
    pub sampling: Sampling,
    /// Most tokens of a reply.
    pub max_new_tokens: usize,
    /// Seed of sampling.
    pub seed: u64,
}

/// A question for the base model or for an adapter over it.
pub type Asked<'a> = (&'a Question, Option<&'a dyn Adapter>);

/// Answers in the order of the questions, many at a time. `progress` is called with the number of finished
/// replies and may cancel; then fewer are returned.
pub fn answer(
    base: &Base,
    asked: &[Asked],
    replying: &Replying,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<String>> {
    let mut replies = Vec::with_capacity(asked.len());
    for part in asked.chunks(ROWS_AT_ONCE) {
        let mut broken = false;
        let done = replies.len();
        let completions = in_halves(base.model.device(), part, &mut |part| {
            let rows: Vec<generation::Row> = part
                .iter()
                .map(|(question, adapter)| generation::Row {
                    prompt: &question.prompt,
                    adapter: *adapter,
                    sampling: replying.sampling,
                    seed: replying.seed,
                    stop: &base.stop,
                    max_new_tokens: replying.max_new_tokens,
                })
                .collect();
            generation::generate(&base.model, &rows, &mut |_, _| {
                broken = broken || progress(done).is_break();
                if broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })?;
        if broken {
            return Ok(replies);
        }
        for completion in completions.into_iter().flatten() {
            let tokens = match completion.ended {
                Ended::Stop => completion.tokens.split_last().map_or(&[][..], |(_, before)| before),
                Ended::Length | Ended::Cancelled => &completion.tokens,
            };
            replies.push(base.reply(tokens)?);
        }
    }
    // One more call, so that the last replies are reported too.
    let _ = progress(replies.len());
    Ok(replies)
}
