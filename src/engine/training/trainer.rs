//! The loop: wishes, then a step, then what is due; again until the end.

use std::time::{Duration, Instant};

use luthier_core::config::{Config, OnNan, Recompute};
use luthier_core::data::{EncodedRow, MicroBatch, Prepared, StepOrder};
use luthier_core::machine::free_disk_bytes;
use luthier_core::model::forecast::plan;
use luthier_core::runs::{
    AlertKind, CheckpointEvent, Number, RunEvent, State as RunState, StepEvent, StopWhen, list_checkpoints,
    newest_valid, prune,
};
use sha2::{Digest, Sha256};
use tch::Device;

use super::End;
use super::adamw::EPSILON;
use super::alerts::DiskWatch;
use super::batch::{Batch, collate};
use super::control::Control;
use super::edits::Settings;
use super::meter::Meter;
use super::observe::{Observer, Questions};
use super::record::Record;
use super::result::{publish, publish_copy};
use super::schedule::learning_rate;
use super::state::{Best, Identity, State, checkpoint_error};
use super::step::{self, Measured, Outcome, step};
use crate::base::Base;
use crate::csrc;
use crate::error::{EngineError, Result};
use crate::methods::{Adapter, Method};
use crate::random::{derive, derive_name};

/// Steps in a row without a finite loss after which a run ends whatever `train.on_nan` says.
const BAD_STEPS: u32 = 10;

/// Rows that an alert names.
const NAMED_ROWS: usize = 64;

/// How often the free space of the disk is looked at.
const DISK_INTERVAL: Duration = Duration::from_secs(10);

/// One process's work on a run.
pub struct Trainer<'a> {
    record: &'a mut Record,
    control: &'a Control,
    base: &'a Base,
    prepared: &'a Prepared,
    method: &'a dyn Method,
    settings: Settings,
    state: State,
    lengths: Vec<usize>,
    order: StepOrder,
    questions: Questions,
    meter: Meter,
    disk: DiskWatch,
    disk_seen: Option<Instant>,
    /// Whether blocks are computed again in the backward pass.
    recompute: bool,
    /// Size of the last checkpoint.
    checkpoint_bytes: u64,
    /// Step of the newest checkpoint of this process.
    saved: Option<u64>,
    /// Step of the newest evaluation of this process.
    evaluated: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// Goes on from `state` with `config`.
    pub fn new(
        record: &'a mut Record,
        control: &'a Control,
        config: Config,
        base: &'a Base,
        prepared: &'a Prepared,
        method: &'a dyn Method,
        state: State,
    ) -> Self {
        let lengths: Vec<usize> = prepared.train.iter().map(|row| row.ids.len()).collect();
        Self {
            order: StepOrder::new(&lengths, &config),
            recompute: recomputes(&config, base, prepared),
            settings: Settings::new(config),
            questions: Questions::default(),
            meter: Meter::new(base.model.device()),
            disk: DiskWatch::default(),
            disk_seen: None,
            checkpoint_bytes: 0,
            saved: None,
            evaluated: None,
            record,
            control,
            base,
            prepared,
            method,
            state,
            lengths,
        }
    }

    /// What is trained.
    pub fn adapter(&self) -> &dyn Adapter {
        self.state.adapter.as_ref()
    }

    /// What the run is made on.
    pub fn identity(&self) -> &Identity {
        &self.state.progress.identity
    }

    /// Steps until the end.
    pub fn total_steps(&self) -> u64 {
        self.order.total_steps()
    }

    /// SHA-256 of the configuration in force, written out.
    pub fn config_hash(&self) -> String {
        format!("{:x}", Sha256::digest(self.config().to_toml()))
    }

    /// Journals what was started, and lets the status say where it stands.
    pub fn announce(&mut self, event: RunEvent) {
        let (device, total, step) = (event.device.clone(), self.total_steps(), self.state.progress.step);
        self.record.at_step(step);
        self.saved = event.resumed_from;
        self.record.event(event);
        let progress = &self.state.progress;
        let (best, epoch, seconds) = (progress.best, self.order.epoch_of(step), progress.train_seconds);
        self.record.update(|status| {
            status.device = device;
            status.total_steps = total;
            status.epoch = epoch;
            status.train_seconds = seconds;
            status.best_eval_loss = best.map(|best| best.loss.into());
            status.best_step = best.map(|best| best.step);
        });
    }

    /// Works until the end.
    pub fn run(&mut self) -> Result<End> {
        let (config, project) = (self.settings.config(), self.record.run().project());
        self.questions = Questions::read(self.base, config, project, self.prepared)?;
        self.record.state(RunState::Running, None);
        if self.state.progress.step == 0 && self.config().train.eval_every > 0 {
            self.evaluate(false)?;
        }
        loop {
            self.take_edits();
            self.grant_wishes()?;
            if let Some(when) = self.control.stopping() {
                return self.stop(when);
            }
            if self.control.paused() {
                self.hold();
                continue;
            }
            if self.state.progress.step >= self.total_steps() {
                return self.finish();
            }
            if self.advance()? {
                self.take_turns()?;
            }
            if self.is_stuck() {
                return self.stop_early();
            }
        }
    }

    fn config(&self) -> &Config {
        self.settings.config()
    }

    // ── wishes ──────────────────────────────────────────────────────────────────────────────────────────────────

    fn take_edits(&mut self) {
        let Some(editors) = self.control.take_config() else { return };
        let lengths = &self.lengths;
        let total_steps = |config: &Config| StepOrder::new(lengths, config).total_steps();
        let before = self.settings.config().clone();
        if !self.settings.reload(self.record, self.state.progress.step, editors, &total_steps) {
            return;
        }
        self.order = StepOrder::new(&self.lengths, self.settings.config());
        let total = self.total_steps();
        self.record.update(|status| status.total_steps = total);
        let now = self.settings.config();
        if before.objective == now.objective && before.review == now.review {
            return;
        }
        match Questions::read(self.base, now, self.record.run().project(), self.prepared) {
            Ok(questions) => self.questions = questions,
            Err(error) => {
                let message =
                    format!("evaluations go on as before, since the new setting cannot be used: {error}");
                self.record.alert(AlertKind::EditRefused, message, Vec::new());
            }
        }
    }

    fn grant_wishes(&mut self) -> Result<()> {
        if self.control.take_checkpoint() {
            self.checkpoint();
        }
        if self.control.take_evaluation() {
            self.evaluate(true)?;
        }
        while let Some(prompt) = self.control.take_prompt() {
            self.record.activity(Some("answering a prompt"));
            let sample = self.observer().sample_prompt(&prompt, self.state.progress.step)?;
            self.record.activity(None);
            if let Some(sample) = sample {
                self.record.event(sample);
            }
        }
        Ok(())
    }

    /// Waits out one moment of a pause.
    fn hold(&mut self) {
        if self.record.status().state != RunState::Paused {
            self.record.state(RunState::Paused, None);
        }
        self.control.wait();
        if !self.control.paused() && self.control.stopping().is_none() {
            self.record.state(RunState::Running, Some("resumed".into()));
        }
    }

    // ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────

    /// Makes the next step; `true` where the position in the data moved on.
    fn advance(&mut self) -> Result<bool> {
        let began = Instant::now();
        let number = self.state.progress.step;
        let config = &self.settings.config().train;
        let learning_rate = learning_rate(config, number, self.total_steps());
        let settings = step::Settings {
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
        let outcome = match self.try_step(number, &settings) {
            Err(error @ EngineError::OutOfMemory { .. }) => {
                return self.save_memory(number, error).map(|()| false);
            }
            outcome => outcome?,
        };
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Outcome::Interrupted => Ok(false),
            Outcome::NothingTrained => {
                self.state.progress.step += 1;
                self.record.at_step(self.state.progress.step);
                let message = "no token of this step's rows is trained on; the step was skipped";
                self.record.alert(AlertKind::Data, message, self.rows_of(number));
                Ok(true)
            }
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
            Outcome::NotFinite(measured) => self.not_finite(number, &measured, learning_rate, seconds),
        }
    }

    fn try_step(&mut self, number: u64, settings: &step::Settings) -> Result<Outcome> {
        let batches = self.batches(number)?;
        let State { adapter, optimizer, progress: _ } = &mut self.state;
        let control = self.control;
        step(&self.base.model, adapter.as_ref(), optimizer, &batches, settings, &|| control.abandoned())
    }

    fn batches(&self, number: u64) -> Result<Vec<Batch>> {
        let device = self.base.model.device();
        let micro_batches = self.order.step(number);
        let parts = micro_batches.iter().flat_map(|micro| cut(micro, self.state.progress.cuts));
        parts.map(|sequences| collate(self.rows_in(&sequences), device)).collect()
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
        if on_nan != OnNan::Stop {
            self.state.progress.step += 1;
        }
        self.report(measured, learning_rate, seconds);
        let message = format!("{what} of step {} is not a finite number; {done}", number + 1);
        self.record.alert(AlertKind::Nan, message, rows);
        if on_nan == OnNan::Stop {
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
        let State { adapter, optimizer, progress: _ } =
            State::load(&checkpoint, self.method, &self.base.model)?;
        self.state.adapter = adapter;
        self.state.optimizer = optimizer;
        Ok(())
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

    // ── what is due after a step ────────────────────────────────────────────────────────────────────────────────

    fn take_turns(&mut self) -> Result<()> {
        let step = self.state.progress.step;
        if step >= self.total_steps() {
            return Ok(());
        }
        let train = &self.config().train;
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let (evaluation, sample, checkpoint) =
            (due(train.eval_every), due(train.sample_every), due(train.checkpoint_every));
        if evaluation {
            self.evaluate(sample)?;
        }
        if sample {
            self.sample_suite()?;
        }
        if checkpoint && self.saved != Some(step) {
            self.checkpoint();
        }
        Ok(())
    }

    fn observer(&self) -> Observer<'_> {
        Observer {
            base: self.base,
            control: self.control,
            config: self.settings.config(),
            questions: &self.questions,
            adapter: self.state.adapter.as_ref(),
        }
    }

    /// Evaluates on the held-out rows; a better loss than ever is checkpointed, so that it can be had again.
    fn evaluate(&mut self, scored: bool) -> Result<()> {
        if self.prepared.eval.is_empty() {
            return Ok(());
        }
        self.record.activity(Some("evaluating"));
        let event = self.observer().evaluate(self.prepared, scored)?;
        self.record.activity(None);
        let Some(event) = event else { return Ok(()) };
        let step = self.state.progress.step;
        self.evaluated = Some(step);
        let loss = event.loss.get();
        let scores = event.scores.clone();
        self.record.event(event);
        let progress = &mut self.state.progress;
        let better = loss.is_finite() && progress.best.is_none_or(|best| loss < best.loss);
        if better {
            progress.best = Some(Best { loss, step });
            progress.evaluations_since_best = 0;
        } else {
            progress.evaluations_since_best += 1;
        }
        let overfits = loss.is_finite() && progress.overfitting.observe(loss);
        let best = progress.best;
        self.record.update(|status| {
            status.eval_loss = Some(loss.into());
            status.best_eval_loss = best.map(|best| best.loss.into());
            status.best_step = best.map(|best| best.step);
            if !scores.is_empty() {
                status.scores = scores;
            }
        });
        if overfits {
            let message = format!(
                "the held-out loss has risen three times in a row, to {loss:.4}, while training goes on; the best was {}",
                best.map_or_else(String::new, |best| format!("{:.4} at step {}", best.loss, best.step))
            );
            self.record.alert(AlertKind::Overfitting, message, Vec::new());
        }
        if better && step > 0 && self.config().train.checkpoint_every > 0 {
            self.checkpoint();
        }
        Ok(())
    }

    fn sample_suite(&mut self) -> Result<()> {
        self.record.activity(Some("sampling the suite"));
        let samples = self.observer().sample_suite()?;
        self.record.activity(None);
        for sample in samples {
            self.record.event(sample);
        }
        Ok(())
    }

    /// Publishes a checkpoint and removes those that need not stay. A disk that refuses does not end the run.
    fn checkpoint(&mut self) {
        let began = Instant::now();
        self.record.activity(Some("writing a checkpoint"));
        let run = self.record.run().clone();
        let saved = self.state.save(run.path());
        self.record.activity(None);
        let checkpoint = match saved {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                let message = format!(
                    "the checkpoint could not be written ({error}); the run goes on, and the ones before it stay"
                );
                self.record.alert(AlertKind::Checkpoint, message, Vec::new());
                return;
            }
        };
        self.checkpoint_bytes =
            checkpoint.manifest().map_or(self.checkpoint_bytes, |manifest| manifest.bytes());
        self.saved = Some(checkpoint.step);
        let path = checkpoint.path.strip_prefix(run.path()).unwrap_or(&checkpoint.path).display().to_string();
        self.record.event(CheckpointEvent {
            path,
            bytes: self.checkpoint_bytes,
            seconds: began.elapsed().as_secs_f64().into(),
        });
        self.record.sync();
        self.record.update(|status| status.checkpoint = Some(checkpoint.step));
        let keep = self.config().train.keep_checkpoints;
        let best = self.state.progress.best.map(|best| best.step);
        let pruned =
            if keep == 0 { Ok(None) } else { prune(run.path(), keep, best).map(|pruned| pruned.kept_all) };
        match pruned {
            Ok(None) => {}
            Ok(Some(error)) => self.record.alert(AlertKind::Checkpoint, error.to_string(), Vec::new()),
            Err(error) => {
                let message = format!("older checkpoints could not be removed: {error}");
                self.record.alert(AlertKind::Checkpoint, message, Vec::new());
            }
        }
    }

    fn watch_disk(&mut self) {
        if self.disk_seen.is_some_and(|seen| seen.elapsed() < DISK_INTERVAL) {
            return;
        }
        self.disk_seen = Some(Instant::now());
        let Ok(free) = free_disk_bytes(self.record.run().path()) else { return };
        if self.disk.observe(free, self.checkpoint_bytes) {
            let message =
                format!("the disk is nearly full: {} MiB are left for checkpoints and journal", free >> 20);
            self.record.alert(AlertKind::DiskLow, message, Vec::new());
        }
    }

    // ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn is_stuck(&self) -> bool {
        let patience = self.config().train.early_stop.patience;
        patience > 0 && self.state.progress.evaluations_since_best >= patience
    }

    fn finish(&mut self) -> Result<End> {
        let step = self.state.progress.step;
        if self.evaluated != Some(step) || self.questions.can_score() {
            self.evaluate(true)?;
        }
        if self.config().train.sample_every > 0 {
            self.sample_suite()?;
        }
        if self.control.abandoned() {
            return self.stop(StopWhen::Now);
        }
        self.save(self.config().train.checkpoint_every > 0)?;
        Ok(End { state: RunState::Finished, reason: None })
    }

    fn stop(&mut self, when: StopWhen) -> Result<End> {
        let reason = self.control.stop_reason();
        self.record.state(RunState::Stopping, Some(reason.into()));
        match when {
            StopWhen::Now => {
                return Ok(End::stopped(format!(
                    "{reason} at once; nothing past the last checkpoint was saved"
                )));
            }
            StopWhen::AfterEval => self.evaluate(true)?,
            StopWhen::Save => {}
        }
        self.save(true)?;
        Ok(End::stopped(reason))
    }

    /// Held-out loss has not improved for as long as the configuration allows: the best weights are the result.
    fn stop_early(&mut self) -> Result<End> {
        self.record.state(RunState::Stopping, Some("the held-out loss has stopped improving".into()));
        self.save(true)?;
        let best = self.state.progress.best.map(|best| best.step);
        let run = self.record.run().clone();
        let checkpoint =
            list_checkpoints(run.path()).into_iter().find(|checkpoint| Some(checkpoint.step) == best);
        let kept = match checkpoint {
            Some(checkpoint) => {
                checkpoint.verify().map_err(checkpoint_error)?;
                publish_copy(&checkpoint.path, &run.adapter_path())?;
                format!("the adapter is the one of step {}", checkpoint.step)
            }
            None => "the adapter is the last one".into(),
        };
        let patience = self.config().train.early_stop.patience;
        Ok(End::stopped(format!("{patience} evaluations brought no better held-out loss; {kept}")))
    }

    /// Leaves the adapter behind and, where `checkpoint`, what it takes to go on.
    fn save(&mut self, checkpoint: bool) -> Result<()> {
        if checkpoint && self.saved != Some(self.state.progress.step) {
            self.checkpoint();
        }
        self.record.activity(Some("saving the adapter"));
        let saved = publish(self.state.adapter.as_ref(), &self.record.run().adapter_path());
        self.record.activity(None);
        saved
    }
}

/// Whether activations are computed again: `auto` asks the forecast, and saves memory where that has none.
fn recomputes(config: &Config, base: &Base, prepared: &Prepared) -> bool {
    match config.train.recompute {
        Recompute::On => true,
        Recompute::Off => false,
        Recompute::Auto => plan(&base.files, config, &prepared.summary()).map_or(true, |plan| plan.recompute),
    }
}

/// The sequences of a micro-batch in up to `cuts` parts.
fn cut(micro: &MicroBatch, cuts: usize) -> Vec<Vec<Vec<usize>>> {
    let size = micro.sequences.len().div_ceil(cuts.max(1)).max(1);
    micro.sequences.chunks(size).map(<[_]>::to_vec).collect()
}
