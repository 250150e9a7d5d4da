//! The speed of generation.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Peaks;
use super::plan::{Answers, Generate};
use super::rows::{Prepared, random_ids};
use crate::error::Result;
use crate::generation::{Row, generate};
use crate::layers::Adapter;
use crate::methods::method_of;
use crate::models::Model;

/// Measurements of generation.
#[derive(Debug, Clone, Serialize)]
pub struct GenerateFigures {
    #[serde(flatten)]
    pub answer: AnswerFigures,
    /// Of the base model's answers alone, if both models answered.
    pub alone: Option<AnswerFigures>,
}

/// Measurements of one batch.
#[derive(Debug, Clone, Serialize)]
pub struct AnswerFigures {
    /// Rows at a time.
    pub rows: usize,
    /// Tokens per second of all rows together, without the time for the prompt.
    pub tokens_per_second: f64,
    /// Seconds until the first token.
    pub first_token_seconds: f64,
    /// Seconds of the whole batch.
    pub seconds: f64,
    #[serde(flatten)]
    pub peaks: Peaks,
}

pub(super) fn measure(wanted: &Generate, prepared: &Prepared, model: &Model) -> Result<GenerateFigures> {
    let adapter = match wanted.answers {
        Answers::Base => None,
        Answers::Tuned | Answers::Pair => Some(method_of(&prepared.config).create(model, 0)?),
    };
    let tuned = adapter.as_deref();
    let (alone, adapters): (_, &[Option<&dyn Adapter>]) = match wanted.answers {
        Answers::Base => (None, &[None]),
        Answers::Tuned => (None, &[tuned]),
        Answers::Pair => {
            let alone = answer(wanted, &[None], model)?;
            Peaks::forget(model.device())?;
            (Some(alone), &[None, tuned])
        }
    };
    Ok(GenerateFigures { answer: answer(wanted, adapters, model)?, alone })
}

/// Answers to the prompts, each with every one of `adapters`.
fn answer(wanted: &Generate, adapters: &[Option<&dyn Adapter>], model: &Model) -> Result<AnswerFigures> {
    let vocabulary = model.architecture().vocabulary;
    let prompts: Vec<Vec<u32>> =
        (0..wanted.rows).map(|row| random_ids(vocabulary, wanted.prompt, 0, row)).collect();
    let row = |(seed, prompt)| {
        adapters.iter().map(move |&adapter| Row {
            prompt,
            adapter,
            sampling: wanted.sampling(),
            seed,
            stop: &[],
            max_new_tokens: wanted.new_tokens,
        })
    };
    let prompts = prompts.iter().map(Vec::as_slice);
    let rows: Vec<Row> = (0..).zip(prompts).flat_map(row).collect();
    let mut first = Duration::ZERO;
    let mut last = Duration::ZERO;
    // The first round is a warm-up.
    for _ in 0..2 {
        let began = Instant::now();
        first = Duration::ZERO;
        generate(model, &rows, &mut |_, _| {
            last = began.elapsed();
            if first.is_zero() {
                first = last;
            }
            ControlFlow::Continue(())
        })?;
    }
    let made = rows.len() * wanted.new_tokens.saturating_sub(1);
    Ok(AnswerFigures {
        rows: rows.len(),
        tokens_per_second: made as f64 / last.saturating_sub(first).as_secs_f64().max(f64::EPSILON),
        first_token_seconds: first.as_secs_f64(),
        seconds: last.as_secs_f64(),
        peaks: Peaks::now(model.device())?,
    })
}
