//! The state that must survive the process, with `write` and `load` next to each other. The order of rows and
//! dropout are functions of seed and step, and the learning rate is one of the step, so none of them is saved here.

use std::collections::BTreeMap;
use std::path::Path;

use luthier_core::config::Config;
use luthier_core::runs::{Checkpoint, CheckpointError, CheckpointWriter, SETTINGS_FILE};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::alerts::{OverfitWatch, SpikeWatch};
use super::snapshot::copies;
use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Form, Parameters};
use crate::methods::{self, Method, Purpose};
use crate::models::Model;
use crate::ops;
use crate::step::adamw::AdamW;
use crate::weights::safetensors;

const MOMENTS_FILE: &str = "optimizer.safetensors";
/// Step, losses and identity.
const PROGRESS_FILE: &str = "progress.json";

/// The state of a run.
pub struct State {
    /// The weights that are trained.
    pub adapter: Box<dyn Adapter>,
    pub optimizer: AdamW,
    pub progress: Progress,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Contents {
    form: Form,
    parameters: Parameters,
    /// Of the optimizer, by the names that they are saved under.
    moments: BTreeMap<String, Tensor>,
    progress: Progress,
    /// The settings in force, as TOML.
    settings: String,
}

/// The state of a run apart from its weights.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps made, including skipped ones: the position in the data.
    pub step: u64,
    /// Updates the optimizer made.
    pub updates: u64,
    /// Lowest held-out loss so far and its step.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_since_best: u64,
    /// Steps in a row whose loss or gradient was not finite.
    pub bad_steps: u32,
    /// Number of parts that each micro-batch is cut into, after memory ran out.
    pub cuts: usize,
    /// Seconds spent in steps.
    pub train_seconds: f64,
    /// Losses that the next ones are compared with.
    pub spikes: SpikeWatch,
    /// Held-out losses that the next ones are compared with.
    pub overfitting: OverfitWatch,
    /// Model and data of the run.
    pub identity: Identity,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub loss: f64,
    pub step: u64,
}

/// The model and data of a run. Another model makes a checkpoint useless. With other data, the rest of the run is another
/// run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub model_fingerprint: String,
    /// Hash of the prepared rows.
    pub data_hash: String,
    pub template_fingerprint: String,
    pub seed: u64,
}

impl State {
    /// The state at the start of a run.
    pub fn new(adapter: Box<dyn Adapter>, identity: Identity) -> Result<Self> {
        let optimizer = AdamW::new(adapter.parameters())?;
        Ok(Self { adapter, optimizer, progress: Progress { cuts: 1, identity, ..Progress::default() } })
    }

    /// What a checkpoint of this state holds, with the settings in force. Its tensors are those of the state, which
    /// training changes.
    pub fn contents(&self, settings: &Config) -> Contents {
        // Exhaustive, so that a new field does not compile until it is saved.
        let Self { adapter, optimizer, progress } = self;
        let shared = |(name, parameter): (&String, &Tensor)| (name.clone(), parameter.shallow_clone());
        Contents {
            form: adapter.form(),
            parameters: adapter.parameters().iter().map(shared).collect(),
            moments: optimizer.tensors(),
            progress: Progress { updates: optimizer.updates(), ..progress.clone() },
            settings: settings.to_toml(),
        }
    }

    /// Loads what [`Contents::write`] wrote, from a checkpoint whose files were verified.
    pub fn load(checkpoint: &Checkpoint, method: &dyn Method, model: &Model) -> Result<Self> {
        let progress = Progress::load(checkpoint)?;
        let adapter = method.load(&checkpoint.path, model)?;
        let mut optimizer = AdamW::new(adapter.parameters())?;
        optimizer.restore(&safetensors::read(&checkpoint.path.join(MOMENTS_FILE))?, progress.updates)?;
        Ok(Self { adapter, optimizer, progress })
    }

    /// Sets weights and moments, in place, to those of a checkpoint; the progress stays.
    pub fn roll_back(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let updates = Progress::load(checkpoint)?.updates;
        let moments = safetensors::read(&checkpoint.path.join(MOMENTS_FILE))?;
        methods::restore(self.adapter.as_ref(), &checkpoint.path)?;
        self.optimizer.restore(&moments, updates)
    }
}

impl Contents {
    /// Size of the tensors in bytes.
    pub fn bytes(&self) -> u64 {
        self.parameters.values().chain(self.moments.values()).map(ops::bytes_of).sum()
    }

    /// The same with copies of the tensors in host memory, which training does not change.
    pub fn snapshot(&self) -> Result<Self> {
        let names = self.parameters.keys().chain(self.moments.keys()).cloned();
        let tensors: Vec<&Tensor> = self.parameters.values().chain(self.moments.values()).collect();
        let mut copied = names.zip(copies(&tensors)?);
        Ok(Self {
            form: self.form.clone(),
            parameters: copied.by_ref().take(self.parameters.len()).collect(),
            moments: copied.collect(),
            progress: self.progress.clone(),
            settings: self.settings.clone(),
        })
    }

    /// Publishes a checkpoint in the run directory. It can also be used as a PEFT adapter folder (after full
    /// fine-tuning, as a model folder).
    pub fn write(&self, run: &Path) -> Result<Checkpoint> {
        let Self { form, parameters, moments, progress, settings } = self;
        let writer = CheckpointWriter::begin(run, progress.step).map_err(checkpoint_error)?;
        methods::save_as(form, parameters, writer.path(), Purpose::Checkpoint)?;
        let named = moments.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::write(&writer.path().join(MOMENTS_FILE), named)?;
        let text = serde_json::to_vec_pretty(progress)
            .map_err(|error| EngineError::Data(format!("the progress cannot be written as JSON: {error}")))?;
        for (name, text) in [(PROGRESS_FILE, text), (SETTINGS_FILE, settings.clone().into_bytes())] {
            let path = writer.path().join(name);
            std::fs::write(&path, text).map_err(|source| EngineError::File {
                action: "write",
                path,
                source,
            })?;
        }
        let notes = serde_json::json!({ "best": progress.best, "identity": progress.identity });
        writer.finish(notes).map_err(checkpoint_error)
    }
}

impl Progress {
    fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.path.join(PROGRESS_FILE);
        let text = std::fs::read(&path).map_err(|source| EngineError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|error| EngineError::Model {
            path,
            message: format!("is not the progress of a run: {error}"),
        })
    }
}

/// Converts a checkpoint's error to the engine's.
pub fn checkpoint_error(error: CheckpointError) -> EngineError {
    match error {
        CheckpointError::Io { doing, path, source } => EngineError::File { action: doing, path, source },
        damaged @ CheckpointError::Damaged { .. } => EngineError::Data(damaged.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use luthier_core::config::Config;
    use luthier_core::model::{ModelFiles, Quantisation};
    use luthier_core::runs::{Manifest, RunDir};
    use tch::{Device, Kind};

    use super::*;
    use crate::methods::{FullMethod, LoraMethod};

    fn run(project: &Path) -> RunDir {
        RunDir::create(project, &Config::default(), Some("test")).unwrap()
    }

    /// What a published checkpoint holds, without the time.
    fn held(checkpoint: &Checkpoint) -> (u64, Vec<(String, String)>, serde_json::Value) {
        let Manifest { step, files, notes, .. } = checkpoint.verify().unwrap();
        (step, files.into_iter().map(|(name, entry)| (name, entry.sha256)).collect(), notes)
    }

    #[test]
    fn a_thread_writes_a_snapshot_as_the_state_was_then() {
        let project = tempfile::tempdir().unwrap();
        let files = ModelFiles::open(&crate::testing::model()).unwrap();
        let model = Model::load(&files, Device::Cpu, Kind::BFloat16, Quantisation::None).unwrap();
        let lora = LoraMethod::from_config(&Config::default().method, "llama".as_ref());
        let settings = Config::default();
        for method in [&lora as &dyn Method, &FullMethod] {
            let adapter = method.create(&model, 3).unwrap();
            let mut state = State::new(adapter, Identity::default()).unwrap();
            for mut tensor in state.contents(&settings).moments.into_values() {
                drop(tensor.uniform_(0.0, 1.0));
            }
            state.progress.step = 7;
            state.progress.best = Some(Best { loss: 0.5, step: 4 });
            let [at_once, later, aside] = [0; 3].map(|_| run(project.path()));
            let before = held(&state.contents(&settings).write(at_once.path()).unwrap());
            let snapshot = state.contents(&settings).snapshot().unwrap();
            assert_eq!(snapshot.bytes(), state.contents(&settings).bytes());

            let Contents { parameters, moments, .. } = state.contents(&settings);
            for tensor in parameters.values().chain(moments.values()) {
                drop(tensor.detach().fill_(2.0));
            }
            state.progress.step = 8;
            let written = thread::spawn(move || snapshot.write(aside.path())).join().unwrap().unwrap();
            assert_eq!(held(&written), before);
            assert_ne!(held(&state.contents(&settings).write(later.path()).unwrap()), before);
        }
    }
}
