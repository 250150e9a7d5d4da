//! What a run learns from: replies (`sft`) or preference pairs (`dpo`). The one place where the two part ways.

use std::ops::ControlFlow;

use luthier_core::config::{self, Config, MethodKind};
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::runs::RunDir;

use super::batch::{Beginnings, collate};
use super::dpo::Dpo;
use super::reference::{Key, Reference};
use super::sft::Sft;
use super::step::{Launch, Launched, Learner, Settings};
use crate::base::Base;
use crate::error::Result;
use crate::evaluate::{HeldOut, held_out, held_out_pairs, parts};
use crate::models::{Active, Model};

/// `train.algorithm`, with what it needs beside the model.
#[derive(Debug)]
pub enum Algorithm {
    /// Supervised fine-tuning.
    Sft,
    /// Direct preference optimisation.
    Dpo {
        /// Its loss.
        dpo: Dpo,
        /// What the base model makes of the pairs.
        reference: Box<Reference>,
    },
}

impl Algorithm {
    /// As configured, with what the run knows from before.
    pub fn new(run: &RunDir, base: &Base, config: &Config, prepared: &Prepared) -> Self {
        match config.train.algorithm {
            config::Algorithm::Sft => Self::Sft,
            config::Algorithm::Dpo => Self::Dpo {
                dpo: Dpo::new(&config.train),
                reference: Box::new(Reference::open(run.path(), Key::new(base, config, prepared))),
            },
        }
    }

    /// Computes and keeps what must be known before `method` changes the model: where base weights themselves are
    /// trained, the reference of every pair. `progress` hears the number of pairs done and may break it off.
    pub fn begin(
        &mut self,
        model: &Model,
        method: MethodKind,
        prepared: &Prepared,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<()> {
        let Self::Dpo { reference, .. } = self else { return Ok(()) };
        if method != MethodKind::Full {
            return Ok(());
        }
        for part in parts(&prepared.train).into_iter().chain(parts(&prepared.eval)) {
            reference.fill(model, &part, Beginnings::of(model))?;
            if progress(reference.count()).is_break() {
                break;
            }
        }
        reference.save()
    }

    /// One update over micro-batches of rows: [`Learner::launch`].
    pub fn launch(
        &mut self,
        learner: &Learner,
        micro_batches: &[Vec<&EncodedRow>],
        settings: &Settings,
        before: Option<&Launched>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Launch> {
        let beginnings = Beginnings::under(learner.model, learner.adapter);
        match self {
            Self::Sft => {
                let batch = |rows: &Vec<&EncodedRow>| {
                    collate(rows.iter().copied(), beginnings, learner.model.device())
                };
                let batches = micro_batches.iter().map(batch).collect::<Result<Vec<_>>>()?;
                learner.launch(&Sft, &batches, settings, before, interrupted)
            }
            Self::Dpo { dpo, reference } => {
                let mut batches = Vec::with_capacity(micro_batches.len());
                for rows in micro_batches {
                    if interrupted() {
                        return Ok(Launch::Interrupted);
                    }
                    batches.push(reference.batch(learner.model, rows, beginnings)?);
                }
                learner.launch(dpo, &batches, settings, before, interrupted)
            }
        }
    }

    /// The held-out score of the model with `adapters`. `progress` hears the number of rows done, and may break it
    /// off; then, and where there is nothing to measure, there is no result.
    pub fn held_out(
        &mut self,
        model: &Model,
        adapters: Active,
        rows: &[EncodedRow],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<HeldOut>> {
        match self {
            Self::Sft => held_out(model, adapters, rows, progress),
            Self::Dpo { dpo, reference } => held_out_pairs(model, adapters, rows, dpo, reference, progress),
        }
    }

    /// Keeps what was computed once, for a process that goes on with the run.
    pub fn save(&mut self) -> Result<()> {
        match self {
            Self::Sft => Ok(()),
            Self::Dpo { reference, .. } => reference.save(),
        }
    }
}
