//! One step of the loop: launching it, reading and reporting its numbers, and handling failures.

use std::time::Duration;

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

/// After this many steps in a row without a finite loss a run ends, with any value of `train.on_nan`.
const BAD_STEPS: u32 = 10;

/// Most rows that an alert lists.
const NAMED_ROWS: usize = 64;

/// A step that was launched on the device.
#[derive(Debug)]
pub(super) struct InFlight {
    number: u64,
    learning_rate: f64,
    /// By the trainer's clock.
    began: Duration,
    step: Launched,
}

impl<'a> Trainer<'a> {
    /// Launches the next step and reads the numbers of a step: of this one, or of the one before if numbers
    /// are read late. `true` if the position in the data moved on.
    pub(super) fn advance(&mut self) -> Result<bool> {
        let began = self.clock.ran();
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
                // If an earlier step failed, its numbers are reported first.
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
        // Work that is due after a step reads the weights, which a later step would have changed.
        let last = number + 1 >= self.total_steps();
        if self.overlap.reading == Reading::AtOnce || last || self.due(number + 1).anything() {
            return self.settle().map(|settled| settled || moved);
        }
        Ok(moved)
    }

    /// Waits for the step in flight, if there is one, and reads its numbers. `true` if there was one and the
    /// position in the data moved on.
    pub(super) fn settle(&mut self) -> Result<bool> {
        match self.in_flight.take() {
            Some(step) => self.read(step),
            None => Ok(false),
        }
    }

    /// Records the numbers of a step.
    fn read(&mut self, InFlight { number, learning_rate, began, step }: InFlight) -> Result<bool> {
        let outcome = step.settle(&mut self.state.optimizer)?;
        let now = self.clock.ran();
        // A step that was launched while the one before was still running began when that one ended.
        let began = self.settled.map_or(began, |settled| settled.max(began));
        self.settled = Some(now);
        let seconds = now.saturating_sub(began).as_secs_f64();
        match outcome {
            Outcome::Updated(measured) => {
                self.state.progress.bad_steps = 0;
                self.state.progress.step += 1;
                self.report(&measured, learning_rate, seconds);
                if let Some(spike) = self.state.progress.spikes.observe(measured.loss) {
                    let message = format!(
                        "the loss rose to {:.4}; the median before was {:.4}",
                        spike.loss, spike.usual
                    );
                    self.record.alert(AlertKind::Spike, message, self.rows_of(number));
                }
                Ok(true)
            }
            Outcome::NotFinite(measured) => {
                // The device left out the step after it, which is launched again.
                self.in_flight = None;
                self.not_finite(number, &measured, learning_rate, seconds)
            }
        }
    }

    /// Skips a step without trained tokens.
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

    /// The dataset rows of a step, as alerts list them.
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

    /// A loss or gradient was not finite. Nothing has changed yet, and `train.on_nan` decides what to do.
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
            OnNan::Stop => "the run stops here, with its weights unchanged",
            OnNan::Skip => "the step was skipped",
            OnNan::Rollback => "the weights go back to the last checkpoint, and the step is skipped",
        };
        let rows = self.rows_of(number);
        self.state.progress.step += 1;
        self.report(measured, learning_rate, seconds);
        let message = format!("{what} of step {} is not a finite number; {done}", number + 1);
        self.record.alert(AlertKind::Nan, message, rows);
        if on_nan == OnNan::Stop {
            // The user may want to resume and try these rows again with other settings.
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

    /// Loads weights and moments from the newest valid checkpoint. The position in the data stays, because
    /// the same rows would give the same loss again.
    fn roll_back(&mut self) -> Result<()> {
        self.await_checkpoint();
        let (Some(checkpoint), _) = newest_valid(self.record.run().path()) else {
            let message = "there is no checkpoint to go back to; the step was only skipped";
            self.record.alert(AlertKind::Checkpoint, message, Vec::new());
            return Ok(());
        };
        self.state.roll_back(&checkpoint)
    }

    /// Memory ran out before anything changed. The step is repeated in smaller parts, with the same loss and
    /// gradient, or with activations computed again in the backward pass.
    fn save_memory(&mut self, number: u64, error: EngineError) -> Result<()> {
        if let Device::Cuda(index) = self.base.model.device() {
            csrc::release_device_memory(index)?;
        }
        let cuts = self.state.progress.cuts;
        let largest = self.order.step(number).iter().map(|micro| micro.sequences.len()).max().unwrap_or(0);
        let done = if largest.div_ceil(cuts.max(1)) > 1 {
            self.state.progress.cuts = cuts.max(1) * 2;
            format!(
                "micro-batches are cut into {} parts from now on; loss and gradient stay the same",
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

/// The sequences of a micro-batch in at most `cuts` parts.
fn cut(micro: &MicroBatch, cuts: usize) -> Vec<Vec<Vec<usize>>> {
    let size = micro.sequences.len().div_ceil(cuts.max(1)).max(1);
    micro.sequences.chunks(size).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_micro_batch_contain_every_sequence_in_order() {
        let micro = MicroBatch { sequences: (0..5).map(|index| vec![index]).collect() };
        for cuts in 0..9 {
            let parts = cut(&micro, cuts);
            assert!(parts.len() <= cuts.max(1));
            assert_eq!(parts.concat(), micro.sequences);
        }
        assert_eq!(cut(&micro, 2)[0].len(), 3);
    }
}
