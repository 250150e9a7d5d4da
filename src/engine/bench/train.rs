//! The speed of training steps.

use std::collections::BTreeMap;
use std::time::Instant;

use luthier_core::data::EncodedRow;
use luthier_core::plan::{Memory, PlanError, plan_at};
use luthier_core::units::median;
use serde::Serialize;
use tch::Device;

use super::Peaks;
use super::plan::Train;
use super::profile::Profile;
use super::rows::{Prepared, write_rows};
use crate::algorithms::sft::Sft;
use crate::error::{EngineError, Result};
use crate::layers::Adapter;
use crate::models::Model;
use crate::step::adamw::{AdamW, EPSILON};
use crate::step::batch::{Beginnings, collate};
use crate::step::phases::Phases;
use crate::step::{Launch, Launched, Learner, Outcome, StepSettings};
use crate::training::trainer::Reading;
use crate::{csrc, device};

/// Measurements of training.
#[derive(Debug, Clone, Serialize)]
pub struct TrainFigures {
    /// Median over the measured steps.
    pub tokens_per_second: f64,
    /// Of each measured step.
    pub seconds: Vec<f64>,
    /// Tokens of each measured step.
    pub tokens: Vec<u64>,
    /// Average seconds of each part on the CPU, per measured step.
    pub parts: BTreeMap<&'static str, f64>,
    /// Number of trained parameters.
    pub trainable: usize,
    /// All losses in order, with warm-up steps. One that is not finite is an error instead.
    pub losses: Vec<f64>,
    /// Seconds of each measured step's phases, as measured by the device.
    pub phases: Vec<Phases>,
    /// With loading, if this work loaded the weights.
    #[serde(flatten)]
    pub peaks: Peaks,
    /// What `luthier plan` would say.
    pub forecast: Memory,
    /// What the device did, if it was recorded.
    pub profile: Option<Profile>,
}

pub(super) fn measure(
    train: &Train,
    prepared: &Prepared,
    model: &Model,
    adapter: &dyn Adapter,
) -> Result<TrainFigures> {
    let forecast = forecast(prepared, model.device())?;
    if let Some(path) = &train.rows_to {
        write_rows(path, prepared, train.warm_up + train.steps)?;
    }
    let mut optimizer = AdamW::new(adapter.parameters())?;
    let late = Reading::of(model.device()) == Reading::Late;
    let mut in_flight: Option<(Launched, u64)> = None;
    let mut profiler = None;
    let mut course = Course {
        since: Instant::now(),
        warm_up: train.warm_up,
        made: 0,
        seconds: vec![],
        tokens: vec![],
        losses: vec![],
        phases: vec![],
    };
    for number in 0..train.warm_up + train.steps {
        let rows = (prepared.rows)(number);
        if number == train.warm_up {
            if train.profile {
                // What is recorded must not begin with the end of an earlier step.
                if let Some(step) = in_flight.take() {
                    course.settle(step, &mut optimizer)?;
                }
                profiler = Some(csrc::Profiler::start(model.device())?);
            }
            // Discards the time counted so far.
            csrc::time_spent()?;
        }
        let batch = |rows: &Vec<EncodedRow>| collate(rows, Beginnings::under(model, adapter), model.device());
        let batches = rows.iter().map(batch).collect::<Result<Vec<_>>>()?;
        let settings = StepSettings {
            adamw: csrc::AdamW {
                learning_rate: 1e-4,
                betas: [0.9, 0.999],
                weight_decay: 0.01,
                epsilon: EPSILON,
            },
            max_grad_norm: 1.0,
            recompute: train.recompute,
            seed: number as u64,
        };
        let learner = Learner { model, adapter, optimizer: &optimizer };
        let before = in_flight.as_ref().map(|(step, _)| step);
        let step = match learner.launch(&Sft, &batches, &settings, before, &|| false)? {
            Launch::Made(step) => step,
            other => return Err(no_step(&other)),
        };
        let tokens = batches.iter().map(|batch| batch.tokens).sum();
        let before = in_flight.replace((step, tokens));
        if let Some(step) = if late { before } else { in_flight.take() } {
            course.settle(step, &mut optimizer)?;
        }
    }
    if let Some(step) = in_flight {
        course.settle(step, &mut optimizer)?;
    }
    let operations = profiler.map(csrc::Profiler::stop).transpose()?;
    let nested = !model.device().is_cuda();
    let Course { seconds, tokens, losses, phases, .. } = course;
    let speeds: Vec<f64> =
        tokens.iter().zip(&seconds).map(|(&tokens, seconds): (&u64, _)| tokens as f64 / seconds).collect();
    Ok(TrainFigures {
        tokens_per_second: median(speeds),
        parts: parts(&seconds)?,
        seconds,
        tokens,
        trainable: adapter.parameters().values().map(tch::Tensor::numel).sum(),
        losses,
        phases,
        peaks: Peaks::now(model.device())?,
        forecast,
        profile: operations.map(|operations| Profile::new(&operations, train.steps, nested)),
    })
}

/// The forecast of a run with these rows, also of one that would be refused because it is too large.
fn forecast(prepared: &Prepared, device: Device) -> Result<Memory> {
    match plan_at(&prepared.files, &prepared.config, &prepared.data, device::place(device)) {
        Ok(plan) => Ok(plan.memory),
        Err(PlanError::TooLarge { plan, .. }) => Ok(plan.memory),
        Err(error) => Err(EngineError::Config(error.to_string())),
    }
}

/// Steps that were made.
struct Course {
    since: Instant,
    warm_up: usize,
    made: usize,
    seconds: Vec<f64>,
    tokens: Vec<u64>,
    losses: Vec<f64>,
    phases: Vec<Phases>,
}

impl Course {
    fn settle(&mut self, (step, tokens): (Launched, u64), optimizer: &mut AdamW) -> Result<()> {
        match step.settle(optimizer)? {
            Outcome::Updated(measured) => {
                self.losses.push(measured.loss);
                if self.made >= self.warm_up {
                    self.phases.push(measured.phases);
                }
            }
            other @ Outcome::NotFinite(_) => return Err(no_step(&other)),
        }
        if self.made >= self.warm_up {
            self.seconds.push(self.since.elapsed().as_secs_f64());
            self.tokens.push(tokens);
        }
        self.made += 1;
        self.since = Instant::now();
        Ok(())
    }
}

fn no_step(ended: &dyn std::fmt::Debug) -> EngineError {
    EngineError::Data(format!("a step of the benchmark ended with {ended:?}"))
}

/// Seconds per step of each part, and of the rest.
fn parts(seconds: &[f64]) -> Result<BTreeMap<&'static str, f64>> {
    let steps = seconds.len() as f64;
    let mut parts: BTreeMap<_, _> =
        csrc::time_spent()?.into_iter().map(|(part, spent)| (part, spent.as_secs_f64() / steps)).collect();
    let counted: f64 = parts.values().sum();
    parts.insert("everything else", seconds.iter().sum::<f64>() / steps - counted);
    Ok(parts)
}
