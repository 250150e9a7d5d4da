//! A base model with everything that a conversation needs: weights, tokenizer, chat template, stop tokens.

use std::path::Path;

use luthier_core::config::Config;
use luthier_core::data::{DataError, Extras, Message, Template, Tokenizer};
use luthier_core::model::{ModelFiles, Quantisation};
use tch::{Device, Kind};

use crate::device;
use crate::error::{EngineError, Result};
use crate::models::Model;

pub struct Base {
    /// Configuration and headers of the files.
    pub files: ModelFiles,
    /// Converts text to ids and back.
    pub tokenizer: Tokenizer,
    /// Converts messages to text.
    pub template: Template,
    /// Ids that end a reply.
    pub stop: Vec<u32>,
    pub model: Model,
}

/// Reads the headers of the configured base model's files, without weights.
pub fn model_files(config: &Config, project: &Path) -> Result<ModelFiles> {
    ModelFiles::find(&config.model.path, project).map_err(|error| EngineError::Config(error.to_string()))
}

impl Base {
    /// Loads the weights onto the configured device.
    pub fn load(files: ModelFiles, config: &Config, project: &Path) -> Result<Self> {
        let quantisation = Quantisation::of(config.method.kind, &files);
        Self::with(files, config, project, |files, device, kind| {
            Model::load(files, device, kind, quantisation)
        })
    }

    /// As [`Base::load`], with [`Model::without_weights`].
    pub fn without_weights(files: ModelFiles, config: &Config, project: &Path) -> Result<Self> {
        Self::with(files, config, project, Model::without_weights)
    }

    fn with(
        files: ModelFiles,
        config: &Config,
        project: &Path,
        model: impl FnOnce(&ModelFiles, Device, Kind) -> Result<Model>,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::open(&files).map_err(data_error)?;
        let template = Template::resolve(config, project, &files).map_err(data_error)?;
        let stop = template.stop_tokens(&tokenizer, &files);
        let device = device::choose(config.model.device)?;
        device::prepare(config, device)?;
        let kind = device::compute_kind(config.model.dtype, device);
        let model = model(&files, device, kind)?;
        Ok(Self { files, tokenizer, template, stop, model })
    }

    /// Name of the device: `cpu`, `cuda:0`.
    pub fn device_name(&self) -> String {
        device::name(self.model.device())
    }

    /// Name of the compute type: `f32`, `bf16`.
    pub fn dtype_name(&self) -> &'static str {
        dtype_name(self.model.kind())
    }

    /// The prompt's ids for a conversation with a row's tools and template variables, as in training.
    pub fn prompt(&self, messages: &[Message], extras: &Extras, config: &Config) -> Result<Vec<u32>> {
        self.template.prompt_ids(messages, extras, &self.tokenizer, config).map_err(data_error)
    }

    pub fn reply(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(data_error)
    }
}

/// Name of a compute type: `f32`, `bf16`.
pub fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

/// Converts an error of a dataset to the engine's.
pub fn data_error(error: DataError) -> EngineError {
    match error {
        DataError::Write { path, source } => EngineError::File { action: "write", path, source },
        DataError::Template { .. }
        | DataError::Tokenizer(_)
        | DataError::Settings(_)
        | DataError::Cancelled => EngineError::Config(error.to_string()),
        other => EngineError::Data(other.to_string()),
    }
}
