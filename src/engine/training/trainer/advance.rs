//! One step of the loop: what is made, measured and reported, and what happens where it cannot be made.

use std::time::Instant;

use luthier_core::config::{OnNan, Recompute};
use luthier_core::data::{EncodedRow, MicroBatch};
use luthier_core::random::{derive, derive_name};
use luthier_core::runs::{AlertKind, Number, StepEvent, newest_valid};
use tch::Device;

use super::{Reading, Trainer};
use crate::csrc;
use crate::error::{EngineError, Result};
use crate::step::adamw::EPSILON;
use crate::step::{Launch, Launched, Learner, Measured, Outcome, StepSettings};
use crate::training::schedule::learning_rate;
use crate::training::state::State;

/// Steps in a row without a finite loss after which a run ends whatever `train.on_nan` says.
const BAD_STEPS: u32 = 10;

/// Rows that an alert names.
const NAMED_ROWS: usize = 64;

/// A step that was handed to the device.
#[derive(Debug)]
pub(super) struct InFlight {
    number: u64,
    learning_rate: f64,
    began: Instant,
    step: Launched,
}

impl<'a> Trainer<'a> {
    /// Hands the next step to the device, and reads the numbers of a step: of this one, or of the one before where numbers
    /// are read late. `true` where the position in the data moved on.
    pub(super) fn advance(&mut self) -> Result<bool> {
        let began = Instant::now();
        let number = self.state.progress.step + u64::from(self.in_flight.is_some());
        let config = &self.settings.config().train;
        let learning_rate = learning_rate(config, number, self.total_steps());
        let settings = StepSettings {
            adamw: csrc::AdamW {
                learning_rate,
                betas: config.betas,
                weight_decay: config.weight_decay,
                epsilon: EPSILON,
            },
            max_grad_norm: config.max_grad_norm,
            recompute: self.recompute,
            seed: derive(derive_name(config.seed, "dropout"), number),
        };
        let step = match self.launch(number, &settings) {
            Ok(Launch::Made(step)) => step,
            Ok(Launch::Interrupted) => return self.settle(),
            Ok(Launch::NothingTrained) => {
                let moved = self.settle()?;
                // A step before this one that failed may have more to say first.
                if !moved {
                    self.pass_over(number);
                }
                return Ok(true);
            }
            Err(error) => {
                let moved = self.settle()?;
                return match error {
                    EngineError::OutOfMemory { .. } => self.save_memory(number, error).map(|()| moved),
                    other => Err(other),
                };
            }
        };
        let before = self.in_flight.replace(InFlight { number, learning_rate, began, step });
        let moved = match before {
            Some(before) => self.read(before)?,
            None => false,
        };
        // What is due after a step looks at the weights, which a later step would have changed.
        let last = number + 1 >= self.total_steps();
        if self.reading == Reading::AtOnce || last || self.due(number + 1).anything() {
            return self.settle().map(|settled| settled || moved);
        }
        Ok(moved)
    }

    /// Waits for the step that is in flight, if one is, and takes note of its numbers; `true` where there was one and the
    /// position in the data moved on.
    pub(super) fn settle(&mut self) -> Result<bool> {
        match self.in_flight.take() {
            Some(step) => self.read(step),
            None => Ok(false),
        }
    }

    /// Takes note of what a step measured.
    fn read(&mut self, InFlight { number, learning_rate, began, step }: InFlight) -> Result<bool> {
        let outcome = step.settle(&mut self.state.optimizer)?;
        let now = Instant::now();
        // A step that was handed over while the one before was at work began when that one ended.
        let began = self.settled.map_or(began, |settled| settled.max(began));
        self.settled = Some(now);
        let seconds = now.duration_since(began).as_secs_f64();
        match outcome {
            Outcome::Updated(measured) => {
                self.state.progress.bad_steps = 0;
                self.state.progress.step += 1;
                self.report(&measured, learning_rate, seconds);
                if let Some(spike) = self.state.progress.spikes.observe(measured.loss) {
                    let message =
                        format!("the loss rose to {:.4}; usual here is {:.4}", spike.loss, spike.usual);
                    self.record.alert(AlertKind::Spike, message, self.rows_of(number));
                }
                Ok(true)
            }
            Outcome::NotFinite(measured) => {
                // The step after it was left out on the device, and is made again.
                self.in_flight = None;
                self.not_finite(number, &measured, learning_rate, seconds)
            }
        }
    }

    /// Skips a step whose rows teach nothing.
    fn pass_over(&mut self, number: u64) {
        self.state.progress.step += 1;
        self.record.at_step(self.state.progress.step);
        let message = "no token of this step's rows is trained on; the step was skipped";
        self.record.alert(AlertKind::Data, message, self.rows_of(number));
    }

    fn launch(&mut self, number: u64, settings: &StepSettings) -> Result<Launch> {
        let micro_batches = self.micro_batches(number);
        let State { adapter, optimizer, progress: _ } = &self.state;
        let learner = Learner { model: &self.base.model, adapter: adapter.as_ref(), optimizer };
        let before = self.in_flight.as_ref().map(|before| &before.step);
        let control = self.control;
        self.algorithm.launch(&learner, &micro_batches, settings, before, &|| control.abandoned())
    }

    fn micro_batches(&self, number: u64) -> Vec<Vec<&'a EncodedRow>> {
        let micro_batches = self.order.step(number);
        let parts = micro_batches.iter().flat_map(|micro| cut(micro, self.state.progress.cuts));
        parts.map(|sequences| self.rows_in(&sequences)).collect()
    }

    fn rows_in(&self, sequences: &[Vec<usize>]) -> Vec<&'a EncodedRow> {
        sequences.iter().flatten().filter_map(|&index| self.prepared.train.get(index)).collect()
    }

    /// The dataset rows behind a step, as alerts name them.
    fn rows_of(&self, number: u64) -> Vec<u64> {
        let sequences = self.order.step(number).into_iter().flat_map(|micro| micro.sequences);
        let rows = sequences.flatten().filter_map(|index| self.prepared.train.get(index));
        rows.map(|row| row.row as u64).take(NAMED_ROWS).collect()
    }

    fn report(&mut self, measured: &Measured, learning_rate: f64, seconds: f64) {
        let progress = &mut self.state.progress;
        progress.train_seconds += seconds;
        let (step, train_seconds) = (progress.step, progress.train_seconds);
        let epoch = self.order.epoch_of(step);
        let reading = self.meter.read();
        let tokens_per_second = measured.tokens as f64 / seconds.max(f64::EPSILON);
        let (loss, learning_rate) = (Number::from(measured.loss), Number::from(learning_rate));
        self.record.at_step(step);
        self.record.event(StepEvent {
            loss,
            learning_rate,
            grad_norm: measured.grad_norm.into(),
            tokens: measured.tokens,
            trained_tokens: measured.trained_tokens,
            tokens_per_second: tokens_per_second.into(),
            seconds: seconds.into(),
            epoch: epoch.into(),
            memory_bytes: reading.memory_bytes,
            device_memory_bytes: reading.device_memory_bytes,
            load: reading.load.map(Number::from),
            metrics: measured.metrics.clone(),
        });
        self.record.update(|status| {
            status.epoch = epoch;
            status.loss = Some(loss);
            status.learning_rate = Some(learning_rate);
            status.tokens_per_second = Some(tokens_per_second.into());
            status.train_seconds = train_seconds;
        });
        self.watch_disk();
    }

    /// A loss or gradient was not finite: nothing has changed yet, and `train.on_nan` says what to do.
    fn not_finite(
        &mut self,
        number: u64,
        measured: &Measured,
        learning_rate: f64,
        seconds: f64,
    ) -> Result<bool> {
        let what = if measured.loss.is_finite() { "the gradient" } else { "the loss" };
        self.state.progress.bad_steps += 1;
        let bad_steps = self.state.progress.bad_steps;
        let on_nan = self.config().train.on_nan;
        let done = match on_nan {
            OnNan::Stop => "the run stops here, its weights as they were before",
            OnNan::Skip => "the step was skipped",
            OnNan::Rollback => "the weights go back to the last checkpoint, and the step is skipped",
        };
        let rows = self.rows_of(number);
        self.state.progress.step += 1;
        self.report(measured, learning_rate, seconds);
        let message = format!("{what} of step {} is not a finite number; {done}", number + 1);
        self.record.alert(AlertKind::Nan, message, rows);
        if on_nan == OnNan::Stop {
            // Whoever resumes the run may want to try these rows again with other settings.
            self.state.progress.step = number;
            self.record.at_step(number);
            return Err(EngineError::NotFinite { what: format!("{what} of step {}", number + 1) });
        }
        if bad_steps >= BAD_STEPS {
            let what =
                format!("the loss or gradient of {bad_steps} steps in a row, up to step {},", number + 1);
            return Err(EngineError::NotFinite { what });
        }
        if on_nan == OnNan::Rollback {
            self.roll_back()?;
        }
        Ok(true)
    }

    /// Takes weights and moments from the newest valid checkpoint. The position in the data stays, since the same rows
    /// would have the same loss again.
    fn roll_back(&mut self) -> Result<()> {
        let (Some(checkpoint), _) = newest_valid(self.record.run().path()) else {
            let message = "there is no checkpoint to go back to; the step was only skipped";
            self.record.alert(AlertKind::Checkpoint, message, Vec::new());
            return Ok(());
        };
        self.state.roll_back(&checkpoint)
    }

    /// Memory ran out before anything changed: the step is made again in smaller parts, with the same loss and gradient,
    /// or with activations computed again.
    fn save_memory(&mut self, number: u64, error: EngineError) -> Result<()> {
        if let Device::Cuda(index) = self.base.model.device() {
            csrc::release_device_memory(index)?;
        }
        let cuts = self.state.progress.cuts;
        let largest = self.order.step(number).iter().map(|micro| micro.sequences.len()).max().unwrap_or(0);
        let done = if largest.div_ceil(cuts.max(1)) > 1 {
            self.state.progress.cuts = cuts.max(1) * 2;
            format!(
                "micro-batches are cut into {} from now on; loss and gradient stay the same",
                self.state.progress.cuts
            )
        } else if self.config().train.recompute == Recompute::Auto && !self.recompute {
            self.recompute = true;
            "activations are computed again from now on, which is slower".into()
        } else {
            return Err(error);
        };
        self.record.alert(
            AlertKind::OomSplit,
            format!("memory ran out in step {}; {done}", number + 1),
            Vec::new(),
        );
        Ok(())
    }
}

/// The sequences of a micro-batch in up to `cuts` parts.
fn cut(micro: &MicroBatch, cuts: usize) -> Vec<Vec<Vec<usize>>> {
    let size = micro.sequences.len().div_ceil(cuts.max(1)).max(1);
    micro.sequences.chunks(size).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_is_cut_into_parts_that_hold_every_sequence_in_order() {
        let micro = MicroBatch { sequences: (0..5).map(|index| vec![index]).collect() };
        for cuts in 0..9 {
            let parts = cut(&micro, cuts);
            assert!(parts.len() <= cuts.max(1));
            assert_eq!(parts.concat(), micro.sequences);
        }
        assert_eq!(cut(&micro, 2)[0].len(), 3);
    }
}
