//! How good a model is: loss on the held-out examples, and replies that the objective scores.

mod compare;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use luthier_core::config::Config;
use luthier_core::data::{EncodedRow, Message, Row as DataRow};
use luthier_core::runs::PairRewards;

pub use compare::{Comparison, Request, SideReport, compare};

use crate::base::Base;
use crate::error::Result;
use crate::generation::{self, Ended, Sampling};
use crate::methods::Adapter;
use crate::models::{Active, Model, Pass, head};
use crate::ops;
use crate::training::batch::{Beginnings, collate};
use crate::training::dpo::Dpo;
use crate::training::reference::{Reference, log_probs};

/// Tokens of held-out rows in one forward pass.
const TOKENS_AT_ONCE: usize = 4096;

/// Rows that generate at the same time.
const ROWS_AT_ONCE: usize = 24;

/// Loss on held-out rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// Mean over all trained tokens, or over all preference pairs, natural logarithm.
    pub loss: f64,
    /// Rows evaluated.
    pub rows: u64,
    /// Trained tokens in them.
    pub trained_tokens: u64,
    /// What else is known, depending on what is learned from.
    pub beside: Beside,
}

/// What is known of held-out rows beside their loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Beside {
    /// Of replies: the share of trained tokens whose most likely prediction is right.
    TokenAccuracy(f64),
    /// Of preference pairs: how their answers compare.
    Rewards(PairRewards),
}

impl HeldOut {
    /// `exp(loss)`, where the loss is one of tokens.
    pub fn perplexity(&self) -> Option<f64> {
        self.token_accuracy().map(|_| self.loss.exp())
    }

    /// Share of trained tokens whose most likely prediction is right, where the loss is one of tokens.
    pub fn token_accuracy(&self) -> Option<f64> {
        match self.beside {
            Beside::TokenAccuracy(share) => Some(share),
            Beside::Rewards(_) => None,
        }
    }

    /// How the answers compare, where rows are preference pairs.
    pub fn rewards(&self) -> Option<PairRewards> {
        match self.beside {
            Beside::TokenAccuracy(_) => None,
            Beside::Rewards(rewards) => Some(rewards),
        }
    }
}

/// Loss of `rows` under the model with `adapters`. `progress` hears the number of rows done, and may break it off; then,
/// and where no token is trained on, there is no result.
pub fn held_out(
    model: &Model,
    adapters: Active,
    rows: &[EncodedRow],
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<HeldOut>> {
    let _guard = tch::no_grad_guard();
    let (mut sum, mut correct, mut trained, mut done) = (0.0, 0.0, 0, 0);
    for part in parts(rows) {
        let batch = collate(part.iter().copied(), Beginnings::of(model), model.device())?;
        if batch.trained > 0 {
            let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
            let hidden = model.hidden(&batch.ids, &pass, None)?;
            let losses = head::loss_sum(model, pass.adapters, &hidden, &batch.targets, true)?;
            sum += ops::value(&losses.sum)?;
            correct += ops::value(&losses.correct)?;
            trained += batch.trained;
        }
        done += part.len();
        if progress(done).is_break() {
            return Ok(None);
        }
    }
    Ok((trained > 0).then(|| HeldOut {
        loss: sum / trained as f64,
        rows: rows.len() as u64,
        trained_tokens: trained,
        beside: Beside::TokenAccuracy(correct / trained as f64),
    }))
}

/// Loss of preference pairs, and how their answers compare, under the model with `adapters`. `progress` hears the number
/// of pairs done, and may break it off; then, and without any pair, there is no result.
pub fn held_out_pairs(
    model: &Model,
    adapters: Active,
    rows: &[EncodedRow],
    dpo: &Dpo,
    reference: &mut Reference,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<HeldOut>> {
    let _guard = tch::no_grad_guard();
    let (mut loss, mut rewards, mut trained, mut done) = (0.0, [0.0; 3], 0, 0);
    for part in parts(rows) {
        let batch = reference.batch(model, &part, Beginnings::of(model))?;
        let policy = log_probs(model, adapters, &batch.pairs)?;
        let compared = dpo.compare(&policy, &batch.reference)?;
        loss += ops::to_doubles(&compared.losses)?.iter().sum::<f64>();
        let sides = ops::to_doubles(&compared.chosen)?.into_iter().zip(ops::to_doubles(&compared.rejected)?);
        for (chosen, rejected) in sides {
            let [all_chosen, all_rejected, right] = &mut rewards;
            *all_chosen += chosen;
            *all_rejected += rejected;
            *right += f64::from(u8::from(chosen > rejected));
        }
        trained += batch.as_ref().trained;
        done += part.len();
        if progress(done).is_break() {
            return Ok(None);
        }
    }
    Ok((done > 0).then(|| HeldOut {
        loss: loss / done as f64,
        rows: done as u64,
        trained_tokens: trained,
        beside: Beside::Rewards(PairRewards::mean(rewards, done as u64)),
    }))
}

/// Rows in parts that make one forward pass each; at least one row in each.
pub fn parts(rows: &[EncodedRow]) -> Vec<Vec<&EncodedRow>> {
    let mut parts: Vec<Vec<&EncodedRow>> = Vec::new();
    let mut room = 0;
    for row in rows {
        match parts.last_mut() {
            Some(part) if row.tokens() <= room => part.push(row),
            _ => {
                parts.push(vec![row]);
                room = TOKENS_AT_ONCE;
            }
        }
        room = room.saturating_sub(row.tokens());
    }
    parts
}

/// Something to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The last thing said, as people are shown it.
    pub shown: String,
    /// Ids to go on from.
    pub prompt: Vec<u32>,
    /// The reply that is wanted, where there is one.
    pub expected: Option<String>,
}

impl Question {
    /// From a conversation that ends where the model is to go on.
    pub fn new(base: &Base, config: &Config, messages: &[Message], expected: Option<String>) -> Result<Self> {
        let shown = messages.last().map(|message| message.content.clone()).unwrap_or_default();
        Ok(Self { shown, prompt: base.prompt(messages, config)?, expected })
    }

    /// From a row of the dataset whose last message is the model's; none for others.
    pub fn of_row(base: &Base, config: &Config, row: &DataRow) -> Result<Option<Self>> {
        let Some(messages) = row.example.messages() else { return Ok(None) };
        match messages.split_last() {
            Some((reply, before)) if reply.is_assistant() && !before.is_empty() => {
                Self::new(base, config, before, Some(reply.content.clone())).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The same with another system prompt in place of its own.
    pub fn of_row_with_system(
        base: &Base,
        config: &Config,
        row: &DataRow,
        system: &str,
    ) -> Result<Option<Self>> {
        let Some(mut messages) = row.example.messages() else { return Ok(None) };
        messages.retain(|message| message.role != "system");
        messages.insert(0, Message::new("system", system));
        match messages.split_last() {
            Some((reply, before)) if reply.is_assistant() && before.len() > 1 => {
                Self::new(base, config, before, Some(reply.content.clone())).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// How many tokens a reply may have, and how they are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replying {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Longest reply.
    pub max_new_tokens: usize,
    /// Decides what is drawn.
    pub seed: u64,
}

/// A question put to the base model or to an adapter over it.
pub type Asked<'a> = (&'a Question, Option<&'a dyn Adapter>);

/// Answers in the order of the questions, many at a time. `progress` hears the number of those done and may break it off:
/// then fewer come back.
pub fn answer(
    base: &Base,
    asked: &[Asked],
    replying: &Replying,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<String>> {
    let mut replies = Vec::with_capacity(asked.len());
    for part in asked.chunks(ROWS_AT_ONCE) {
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
        let mut broken = false;
        let done = replies.len();
        let completions = generation::generate(&base.model, &rows, &mut |_, _| {
            broken = broken || progress(done).is_break();
            if broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if broken {
            return Ok(replies);
        }
        for completion in completions {
            let tokens = match completion.ended {
                Ended::Stop => completion.tokens.split_last().map_or(&[][..], |(_, before)| before),
                Ended::Length | Ended::Cancelled => &completion.tokens,
            };
            replies.push(base.reply(tokens)?);
        }
    }
    // Called once more so that the last part is heard of too.
    let _ = progress(replies.len());
    Ok(replies)
}
