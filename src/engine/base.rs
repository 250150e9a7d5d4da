//! A base model with all it takes to speak with it: weights, tokenizer, chat template, stop tokens.

use std::path::Path;

use luthier_core::config::Config;
use luthier_core::data::{DataError, Message, Template, Tokenizer};
use luthier_core::model::{ModelFiles, Quantisation};

use crate::device;
use crate::error::{EngineError, Result};
use crate::models::Model;

/// A base model, loaded.
pub struct Base {
    /// What its files say.
    pub files: ModelFiles,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Template,
    /// Ids that end a reply.
    pub stop: Vec<u32>,
    /// The weights.
    pub model: Model,
}

/// What the files of the configured base model say; reads no weights.
pub fn model_files(config: &Config, project: &Path) -> Result<ModelFiles> {
    ModelFiles::find(&config.model.path, project).map_err(|error| EngineError::Config(error.to_string()))
}

impl Base {
    /// Loads the weights onto the configured device.
    pub fn load(files: ModelFiles, config: &Config, project: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::open(&files).map_err(data_error)?;
        let template = Template::resolve(config, project, &files).map_err(data_error)?;
        let stop = template.stop_tokens(&tokenizer, &files);
        let device = device::choose(config.model.device)?;
        device::prepare(config, device)?;
        let kind = device::compute_kind(config.model.dtype, device);
        let quantisation = Quantisation::of(config.method.kind, &files);
        let model = Model::load(&files, device, kind, quantisation)?;
        Ok(Self { files, tokenizer, template, stop, model })
    }

    /// The device in words: `cpu`, `cuda:0`.
    pub fn device_name(&self) -> String {
        device_name(self.model.device())
    }

    /// The type computed in, in words: `f32`, `bf16`.
    pub fn dtype_name(&self) -> &'static str {
        dtype_name(self.model.kind())
    }

    /// Ids from which the model answers a conversation, the configured system prompt included.
    pub fn prompt(&self, messages: &[Message], config: &Config) -> Result<Vec<u32>> {
        self.template.prompt_ids(messages, &self.tokenizer, config).map_err(data_error)
    }

    /// The text of a reply.
    pub fn reply(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(data_error)
    }
}

/// A type that models compute in, in words: `f32`, `bf16`.
pub fn dtype_name(kind: tch::Kind) -> &'static str {
    match kind {
        tch::Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

/// A device in words: `cpu`, `cuda:0`.
pub fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// A dataset's failure as one of the engine's.
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
