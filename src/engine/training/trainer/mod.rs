//! The training loop: apply pending requests, run one step, then do periodic work, until the end.

mod advance;
mod checkpoints;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use luthier_core::config::{Config, Recompute};
use luthier_core::data::{EncodedRow, Prepared, StepOrder};
use luthier_core::hash;
use luthier_core::machine::free_disk_bytes;
use luthier_core::plan::{Plan, plan_at};
use luthier_core::runs::{
    AlertKind, FailureClass, ResultForm, RunEvent, RunState, StopWhen, list_checkpoints,
};
use tch::Device;

use self::advance::InFlight;
use self::checkpoints::Writing;
use super::End;
use super::alerts::DiskWatch;
use super::clock::Clock;
use super::control::Control;
use super::edits::{LiveSettings, Situation};
use super::mapped::MappedFiles;
use super::meter::Meter;
use super::observe::{Observer, Questions};
use super::record::Record;
use super::result::publish;
use super::room::until_written;
use super::state::{Best, Identity, State, checkpoint_error};
use crate::algorithms::{Algorithm, algorithm_of};
use crate::base::Base;
use crate::csrc;
use crate::device;
use crate::error::{EngineError, Result};
use crate::layers::Adapter;
use crate::methods;

/// How often the disk's free space is checked.
const DISK_INTERVAL: Duration = Duration::from_secs(10);

/// When the numbers of a step are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Before the next step begins: a CPU has finished a step when the launch returns.
    AtOnce,
    /// After the next step was launched, so that the device never waits for the host to process them.
    Late,
}

impl Reading {
    /// The mode for a device.
    pub fn of(device: Device) -> Self {
        if device.is_cuda() { Self::Late } else { Self::AtOnce }
    }
}

/// Less is written in about a second, which is not worth a copy and a thread.
const LARGE_CHECKPOINT: u64 = 256 << 20;

/// What goes on while the next steps are made. It changes nothing in what a run computes.
#[derive(Debug, Clone, Copy)]
pub struct Overlap {
    pub reading: Reading,
    /// A checkpoint with more bytes of tensors is written by a thread.
    pub checkpoint_bytes: u64,
}

impl Overlap {
    /// On a device.
    pub fn on(device: Device) -> Self {
        Self { reading: Reading::of(device), checkpoint_bytes: LARGE_CHECKPOINT }
    }
}

/// Work to do after a step.
#[derive(Debug, Clone, Copy)]
struct Due {
    evaluation: bool,
    sample: bool,
    checkpoint: bool,
}

impl Due {
    fn anything(self) -> bool {
        self.evaluation || self.sample || self.checkpoint
    }
}

/// One process's work on a run.
pub struct Trainer<'a> {
    record: &'a mut Record,
    control: &'a Control,
    clock: Clock,
    base: &'a Base,
    mapped: MappedFiles,
    prepared: &'a Prepared,
    settings: LiveSettings,
    algorithm: Box<dyn Algorithm>,
    state: State,
    overlap: Overlap,
    /// A step whose numbers are not read yet. Only the next step may begin before they are read.
    in_flight: Option<InFlight>,
    /// When numbers were last read, by the clock.
    settled: Option<Duration>,
    lengths: Vec<usize>,
    order: StepOrder,
    questions: Questions,
    meter: Meter,
    disk: DiskWatch,
    disk_seen: Option<Instant>,
    /// Whether blocks are computed again in the backward pass.
    recompute: bool,
    /// Bytes that the run may come to need on its device, if they can be forecast.
    forecast: u64,
    /// The checkpoint that a thread writes. There is at most one.
    writing: Option<Writing>,
    /// Size of the last checkpoint.
    checkpoint_bytes: u64,
    /// Step of the newest checkpoint of this process.
    saved: Option<u64>,
    /// Step of the newest evaluation of this process.
    evaluated: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// Continues from `state` with `config`.
    pub fn new(
        record: &'a mut Record,
        control: &'a Control,
        settings: LiveSettings,
        base: &'a Base,
        prepared: &'a Prepared,
        state: State,
        overlap: Overlap,
    ) -> Self {
        let (place, config) = (device::place(base.model.device()), settings.config());
        let plan = plan_at(&base.files, config, &prepared.checked.summary(), place).ok();
        let lengths: Vec<usize> = prepared.train.iter().map(EncodedRow::tokens).collect();
        Self {
            order: StepOrder::new(&lengths, config),
            recompute: recomputes(config.train.recompute, plan.as_ref()),
            forecast: plan.map_or(u64::MAX, |plan| plan.memory.total),
            writing: None,
            algorithm: algorithm_of(record.run(), base, config, prepared),
            settings,
            questions: Questions::default(),
            meter: Meter::new(base.model.device()),
            disk: DiskWatch::default(),
            disk_seen: None,
            checkpoint_bytes: 0,
            saved: None,
            evaluated: None,
            record,
            control,
            clock: Clock::start(),
            base,
            mapped: MappedFiles::default(),
            prepared,
            state,
            overlap,
            in_flight: None,
            settled: None,
            lengths,
        }
    }

    /// Reports changes of the base model's files from now on.
    #[must_use]
    pub fn watching(mut self, mapped: MappedFiles) -> Self {
        self.mapped = mapped;
        self
    }

    pub fn adapter(&self) -> &dyn Adapter {
        self.state.adapter.as_ref()
    }

    pub fn identity(&self) -> &Identity {
        &self.state.progress.identity
    }

    /// Number of the last step.
    pub fn total_steps(&self) -> u64 {
        self.order.total_steps()
    }

    /// SHA-256 of the configuration in force, as TOML text.
    pub fn config_hash(&self) -> String {
        hash::sha256(self.config().to_toml())
    }

    /// Journals the start and fills in the status.
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

    pub fn run(&mut self) -> Result<End> {
        let end = self.go_on();
        self.await_checkpoint();
        end
    }

    fn go_on(&mut self) -> Result<End> {
        let (config, project) = (self.settings.config(), self.record.run().project());
        self.questions = Questions::read(self.base, config, project, self.prepared)?;
        self.record.state(RunState::Running, None);
        if self.state.progress.step == 0 && self.config().train.eval_every > 0 {
            self.evaluate(false)?;
        }
        loop {
            self.look_for_checkpoint();
            // A request that comes after this check waits until the next step has been read.
            if self.control.has_requests() {
                self.settle()?;
                self.take_edits();
                self.apply_requests()?;
                if let Some(when) = self.control.stopping() {
                    return self.stop(when);
                }
                if self.control.paused() {
                    self.hold();
                    continue;
                }
            }
            if self.settings.repeats() {
                self.settle()?;
                let before = self.config().clone();
                if self.settings.repeat(self.state.progress.step) {
                    self.follow_settings(&before);
                }
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

    // ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────

    fn take_edits(&mut self) {
        let Some(asked) = self.control.take_config() else { return };
        let before = self.config().clone();
        let (base, prepared, lengths) = (self.base, self.prepared, &self.lengths);
        let project = self.record.run().project().to_owned();
        let situation = Situation {
            step: self.state.progress.step,
            asked,
            total_steps: &|config| StepOrder::new(lengths, config).total_steps(),
            unusable: &|config| {
                let questions = || Questions::read(base, config, &project, prepared);
                if asks_alike(&before, config) {
                    None
                } else {
                    questions().err().map(|error| error.to_string())
                }
            },
        };
        if self.settings.reload(self.record, situation) {
            self.follow_settings(&before);
        }
    }

    /// Settings that were different `before` are in force.
    fn follow_settings(&mut self, before: &Config) {
        self.order = StepOrder::new(&self.lengths, self.settings.config());
        let total = self.total_steps();
        self.record.update(|status| status.total_steps = total);
        let now = self.settings.config();
        if asks_alike(before, now) {
            return;
        }
        match Questions::read(self.base, now, self.record.run().project(), self.prepared) {
            Ok(questions) => self.questions = questions,
            Err(error) => {
                let message = format!("evaluations continue as before, because of the new setting: {error}");
                self.record.alert(AlertKind::EditRefused, message, Vec::new());
            }
        }
    }

    fn apply_requests(&mut self) -> Result<()> {
        if self.control.take_checkpoint() {
            self.checkpoint();
        }
        if self.control.take_evaluation() {
            self.evaluate(true)?;
        }
        while let Some(prompt) = self.control.take_prompt() {
            self.record.activity(Some("answering a prompt"));
            let sample = self.observer().sample_prompt(&prompt, self.state.progress.step);
            self.record.activity(None);
            match sample {
                Ok(Some(sample)) => self.record.event(sample),
                Ok(None) => {}
                Err(error) if error.class() == FailureClass::Device => return Err(error),
                // A person's prompt must not end a run.
                Err(error) => {
                    let message = format!("the prompt was not answered: {error}");
                    self.record.alert(AlertKind::Other, message, Vec::new());
                }
            }
        }
        Ok(())
    }

    /// Waits for one moment of a pause.
    fn hold(&mut self) {
        if self.record.status().state != RunState::Paused {
            self.record.state(RunState::Paused, None);
        }
        self.control.wait();
        self.record.catch_up();
        if !self.control.paused() && self.control.stopping().is_none() {
            self.record.state(RunState::Running, Some("resumed".into()));
        }
    }

    // ── work after a step ─────────────────────────────────────────────────────────────────────────────────────────

    fn take_turns(&mut self) -> Result<()> {
        let step = self.state.progress.step;
        if step >= self.total_steps() {
            return Ok(());
        }
        let Due { evaluation, sample, checkpoint } = self.due(step);
        if evaluation {
            self.evaluate(sample)?;
        }
        if sample {
            self.sample_suite()?;
        }
        if checkpoint && !self.is_saved(step) {
            self.checkpoint();
        }
        Ok(())
    }

    /// The work that is due after `step`.
    fn due(&self, step: u64) -> Due {
        let train = &self.config().train;
        let every = |count: u64| count > 0 && step.is_multiple_of(count);
        Due {
            evaluation: every(train.eval_every),
            sample: every(train.sample_every),
            checkpoint: every(train.checkpoint_every),
        }
    }

    fn observer(&self) -> Observer<'_> {
        Observer {
            base: self.base,
            control: self.control,
            clock: &self.clock,
            config: self.settings.config(),
            questions: &self.questions,
            adapter: self.state.adapter.as_ref(),
        }
    }

    /// Evaluates on the held-out rows. The best weights so far are checkpointed, so that they can be
    /// restored.
    fn evaluate(&mut self, scored: bool) -> Result<()> {
        if self.prepared.eval.is_empty() {
            return Ok(());
        }
        self.watch_base();
        self.record.activity(Some("evaluating"));
        let observer = Observer {
            base: self.base,
            control: self.control,
            clock: &self.clock,
            config: self.settings.config(),
            questions: &self.questions,
            adapter: self.state.adapter.as_ref(),
        };
        let found = observer.evaluate(self.algorithm.as_mut(), self.prepared, scored);
        self.record.activity(None);
        let Some(event) = self.or_left_out(found, "the evaluation")?.flatten() else { return Ok(()) };
        let step = self.state.progress.step;
        // A second evaluation of the same weights must not count for early stopping or overfitting.
        let again = self.evaluated.replace(step) == Some(step);
        let loss = event.loss.get();
        let scores = event.scores.clone();
        self.record.event(event);
        let progress = &mut self.state.progress;
        let better = loss.is_finite() && progress.best.is_none_or(|best| loss < best.loss);
        if better {
            progress.best = Some(Best { loss, step });
            progress.evaluations_since_best = 0;
        } else if !again {
            progress.evaluations_since_best += 1;
        }
        let overfits = !again && loss.is_finite() && progress.overfitting.observe(loss);
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
                "the held-out loss has risen three times in a row, to {loss:.4}, while training continues; the best was {}",
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
        let found = self.observer().sample_suite();
        self.record.activity(None);
        for sample in self.or_left_out(found, "the sample of the suite")?.unwrap_or_default() {
            self.record.event(sample);
        }
        Ok(())
    }

    /// What was found, or an alert and nothing if it does not fit into memory even one row at a time: training may
    /// still fit, and goes on.
    fn or_left_out<T>(&mut self, found: Result<T>, what: &str) -> Result<Option<T>> {
        let error = match found {
            Err(error @ EngineError::OutOfMemory { .. }) => error,
            other => return other.map(Some),
        };
        if let Device::Cuda(index) = self.base.model.device() {
            csrc::release_device_memory(index)?;
        }
        let message = format!(
            "{what} after step {} does not fit into memory and is left out: {error}; {}",
            self.state.progress.step,
            error.remedy()
        );
        self.record.alert(AlertKind::OomSplit, message, Vec::new());
        Ok(None)
    }

    /// Reports changes of the base model's files.
    fn watch_base(&mut self) {
        for change in self.mapped.changed() {
            self.record.alert(AlertKind::Other, change, Vec::new());
        }
    }

    fn watch_disk(&mut self) {
        if self.disk_seen.is_some_and(|seen| seen.elapsed() < DISK_INTERVAL) {
            return;
        }
        self.disk_seen = Some(Instant::now());
        self.watch_base();
        let Ok(free) = free_disk_bytes(self.record.run().path()) else { return };
        if self.disk.observe(free, self.checkpoint_bytes) {
            let message =
                format!("the disk is nearly full: {} MiB are left for checkpoints and journal", free >> 20);
            self.record.alert(AlertKind::DiskLow, message, Vec::new());
        }
    }

    // ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn is_stuck(&self) -> bool {
        let patience = self.config().train.early_stop_patience;
        patience > 0 && self.state.progress.evaluations_since_best >= patience
    }

    fn finish(&mut self) -> Result<End> {
        let step = self.state.progress.step;
        // Saved before the last evaluation and samples: they may run out of memory, and the trained weights
        // must not be lost with them.
        if self.config().train.checkpoint_every > 0 && !self.is_saved(step) {
            self.checkpoint();
        }
        if self.evaluated != Some(step) || self.questions.can_score() {
            self.evaluate(true)?;
        }
        if self.config().train.sample_every > 0 {
            self.sample_suite()?;
        }
        if self.control.abandoned() {
            return self.stop(StopWhen::Now);
        }
        if !self.save(self.config().train.checkpoint_every > 0)? {
            return Ok(self.given_up());
        }
        Ok(End { state: RunState::Finished, reason: None })
    }

    fn stop(&mut self, when: StopWhen) -> Result<End> {
        let reason = self.control.stop_reason();
        self.record.state(RunState::Stopping, Some(reason.clone()));
        match when {
            StopWhen::Now => return Ok(self.given_up()),
            StopWhen::AfterEval => self.evaluate(true)?,
            StopWhen::Save => {}
        }
        Ok(if self.save(true)? { End::stopped(reason) } else { self.given_up() })
    }

    /// The end of a run that was not to save.
    fn given_up(&self) -> End {
        let reason = self.control.stop_reason();
        End::stopped(format!("{reason} at once; nothing after the last checkpoint was saved"))
    }

    /// The held-out loss has not improved for as long as the configuration allows: the best weights are the
    /// result.
    fn stop_early(&mut self) -> Result<End> {
        self.record.state(RunState::Stopping, Some("the held-out loss has stopped improving".into()));
        if !self.save(true)? {
            return Ok(self.given_up());
        }
        let best = self.state.progress.best.map(|best| best.step);
        let run = self.record.run().clone();
        let checkpoint =
            list_checkpoints(run.path()).into_iter().find(|checkpoint| Some(checkpoint.step) == best);
        let kept = match checkpoint {
            Some(checkpoint) => {
                checkpoint.verify().map_err(checkpoint_error)?;
                methods::restore(self.state.adapter.as_ref(), &checkpoint.path)?;
                if !self.publish()? {
                    return Ok(self.given_up());
                }
                format!("the result is that of step {}", checkpoint.step)
            }
            None => "the result is the last one".into(),
        };
        let patience = self.config().train.early_stop_patience;
        Ok(End::stopped(format!("the held-out loss has not improved for {patience} evaluations; {kept}")))
    }

    fn result_path(&self) -> PathBuf {
        self.record.run().result_path(ResultForm::of_method(self.config().method.kind))
    }

    /// Saves the adapter and, if `checkpoint`, a checkpoint to resume from. While the disk is full the run holds still;
    /// `false` if it is to end without what is not saved.
    fn save(&mut self, checkpoint: bool) -> Result<bool> {
        if checkpoint {
            self.await_checkpoint();
            if self.saved != Some(self.state.progress.step) && !self.last_checkpoint() {
                return Ok(false);
            }
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<bool> {
        self.watch_base();
        self.record.activity(Some("saving the result"));
        let (adapter, folder) = (self.state.adapter.as_ref(), self.result_path());
        let saved = until_written(self.record, self.control, || publish(adapter, &folder));
        self.record.activity(None);
        Ok(saved?.is_some())
    }
}

/// Whether two configurations evaluate in the same way.
fn asks_alike(one: &Config, other: &Config) -> bool {
    one.objective == other.objective && one.review == other.review
}

/// Whether activations are computed again. `auto` asks the forecast, and saves memory if there is no
/// forecast.
fn recomputes(setting: Recompute, plan: Option<&Plan>) -> bool {
    match setting {
        Recompute::On => true,
        Recompute::Off => false,
        Recompute::Auto => plan.is_none_or(|plan| plan.recompute),
    }
}
