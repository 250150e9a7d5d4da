//! Full fine-tuning: every tensor of the model is trained, as an f32 copy that is used instead of the base's.
//! A tied head is trained once, as the embedding. The result is a model folder in the base's own layout.

use std::fs;
use std::path::Path;

use luthier_core::model::trained::{Copied, every_tensor};
use luthier_core::model::{ModelFiles, ModelKind, Storage, families};
use tch::{Kind, Tensor};

use super::copies::Copies;
use super::peft::refusal;
use super::{Method, Purpose};
use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Form, Linear, Parameters};
use crate::models::Model;
use crate::ops;
use crate::weights::safetensors;

/// The weights of a model folder.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// Other files of a model folder, if the base has them: configuration, tokenizer, chat template.
const COMPANIONS: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];

/// Full fine-tuning has no settings.
#[derive(Debug, Clone, Copy)]
pub struct FullMethod;

impl Method for FullMethod {
    /// Starts from the base model's weights.
    fn create(&self, model: &Model, _: u64) -> Result<Box<dyn Adapter>> {
        Full::of_files(model.files(), model).map(super::boxed)
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        Full::load(folder, model).map(super::boxed)
    }
}

/// Trained copies of all weights of a model.
#[derive(Debug)]
pub struct Full {
    files: ModelFiles,
    copies: Copies,
    parameters: Parameters,
}

impl Full {
    /// Reads a model folder of the same architecture as `model`.
    pub fn load(folder: &Path, model: &Model) -> Result<Self> {
        let files = ModelFiles::open(folder).map_err(|error| refusal(folder, vec![error.to_string()]))?;
        if files.architecture != *model.architecture() {
            let problem = "its architecture is not the base model's; config.json must say the same";
            return Err(refusal(folder, vec![problem.into()]));
        }
        let full = Self::of_files(&files, model)?;
        let mut problems = Vec::new();
        for (name, tensor) in &full.parameters {
            if !ops::all_finite(tensor)? {
                problems.push(format!("{name} contains numbers that are not finite"));
            }
        }
        if problems.is_empty() { Ok(full) } else { Err(refusal(folder, problems)) }
    }

    fn of_files(files: &ModelFiles, model: &Model) -> Result<Self> {
        if model.files().kind == ModelKind::Gguf {
            return Err(EngineError::Config(format!(
                "full fine-tuning writes a model folder in the layout of its base, and {} is a GGUF file; give \
                 model.path the model's Hugging Face folder, or use method.kind = \"lora\"",
                luthier_core::text::clean_line(&model.files().root.display().to_string())
            )));
        }
        let wanted = every_tensor(model.architecture());
        let copies = Copies::of_files(files, &wanted, model, Copied::tensor)?;
        let parameters = copies.parameters().collect();
        Ok(Self { files: model.files().clone(), copies, parameters })
    }
}

impl Adapter for Full {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form<'_> {
        Form::Model(&self.files)
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.copies.get(tensor)
    }

    fn shares_product(&self, _: &Linear) -> bool {
        false
    }
}

/// Writes a model folder like the base's: its configuration and tokenizer, and the weights with its names and
/// layout.
pub(super) fn save(
    folder: &Path,
    base: &ModelFiles,
    parameters: &Parameters,
    purpose: Purpose,
) -> Result<()> {
    let failed = |path: &Path, source| EngineError::File { action: "write", path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    for name in COMPANIONS {
        let (source, target) = (base.root.join(name), folder.join(name));
        if !source.exists() {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
        }
        fs::copy(&source, &target).map_err(|source| failed(&target, source))?;
    }
    let path = folder.join(WEIGHTS);
    if purpose == Purpose::Checkpoint {
        return safetensors::write(&path, named(parameters));
    }
    let kind = |name: &str| match base.tensors.get(name).map(|entry| entry.storage) {
        Some(Storage::F16) => Kind::Half,
        Some(Storage::BF16) => Kind::BFloat16,
        _ => Kind::Float,
    };
    // All versions of transformers read files with the older names.
    let older = families::older_names(base.architecture.family);
    let rounded = parameters.iter().map(|(name, tensor)| {
        let plain = ops::to_kind(&ops::detach(tensor)?, kind(name))?;
        let in_file = older.iter().find_map(|(here, older)| families::under_name(name, here, older));
        Ok((in_file.unwrap_or_else(|| name.clone()), plain))
    });
    safetensors::write(&path, named(&rounded.collect::<Result<Parameters>>()?))
}

fn named(parameters: &Parameters) -> impl Iterator<Item = (&str, &Tensor)> {
    parameters.iter().map(|(name, tensor)| (name.as_str(), tensor))
}
