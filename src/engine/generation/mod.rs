//! Generation on token ids: several rows and several adapters in one batch, over one set of base weights.

mod sample;

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use luthier_core::random;
pub use sample::Sampling;

use crate::error::{EngineError, Result};
use crate::layers::{Active, Adapter, KvCache, Mask, Pass};
use crate::models::Model;
use crate::{csrc, ops};

/// Number of logits of a row from which most tokens can be sampled.
const LARGEST: usize = 1024;

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
    generate_with(model, rows, model.device().is_cuda(), on_token)
}

/// `ahead`: where every row takes its most likely token, the next pass is launched before the host has read these, so that a
/// GPU does not wait for the host.
fn generate_with(
    model: &Model,
    rows: &[Row],
    ahead: bool,
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
    let settled = settled(model, rows)?;
    let rows = &with_adapters(rows, &settled)[..];
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
    let samplings_of =
        |live: &[Live]| Samplings::of(live.iter().map(|row| rows[row.index].sampling), model.device());
    let mut samplings = samplings_of(&live)?;
    loop {
        let logits = model.logits(&last, active(&adapters(rows, &live)))?; // [B, V]
        let goes_on = live.iter().any(|row| row.tokens.len() + 1 < rows[row.index].max_new_tokens);
        let (tokens, next) = if ahead && goes_on && samplings.are_greedy() && grown(model, &cache).is_none() {
            let chosen = ops::argmax(&logits)?;
            // Queued before the next pass, so that it is there long before that is done.
            let read = csrc::download(&chosen)?;
            let arrived = csrc::Event::record(model.device())?;
            let next = one_more(model, &chosen, &adapters(rows, &live), &mut cache)?;
            arrived.wait()?;
            (ops::to_integers(&read)?.into_iter().map(|id| id as u32).collect(), Some(next))
        } else {
            (choose(&logits, rows, &live, &samplings)?, None)
        };
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
        let mut next = next;
        if kept.len() < live.len() {
            cache.keep_rows(&kept)?;
            live = kept.iter().map(|&place| std::mem::take(&mut live[place])).collect();
            samplings = samplings_of(&live)?;
            let places: Vec<i64> = kept.iter().map(|&place| place as i64).collect();
            let places = ops::integers(&places, model.device())?;
            next = next.map(|next| ops::select_rows(&next, 0, &places)).transpose()?;
        }
        last = match next {
            Some(next) => next,
            None => decode(model, rows, &live, &adapters(rows, &live), &mut cache)?,
        };
    }
}

/// Each adapter of the rows, with the form in which it makes tokens, if that is another.
type Settled<'a> = (&'a dyn Adapter, Option<Box<dyn Adapter>>);

fn settled<'a>(model: &Model, rows: &[Row<'a>]) -> Result<Vec<Settled<'a>>> {
    let mut settled: Vec<Settled> = Vec::new();
    for adapter in rows.iter().filter_map(|row| row.adapter) {
        if !settled.iter().any(|(known, _)| std::ptr::addr_eq(*known, adapter)) {
            settled.push((adapter, adapter.settled(&mut model.linears(), model.kind())?));
        }
    }
    Ok(settled)
}

fn with_adapters<'a>(rows: &[Row<'a>], settled: &'a [Settled<'a>]) -> Vec<Row<'a>> {
    let form = |adapter: &'a dyn Adapter| {
        let known = settled.iter().find(|(known, _)| std::ptr::addr_eq(*known, adapter));
        known.and_then(|(_, form)| form.as_deref()).map_or(adapter, |form| form as &dyn Adapter)
    };
    rows.iter().map(|row| Row { adapter: row.adapter.map(form), ..*row }).collect()
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
    let tokens: Vec<i64> = live.iter().map(|row| row.tokens.last().copied().map_or(0, i64::from)).collect();
    let tokens = ops::integers(&tokens, model.device())?;
    let Some(grown) = grown(model, cache) else { return one_more(model, &tokens, adapters, cache) };
    let mut last = if grown.contains(&false) {
        let last = one_more(model, &tokens, adapters, cache)?;
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

/// Which rows reach, with one token more, a length where keys are rotated differently; `None` if none does.
fn grown(model: &Model, cache: &KvCache) -> Option<Vec<bool>> {
    let grown: Vec<bool> = cache.lengths().iter().map(|&held| !model.rotates_alike(held, held + 1)).collect();
    grown.contains(&true).then_some(grown)
}

/// One more token for every row, `[B]` int64, after the cached ones: `[B, H]`.
fn one_more(
    model: &Model,
    tokens: &Tensor,
    adapters: &[Option<&dyn Adapter>],
    cache: &mut KvCache,
) -> Result<Tensor> {
    let shape = [tokens.size()[0], 1];
    let ids = ops::reshape(tokens, &shape)?;
    let positions = ops::reshape(&ops::integers(cache.lengths(), model.device())?, &shape)?;
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: active(adapters), noise: None };
    let hidden = model.hidden(&ids, &pass, Some(cache))?;
    ops::reshape(&hidden, &[shape[0], -1])
}

/// How the tokens of a batch are sampled.
struct Samplings {
    of_row: Vec<Sampling>,
    /// `[B]` f64 on the model's device; 1 for greedy rows.
    temperatures: Tensor,
}

impl Samplings {
    fn of(rows: impl Iterator<Item = Sampling>, device: Device) -> Result<Self> {
        let of_row: Vec<Sampling> = rows.collect();
        let temperatures = of_row.iter().map(|s| if s.is_greedy() { 1.0 } else { s.temperature });
        let temperatures = ops::doubles(&temperatures.collect::<Vec<_>>(), device)?;
        Ok(Self { of_row, temperatures })
    }

    fn are_greedy(&self) -> bool {
        self.of_row.iter().all(Sampling::is_greedy)
    }
}

/// The next token of every row of logits `[B, V]`.
fn choose(logits: &Tensor, rows: &[Row], live: &[Live], samplings: &Samplings) -> Result<Vec<u32>> {
    let draw = |row: &Live| random::unit(random::derive(rows[row.index].seed, row.tokens.len() as u64));
    // A CPU takes longer to find the largest logits than to weigh all of them.
    let read = if logits.device().is_cuda() { LARGEST } else { 0 };
    tokens_of(logits, samplings, &live.iter().map(draw).collect::<Vec<_>>(), read)
}

/// The token of each row of logits `[B, V]` for its sampling and draw. The host reads only the `read` largest logits of
/// each row, unless these do not decide it.
fn tokens_of(logits: &Tensor, samplings: &Samplings, draws: &[f64], read: usize) -> Result<Vec<u32>> {
    let wanted = &samplings.of_row;
    let vocabulary = logits.size().last().map_or(0, |&length| length as usize);
    let read = read.min(vocabulary);
    let mut tokens = Vec::with_capacity(wanted.len());
    let mut open = Vec::new();
    if wanted.iter().any(|sampling| !sampling.is_greedy() && sample::is_limited(sampling, read)) {
        let found = ops::largest_logits(logits, &samplings.temperatures, read as i64)?;
        let found = ops::to_doubles(&found)?;
        for ((found, sampling), &draw) in found.chunks_exact(2 + 2 * read).zip(wanted).zip(draws) {
            let (ids, values) = found[2..].split_at(read);
            let largest: Vec<(u32, f32)> =
                ids.iter().zip(values).map(|(&id, &value)| (id as u32, value as f32)).collect();
            let token = if sampling.is_greedy() {
                Some(found[0] as u32)
            } else {
                sample::sample_largest(&largest, found[1], sampling, draw)
            };
            open.extend(token.is_none().then_some(tokens.len()));
            tokens.push(token.unwrap_or_default());
        }
    } else {
        tokens.extend(ops::to_integers(&ops::argmax(logits)?)?.into_iter().map(|id| id as u32));
        open.extend((0..wanted.len()).filter(|&row| !wanted[row].is_greedy()));
    }
    if open.is_empty() {
        return Ok(tokens);
    }
    let rows: Vec<i64> = open.iter().map(|&row| row as i64).collect();
    let whole = ops::to_floats(&ops::select_rows(logits, 0, &ops::integers(&rows, logits.device())?)?)?;
    let tokens = Mutex::new(tokens);
    csrc::parallel(open.len(), &|place| {
        let (row, logits) = (open[place], &whole[place * vocabulary..][..vocabulary]);
        let token = sample::sample(logits, &wanted[row], draws[row]);
        tokens.lock().unwrap_or_else(PoisonError::into_inner)[row] = token;
    })?;
    Ok(tokens.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use luthier_core::model::{ModelFiles, Quantisation};
    use tch::Kind;

    use super::*;

    fn tokens_of(logits: &Tensor, wanted: &[(Sampling, f64)], read: usize) -> Vec<u32> {
        let (of_row, draws): (Vec<Sampling>, Vec<f64>) = wanted.iter().copied().unzip();
        let samplings = Samplings::of(of_row.into_iter(), logits.device()).unwrap();
        super::tokens_of(logits, &samplings, &draws, read).unwrap()
    }

    /// Logits of 5 rows: normal, with many ties, equal to one another, with a NaN and infinities, and of almost only one
    /// token.
    fn logits(vocabulary: i64, kind: Kind) -> Tensor {
        let unit = |place: u64| random::unit(random::derive(5, place));
        let numbers = (0..5 * vocabulary as u64).map(|place| {
            let (row, id) = (place / vocabulary as u64, place % vocabulary as u64);
            let normal = (-2.0 * (1.0 - unit(2 * place)).ln()).sqrt()
                * (std::f64::consts::TAU * unit(2 * place + 1)).cos();
            match (row, id) {
                (1, _) => normal.round(),
                (2, _) => 0.5,
                (3, 7) => f64::NAN,
                (3, 9) => f64::NEG_INFINITY,
                (4, 11) => 60.0,
                _ => 4.0 * normal,
            }
        });
        let numbers: Vec<f32> = numbers.map(|number| number as f32).collect();
        Tensor::from_slice(&numbers).view([5, vocabulary]).to_kind(kind)
    }

    #[test]
    fn the_largest_logits_give_the_tokens_that_all_logits_give() {
        let settings = [0.0, 0.01, 0.7, 1.0, 3.0].into_iter().flat_map(|temperature| {
            let limits = [
                (0, 1.0),
                (0, 0.95),
                (0, 0.3),
                (1, 1.0),
                (5, 1.0),
                (20, 0.9),
                (63, 1.0),
                (64, 0.5),
                (900, 0.99),
            ];
            limits.map(|(top_k, top_p)| Sampling { temperature, top_k, top_p })
        });
        let settings: Vec<Sampling> = settings.collect();
        for kind in [Kind::Float, Kind::BFloat16] {
            let logits = logits(3000, kind);
            for seed in 0..24 {
                for (place, sampling) in settings.iter().enumerate() {
                    // Rows of one batch may differ in their settings.
                    let wanted: Vec<(Sampling, f64)> = (0..5)
                        .map(|row| {
                            let other = settings[(place + 7 * row * seed) % settings.len()];
                            let draw = random::unit(random::derive(seed as u64, row as u64));
                            (if seed % 2 == 0 { *sampling } else { other }, draw)
                        })
                        .collect();
                    let all = tokens_of(&logits, &wanted, 0);
                    assert_eq!(tokens_of(&logits, &wanted, 64), all, "{kind:?} {wanted:?}");
                    for (row, (sampling, draw)) in
                        wanted.iter().enumerate().filter(|(_, (s, _))| !s.is_greedy())
                    {
                        let row_logits = ops::to_floats(&logits.get(row as i64)).unwrap();
                        assert_eq!(all[row], sample::sample(&row_logits, sampling, *draw));
                    }
                }
            }
        }
    }

    #[test]
    fn a_pass_that_is_launched_before_its_tokens_are_read_changes_nothing() {
        let files = ModelFiles::open(&crate::testing::model()).unwrap();
        let model = Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap();
        let prompts: [&[u32]; 4] = [&[10, 20, 30], &[11], &[12, 40, 41, 42, 43], &[13, 14]];
        let run = |ahead: bool, stop: &[u32], most: [usize; 4], sampling: Sampling| {
            let row = |(prompt, max_new_tokens): (&&'static [u32], usize)| Row {
                prompt,
                adapter: None,
                sampling,
                seed: 3,
                stop,
                max_new_tokens,
            };
            let rows: Vec<Row> = prompts.iter().zip(most).map(row).collect();
            let mut seen = Vec::new();
            let completions = generate_with(&model, &rows, ahead, &mut |row, token| {
                seen.push((row, token));
                let cancelled = row == 3 && seen.iter().filter(|(row, _)| *row == 3).count() == 4;
                if cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let found = completions.unwrap().into_iter().map(|found| (found.tokens, found.ended));
            (found.collect::<Vec<_>>(), seen)
        };
        let sampled = Sampling { temperature: 0.9, ..Sampling::GREEDY };
        let free = run(false, &[], [9, 3, 7, 9], Sampling::GREEDY);
        let stop = [free.0[0].0[4], free.0[2].0[2]];
        for (stop, most) in
            [(&[][..], [9, 3, 7, 9]), (&stop, [9, 3, 7, 9]), (&stop, [1, 1, 1, 1]), (&[], [5, 5, 5, 5])]
        {
            for sampling in [Sampling::GREEDY, sampled] {
                assert_eq!(
                    run(true, stop, most, sampling),
                    run(false, stop, most, sampling),
                    "{stop:?} {most:?}"
                );
            }
        }
    }

    #[test]
    fn infinity_and_small_vocabularies_are_no_exception() {
        let sampling = Sampling { temperature: 0.8, top_k: 3, top_p: 0.9 };
        let all = [f32::INFINITY, 1.0, f32::INFINITY, f32::NAN, -2.0, 0.5, 0.25];
        let logits = Tensor::from_slice(&all).view([1, 7]);
        for draw in (0..20).map(|draw| f64::from(draw) / 20.0) {
            let found = tokens_of(&logits, &[(sampling, draw)], LARGEST);
            assert_eq!(found, [sample::sample(&all, &sampling, draw)]);
        }
        let nothing = Tensor::from_slice(&[f32::NAN; 7]).view([1, 7]).to_device(Device::Cpu);
        let found = tokens_of(&nothing, &[(sampling, 0.5)], 4);
        assert_eq!(found, [sample::sample(&[f32::NAN; 7], &sampling, 0.5)]);
    }
}
