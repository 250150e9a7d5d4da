//! Generation on token ids: several rows and several adapters in one batch, over one set of base weights.

mod sample;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tch::Tensor;

use luthier_core::random;
pub use sample::Sampling;

use crate::error::{EngineError, Result};
use crate::layers::{Active, Adapter, KvCache, Mask, Pass};
use crate::models::Model;
use crate::ops;

/// The prompt and settings of one row of a batch.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// At least one token.
    pub prompt: &'a [u32],
    /// Acts on this row only; `None` is the base model.
    pub adapter: Option<&'a dyn Adapter>,
    pub sampling: Sampling,
    /// With the same seed a row samples the same tokens in any batch, as long as its logits are computed with
    /// the same arithmetic.
    pub seed: u64,
    /// Tokens that end the row. The stop token is the last one of its completion.
    pub stop: &'a [u32],
    /// Most new tokens.
    pub max_new_tokens: usize,
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It generated a stop token.
    Stop,
    /// It reached `max_new_tokens`.
    Length,
    /// The callback cancelled it.
    Cancelled,
}

/// The result of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The generated tokens, without the prompt.
    pub tokens: Vec<u32>,
    pub ended: Ended,
    /// From the start of the batch to the row's last token.
    pub duration: Duration,
}

/// Continues every row. `on_token(row, token)` is called for each token as it is generated;
/// [`ControlFlow::Break`] ends that row.
pub fn generate(
    model: &Model,
    rows: &[Row],
    on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    let _guard = tch::no_grad_guard();
    let started = Instant::now();
    let vocabulary = model.architecture().vocabulary;
    for (index, row) in rows.iter().enumerate() {
        if row.prompt.is_empty() {
            return Err(EngineError::Data(format!("the prompt of row {index} is empty")));
        }
        if let Some(id) = row.prompt.iter().find(|&&id| id as usize >= vocabulary) {
            let message =
                format!("the prompt of row {index} has token id {id}; the model has {vocabulary} tokens");
            return Err(EngineError::Data(message));
        }
    }
    let mut completions: Vec<Option<Completion>> = vec![None; rows.len()];
    // Consecutive rows with the same adapter share one product with it.
    let mut live: Vec<Live> =
        rows.iter().enumerate().map(|(index, _)| Live { index, tokens: vec![] }).collect();
    live.sort_by_key(|row| rows[row.index].adapter.map(|adapter| std::ptr::from_ref(adapter).addr()));
    live.retain(|row| {
        let none = rows[row.index].max_new_tokens == 0;
        if none {
            let duration = started.elapsed();
            completions[row.index] = Some(Completion { tokens: vec![], ended: Ended::Length, duration });
        }
        !none
    });
    if live.is_empty() {
        return Ok(completions.into_iter().flatten().collect());
    }
    let mut cache = model.cache(live.len());
    let prompts: Vec<&[u32]> = live.iter().map(|row| rows[row.index].prompt).collect();
    let mut last = prefill(model, &prompts, &adapters(rows, &live), &mut cache)?;
    loop {
        let tokens = choose(model, &last, rows, &live)?;
        let mut kept = Vec::with_capacity(live.len());
        for (place, (row, &token)) in live.iter_mut().zip(&tokens).enumerate() {
            let Row { stop, max_new_tokens, .. } = rows[row.index];
            row.tokens.push(token);
            let ended = if on_token(row.index, token).is_break() {
                Some(Ended::Cancelled)
            } else if stop.contains(&token) {
                Some(Ended::Stop)
            } else if row.tokens.len() >= max_new_tokens {
                Some(Ended::Length)
            } else {
                None
            };
            match ended {
                Some(ended) => {
                    let tokens = std::mem::take(&mut row.tokens);
                    completions[row.index] = Some(Completion { tokens, ended, duration: started.elapsed() });
                }
                None => kept.push(place),
            }
        }
        if kept.is_empty() {
            return Ok(completions.into_iter().flatten().collect());
        }
        if kept.len() < live.len() {
            cache.keep_rows(&kept)?;
            live = kept.iter().map(|&place| std::mem::take(&mut live[place])).collect();
        }
        last = decode(model, rows, &live, &adapters(rows, &live), &mut cache)?;
    }
}

/// A row that is still being generated.
#[derive(Default)]
struct Live {
    index: usize,
    tokens: Vec<u32>,
}

fn adapters<'a>(rows: &[Row<'a>], live: &[Live]) -> Vec<Option<&'a dyn Adapter>> {
    live.iter().map(|row| rows[row.index].adapter).collect()
}

fn active<'a>(adapters: &'a [Option<&'a dyn Adapter>]) -> Active<'a> {
    if adapters.iter().all(Option::is_none) { Active::Base } else { Active::Rows(adapters) }
}

/// Fills the cache with all prompts, padded on the right. Returns the hidden states of their last tokens,
/// `[B, H]`.
fn prefill(
    model: &Model,
    prompts: &[&[u32]],
    adapters: &[Option<&dyn Adapter>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let width = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or_default();
    let rows = prompts.len() as i64;
    let mut ids = Vec::with_capacity(prompts.len() * width);
    for prompt in prompts {
        ids.extend(prompt.iter().map(|&id| i64::from(id)));
        ids.resize(ids.len() + width - prompt.len(), 0);
    }
    let shape = [rows, width as i64];
    let ids = ops::reshape(&ops::integers(&ids, model.device())?, &shape)?;
    let given = prompts.iter().zip(adapters).map(|(prompt, adapter)| {
        let before = adapter.map_or(0, Adapter::virtual_tokens);
        (before + prompt.len()) as i64
    });
    cache.expect(&given.collect::<Vec<_>>());
    model.begin(adapters, cache)?;
    let starts = cache.lengths().to_vec();
    let places: Vec<i64> = starts.iter().flat_map(|&start| start..start + width as i64).collect();
    let positions = ops::reshape(&ops::integers(&places, model.device())?, &shape)?;
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: active(adapters), noise: None };
    let hidden = model.hidden(&ids, &pass, Some(cache))?; // [B, T, H]
    let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.len() as i64).collect();
    let held: Vec<i64> = starts.iter().zip(&lengths).map(|(start, length)| start + length).collect();
    cache.truncate(&held);
    let ends: Vec<i64> =
        lengths.iter().enumerate().map(|(row, length)| row as i64 * shape[1] + length - 1).collect();
    let flat = ops::reshape(&hidden, &[rows * shape[1], -1])?;
    ops::select_rows(&flat, 0, &ops::integers(&ends, model.device())?)
}

/// One more token for every row: `[B, H]`. If a row reaches a length where keys are rotated differently, it
/// is computed again from its first token.
fn decode(
    model: &Model,
    rows: &[Row],
    live: &[Live],
    adapters: &[Option<&dyn Adapter>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let grown = cache.lengths().iter().map(|&held| !model.rotates_alike(held, held + 1)).collect::<Vec<_>>();
    if !grown.contains(&true) {
        return one_more(model, live, adapters, cache);
    }
    let mut last = if grown.contains(&false) {
        let last = one_more(model, live, adapters, cache)?;
        (0..live.len() as i64).map(|row| ops::narrow(&last, 0, row, 1)).collect::<Result<Vec<_>>>()?
    } else {
        vec![]
    };
    for (place, row) in live.iter().enumerate().filter(|(place, _)| grown[*place]) {
        let sequence = [rows[row.index].prompt, &row.tokens].concat();
        let mut own = model.cache(1);
        let hidden = prefill(model, &[&sequence], &adapters[place..=place], &mut own)?;
        cache.adopt(place, &own)?;
        if place < last.len() {
            last[place] = hidden;
        } else {
            last.push(hidden);
        }
    }
    ops::concatenate(&last, 0)
}

/// One more token for every row, after the cached ones: `[B, H]`.
fn one_more(
    model: &Model,
    live: &[Live],
    adapters: &[Option<&dyn Adapter>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let shape = [live.len() as i64, 1];
    let tokens: Vec<i64> = live.iter().map(|row| row.tokens.last().copied().map_or(0, i64::from)).collect();
    let ids = ops::reshape(&ops::integers(&tokens, model.device())?, &shape)?;
    let positions = ops::reshape(&ops::integers(cache.lengths(), model.device())?, &shape)?;
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: active(adapters), noise: None };
    let hidden = model.hidden(&ids, &pass, Some(cache))?;
    ops::reshape(&hidden, &[shape[0], -1])
}

/// The next token of every row.
fn choose(model: &Model, last: &Tensor, rows: &[Row], live: &[Live]) -> Result<Vec<u32>> {
    let logits = model.logits(last, active(&adapters(rows, live)))?; // [B, V]
    let best = ops::to_integers(&ops::argmax(&logits)?)?;
    let mut tokens: Vec<u32> = best.into_iter().map(|id| id as u32).collect();
    for (place, row) in live.iter().enumerate() {
        let Row { sampling, seed, .. } = rows[row.index];
        if !sampling.is_greedy() {
            let logits = ops::to_floats(&ops::narrow(&logits, 0, place as i64, 1)?)?;
            let draw = random::unit(random::derive(seed, row.tokens.len() as u64));
            tokens[place] = sample::sample(logits, &sampling, draw);
        }
    }
    Ok(tokens)
}
