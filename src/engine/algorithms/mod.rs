//! What a run learns from, one file for each value of `train.algorithm`: its batches, its loss, its held-out score. What
//! the rest of the program knows about an algorithm is in [`luthier_core::algorithms`].

pub mod answers;
pub mod dpo;
pub mod kto;
pub mod reference;
pub mod sft;

use std::fmt::Debug;
use std::ops::ControlFlow;

use luthier_core::config::{self, Config, MethodKind};
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::runs::{Metrics, RunDir};

use crate::base::Base;
use crate::error::Result;
use crate::layers::Active;
use crate::models::Model;
use crate::step::{Launch, Launched, Learner, StepSettings};

/// Tokens of held-out rows in one forward pass.
pub const TOKENS_AT_ONCE: usize = 4096;

/// Called with the number of rows done; may cancel.
pub type Progress<'a> = dyn FnMut(usize) -> ControlFlow<()> + 'a;

/// A training algorithm at work on one run.
pub trait Algorithm: Debug {
    /// Computes and keeps what must be known before `method` changes the model. `progress` may cancel.
    fn begin(
        &mut self,
        _model: &Model,
        _method: MethodKind,
        _prepared: &Prepared,
        _progress: &mut Progress,
    ) -> Result<()> {
        Ok(())
    }

    /// One update over micro-batches of rows: [`Learner::launch`].
    fn launch(
        &mut self,
        learner: &Learner,
        micro_batches: &[Vec<&EncodedRow>],
        settings: &StepSettings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch>;

    /// The score of held-out `rows` of the run's data under the model with `adapters`. `None` if `progress`
    /// cancelled or there is nothing to measure.
    fn held_out(
        &mut self,
        model: &Model,
        adapters: Active,
        rows: &[EncodedRow],
        progress: &mut Progress,
    ) -> Result<Option<HeldOut>>;

    /// Keeps what was computed once, for a process that resumes the run.
    fn save(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The algorithm of `train.algorithm`, with what the run knows from before.
pub fn algorithm_of(run: &RunDir, base: &Base, config: &Config, prepared: &Prepared) -> Box<dyn Algorithm> {
    match config.train.algorithm {
        config::Algorithm::Sft => Box::new(sft::Sft),
        config::Algorithm::Dpo => Box::new(dpo::Dpo::of_run(run, base, config, prepared)),
        config::Algorithm::Kto => Box::new(kto::Kto::of_run(run, base, config, prepared)),
    }
}

/// The score of held-out rows.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// As the algorithm defines it.
    pub loss: f64,
    /// Rows evaluated.
    pub rows: u64,
    /// Trained tokens in them.
    pub trained_tokens: u64,
    /// The metrics that the algorithm declares.
    pub metrics: Metrics,
}

/// Metrics from names and values, without those that have no value.
pub fn metrics<'a>(values: impl IntoIterator<Item = (&'a str, Option<f64>)>) -> Metrics {
    let with_value = |(name, value): (&str, Option<f64>)| Some((name.to_owned(), value?.into()));
    values.into_iter().filter_map(with_value).collect()
}

/// Held-out rows in parts that make one forward pass each; at least one row in each.
pub fn parts<'a>(rows: impl IntoIterator<Item = &'a EncodedRow>) -> Vec<Vec<&'a EncodedRow>> {
    parts_of(rows, TOKENS_AT_ONCE)
}

/// Rows in parts of at most so many tokens; at least one row in each.
fn parts_of<'a>(rows: impl IntoIterator<Item = &'a EncodedRow>, tokens: usize) -> Vec<Vec<&'a EncodedRow>> {
    let mut parts: Vec<Vec<&EncodedRow>> = Vec::new();
    let mut room = 0;
    for row in rows {
        match parts.last_mut() {
            Some(part) if row.tokens() <= room => part.push(row),
            _ => {
                parts.push(vec![row]);
                room = tokens;
            }
        }
        room = room.saturating_sub(row.tokens());
    }
    parts
}
