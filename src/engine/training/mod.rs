//! Training: one process works on one run until it ends. The loop is in [`trainer`] and one step in
//! [`crate::step`]; [`record`] reports to people, and [`control`] and [`edits`] take their requests.

pub mod alerts;
pub mod clock;
pub mod control;
pub mod edits;
mod mapped;
pub mod meter;
mod observe;
pub mod record;
mod result;
mod room;
pub mod schedule;
mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
pub mod trainer;

use std::ops::ControlFlow;
use std::path::Path;

use luthier_core::algorithms::BaseUse;
use luthier_core::config::{Config, ConfigError, MethodKind, Watcher};
use luthier_core::data::{self, Prepared};
use luthier_core::files;
use luthier_core::panics;
use luthier_core::runs::{
    AlertKind, Checkpoint, Failure, FailureClass, ParameterCount, RunDir, RunError, RunEvent, RunState,
    Server, SettingsHistory, StateEvent, become_session_leader, newest_valid, sweep_debris,
};
use tch::{Device, Kind, Tensor};

use crate::algorithms::algorithm_of;
use crate::base::{self, Base, data_error};
use crate::error::{EngineError, Result};
use crate::layers::Form;
use crate::methods::{Method, method_of};
use crate::models::Model;
use crate::process::Termination;
use crate::step::adamw;
use crate::trials::{self, Missing};
use control::Control;
use edits::LiveSettings;
use mapped::{LastWords, MappedFiles};
use record::Record;
use state::{Identity, State};
use trainer::{Overlap, Trainer};

/// An end of a run that is not a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// `finished` or `stopped`.
    pub state: RunState,
    /// Why, as text, if it was not the planned end.
    pub reason: Option<String>,
}

impl End {
    fn stopped(reason: impl Into<String>) -> Self {
        Self { state: RunState::Stopped, reason: Some(reason.into()) }
    }
}

/// Works on a run until it ends, from its newest valid checkpoint if it has one. Events go to the run's
/// journal and status. An error says why there was nothing to work on. `true` if the run did not fail.
pub fn train(path: &Path, termination: Termination) -> Result<bool, RunError> {
    become_session_leader()?;
    let run = RunDir::open(path)?;
    let _lock = run.lock()?;
    sweep_debris(run.path());
    files::sweep(run.project(), &[]);
    let mut record = Record::open(&run)?;
    let _last_words = LastWords::prepare(&run);
    let control = Control::new(termination);
    let ended = panics::caught(|| work(&run, &mut record, &control, Overlap::on));
    let failure = match ended {
        Ok(Ok(End { state, reason })) => {
            record.end(StateEvent { state, reason, failure: None }, &mut || control.wait_to_retry());
            return Ok(true);
        }
        Ok(Err(error)) => failure_of(&error),
        Err(panic) => failure_of_panic(&panic),
    };
    record.end(failed(failure), &mut || control.wait_to_retry());
    Ok(false)
}

fn failed(failure: Failure) -> StateEvent {
    StateEvent { state: RunState::Failed, reason: None, failure: Some(failure) }
}

fn failure_of(error: &EngineError) -> Failure {
    Failure { class: error.class(), message: error.to_string(), remedy: error.remedy().into() }
}

/// tch panics if a call without a fallible form fails, so memory and device failures arrive here too.
fn failure_of_panic(message: &str) -> Failure {
    let error = EngineError::torch("an operation", message);
    match error.class() {
        FailureClass::Oom | FailureClass::Device => failure_of(&error),
        _ => Failure {
            class: FailureClass::Bug,
            message: format!("the engine stopped with a defect: {message}"),
            remedy:
                "please report it with the run's engine.log; the run can be resumed from its last checkpoint"
                    .into(),
        },
    }
}

fn work(
    run: &RunDir,
    record: &mut Record,
    control: &Control,
    overlap: impl FnOnce(Device) -> Overlap,
) -> Result<End> {
    serve(run, record, control);
    let (checkpoint, settings) = settings_of(run, record)?;
    let config = settings.config().clone();
    let project = run.project();

    let files = base::model_files(&config, project)?;
    let prepared = prepare(&config, run, &files, record)?;
    if let Some(end) = asked_to_end(control) {
        return Ok(end);
    }
    record.activity(Some("loading the base model"));
    let mapped = MappedFiles::see(&files.files);
    let full = config.method.kind == MethodKind::Full;
    let mut base = if full && config.train.algorithm.declaration().base == BaseUse::Never {
        Base::without_weights(files, &config, project)?
    } else {
        Base::load(files, &config, project)?
    };
    if full && base.model.kind() == Kind::BFloat16 {
        adamw::try_fused_update(base.model.device())?;
    }
    for Missing { what, remedy } in trials::missing() {
        let message = format!("slower than it could be: {what}; {remedy}");
        record.alert(AlertKind::Other, message, Vec::new());
    }
    let method = method_of(&config);
    let identity = Identity {
        model_fingerprint: base.files.fingerprint.clone(),
        data_hash: prepared.checked.data_hash.clone(),
        template_fingerprint: base.template.fingerprint.clone(),
        seed: config.train.seed,
    };
    algorithm_of(run, &base, &config, &prepared).begin(
        &base.model,
        config.method.kind,
        &prepared,
        &mut |done| {
            record.activity(Some(&format!("computing the reference: {done} rows")));
            if control.stopping().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )?;
    if let Some(end) = asked_to_end(control) {
        return Ok(end);
    }
    if full {
        // All weights are trained as copies of the base's, which nothing asks again: what an algorithm must know of the
        // base is known, and one that asks it in each step takes no full fine-tuning.
        base.model = Model::without_weights(&base.files, base.model.device(), base.model.kind())?;
    }
    let (state, resumed_from) =
        begin_or_resume(checkpoint, record, &config, method.as_ref(), &base, identity)?;
    record.activity(None);

    let _watcher = {
        let control = control.clone();
        Watcher::new(vec![run.config_path()], move |_| control.config_changed())
    };
    // The watcher compares with the file as it is now. Preparing took a while, and the file may have changed.
    control.config_changed();
    let overlap = overlap(base.model.device());
    let mut trainer =
        Trainer::new(record, control, settings, &base, &prepared, state, overlap).watching(mapped);
    let run_event = describe(&trainer, &base, &prepared, resumed_from);
    trainer.announce(run_event);
    trainer.run()
}

/// Opens the control socket. A run continues without one: its `config.toml` and signals still reach it.
fn serve(run: &RunDir, record: &mut Record, control: &Control) {
    match Server::start(run, env!("CARGO_PKG_VERSION")) {
        Ok((server, calls)) => {
            record.serve(server);
            if let Err(error) = control.answer(calls, run.config_path()) {
                record.alert(
                    AlertKind::Other,
                    format!("the control socket cannot answer: {error}"),
                    Vec::new(),
                );
            }
        }
        Err(error) => record.alert(
            AlertKind::Other,
            format!("there is no control socket ({error}); edit config.toml, or send SIGTERM to stop"),
            Vec::new(),
        ),
    }
}

fn asked_to_end(control: &Control) -> Option<End> {
    control.stopping().map(|_| End::stopped(format!("{} before the first step", control.stop_reason())))
}

fn prepare(
    config: &Config,
    run: &RunDir,
    files: &luthier_core::model::ModelFiles,
    record: &Record,
) -> Result<Prepared> {
    record.activity(Some("reading the data"));
    let prepared = data::prepare(config, run.project(), files, &mut |_, _| ControlFlow::Continue(()))
        .map_err(data_error)?;
    let blocking =
        prepared.checked.report.problems.iter().find(|problem| problem.severity == data::Severity::Blocks);
    if let Some(problem) = blocking {
        return Err(EngineError::Data(problem.message.clone()));
    }
    if prepared.train.is_empty() {
        return Err(EngineError::Data("there are no rows to train on".into()));
    }
    Ok(prepared)
}

/// The newest usable checkpoint, and the settings with which the run goes on from there.
fn settings_of(run: &RunDir, record: &mut Record) -> Result<(Option<Checkpoint>, LiveSettings)> {
    let broken = |error: ConfigError| EngineError::Config(error.to_string());
    let file = Config::load_file(&run.config_path(), &[]).map_err(broken)?;
    let (checkpoint, passed_over) = newest_valid(run.path());
    for error in passed_over {
        record.alert(AlertKind::Checkpoint, error.to_string(), Vec::new());
    }
    let history = SettingsHistory::read(&file, checkpoint.as_ref(), &run.journal_path()).map_err(broken)?;
    Ok((checkpoint, LiveSettings::new(history, &file)))
}

/// The state of a checkpoint and its step, or a fresh state.
fn begin_or_resume(
    checkpoint: Option<Checkpoint>,
    record: &mut Record,
    config: &Config,
    method: &dyn Method,
    base: &Base,
    identity: Identity,
) -> Result<(State, Option<u64>)> {
    let Some(checkpoint) = checkpoint else {
        let adapter = match &config.method.init {
            Some(folder) => method.load(&record.run().project().join(folder), &base.model)?,
            None => method.create(&base.model, config.train.seed)?,
        };
        return Ok((State::new(adapter, identity)?, None));
    };
    let mut state = State::load(&checkpoint, method, &base.model)?;
    let before = &state.progress.identity;
    if before.model_fingerprint != identity.model_fingerprint {
        return Err(EngineError::Config(format!(
            "the base model is not the one that the checkpoint of step {} was made with; restore that model, or start \
             a new run",
            checkpoint.step
        )));
    }
    if before.data_hash != identity.data_hash || before.template_fingerprint != identity.template_fingerprint
    {
        let message = format!(
            "the data or the chat template changed since the checkpoint of step {}; the run continues with the new ones",
            checkpoint.step
        );
        record.alert(AlertKind::Data, message, Vec::new());
    }
    state.progress.identity = identity;
    Ok((state, Some(checkpoint.step)))
}

fn describe(trainer: &Trainer, base: &Base, prepared: &Prepared, resumed_from: Option<u64>) -> RunEvent {
    let trainable: u64 = trainer.adapter().parameters().values().map(elements).sum();
    let total = match trainer.adapter().form() {
        Form::Peft(_) => base.files.parameters() + trainable,
        Form::Model(_) => trainable,
    };
    let versions = [("luthier", env!("CARGO_PKG_VERSION")), ("libtorch", crate::csrc::LIBTORCH_VERSION)];
    let identity = trainer.identity();
    RunEvent {
        config_hash: trainer.config_hash(),
        data_hash: identity.data_hash.clone(),
        model_fingerprint: identity.model_fingerprint.clone(),
        template_fingerprint: identity.template_fingerprint.clone(),
        versions: versions.into_iter().map(|(name, version)| (name.into(), version.into())).collect(),
        device: base.device_name(),
        dtype: base.dtype_name().into(),
        parameters: ParameterCount { total, trainable },
        train_rows: prepared.train.len() as u64,
        eval_rows: prepared.eval.len() as u64,
        total_steps: trainer.total_steps(),
        seed: identity.seed,
        resumed_from,
    }
}

fn elements(tensor: &Tensor) -> u64 {
    tensor.numel() as u64
}
