//! Full fine-tuning: every tensor of the model is trained in f32, and used instead of the base's, which need not
//! be in memory. In bf16 the forward pass uses working copies. A tied head is trained once, as the embedding.
//! The result is a model folder in the base's own layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use luthier_core::model::trained::every_tensor;
use luthier_core::model::{Arrangement, ModelFiles, ModelKind, Quantisation, Storage, families};
use tch::{Kind, Tensor};

use super::copies::arranged;
use super::peft::refusal;
use super::{Method, Purpose, trained};
use crate::error::{EngineError, Result};
use crate::layers::{Adapter, Form, Linear, Parameters, WorkingCopies, WorkingCopy};
use crate::models::Model;
use crate::ops;
use crate::weights::{Loader, safetensors};

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
        Full::to_train(model.files(), model).map(super::boxed)
    }

    fn load(&self, folder: &Path, model: &Model) -> Result<Box<dyn Adapter>> {
        let full = Full::to_train(&like(folder, model)?, model)?;
        full.checked(folder).map(super::boxed)
    }
}

/// All weights of a model, instead of those of a base model.
#[derive(Debug)]
pub struct Full {
    files: Arc<ModelFiles>,
    /// In f32, or if they are not trained in the type that the forward pass uses.
    parameters: Parameters,
    working: WorkingCopies,
    /// What the forward pass uses, by Hugging Face name and in its layout.
    used: BTreeMap<String, Tensor>,
}

impl Full {
    /// Reads a model folder of the same architecture as `model`, without what training needs.
    pub fn to_use(folder: &Path, model: &Model) -> Result<Self> {
        let files = like(folder, model)?;
        let loader = |kind| Loader::open(&files, model.device(), kind, Quantisation::None);
        let (exact, usual) = (loader(Kind::Float)?, loader(model.kind())?);
        let mut full = Self::empty(model)?;
        for copied in every_tensor(model.architecture()) {
            let name = copied.tensor();
            let is_usual = model.kind_of(&name) == model.kind();
            let loader = if is_usual { &usual } else { &exact };
            // A leaf, so that the forward pass is that of training to the last bit.
            let parameter = ops::leaf(&arranged(&loader.tensor(&name)?, copied.arrangement)?)?;
            full.used.insert(name.clone(), turned(&parameter, copied.arrangement)?);
            full.parameters.insert(name, parameter);
        }
        full.checked(folder)
    }

    /// Copies of the tensors in a model's files, which are laid out like those of `model`, to be trained.
    fn to_train(files: &ModelFiles, model: &Model) -> Result<Self> {
        let loader = Loader::open(files, model.device(), Kind::Float, Quantisation::None)?;
        let head = model.head();
        let mut full = Self::empty(model)?;
        for copied in every_tensor(model.architecture()) {
            let name = copied.tensor();
            // Copied, because the loaded tensor may be in the mapped file.
            let own = arranged(&ops::copy(&loader.tensor(&name)?)?, copied.arrangement)?;
            let kind = model.kind_of(&name);
            let (parameter, leaf) = if kind == Kind::Float {
                let parameter = trained(&own, model)?;
                (parameter.shallow_clone(), parameter)
            } else {
                let is_shared = is_tied(head) && head.tensors()[0] == name;
                let copy = WorkingCopy::new(&own, kind, is_shared)?;
                let leaf = copy.leaf().shallow_clone();
                full.working.insert(name.clone(), copy);
                (own, leaf)
            };
            full.used.insert(name.clone(), turned(&leaf, copied.arrangement)?);
            full.parameters.insert(name, parameter);
        }
        Ok(full)
    }

    fn empty(model: &Model) -> Result<Self> {
        if model.files().kind == ModelKind::Gguf {
            return Err(EngineError::Config(format!(
                "full fine-tuning writes a model folder in the layout of its base, and {} is a GGUF file; give \
                 model.path the model's Hugging Face folder, or use method.kind = \"lora\"",
                luthier_core::text::clean_line(&model.files().root.display().to_string())
            )));
        }
        Ok(Self {
            files: Arc::new(model.files().clone()),
            parameters: Parameters::new(),
            working: WorkingCopies::new(),
            used: BTreeMap::new(),
        })
    }

    /// An error if numbers from `folder` are not finite.
    fn checked(self, folder: &Path) -> Result<Self> {
        let mut problems = Vec::new();
        for (name, tensor) in &self.parameters {
            if !ops::all_finite(tensor)? {
                problems.push(format!("{name} contains numbers that are not finite"));
            }
        }
        if problems.is_empty() { Ok(self) } else { Err(refusal(folder, problems)) }
    }
}

/// The files of a folder with a model of the same architecture as `model`.
fn like(folder: &Path, model: &Model) -> Result<ModelFiles> {
    let files = ModelFiles::open(folder).map_err(|error| refusal(folder, vec![error.to_string()]))?;
    if files.architecture != *model.architecture() {
        let problem = "its architecture is not the base model's; config.json must say the same";
        return Err(refusal(folder, vec![problem.into()]));
    }
    Ok(files)
}

/// Whether a layer has the weight of the embedding.
fn is_tied(linear: &Linear) -> bool {
    linear.tensors()[0].strip_suffix(".weight") != Some(linear.name.as_str())
}

/// From the stored layout to that of the forward pass, over the same memory.
fn turned(tensor: &Tensor, arrangement: Arrangement) -> Result<Tensor> {
    match arrangement {
        Arrangement::Transposed => ops::transpose(tensor, 0, 1),
        _ => Ok(tensor.shallow_clone()),
    }
}

impl Adapter for Full {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        Form::Model(Arc::clone(&self.files))
    }

    fn working(&self) -> Option<&WorkingCopies> {
        Some(&self.working)
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.used.get(tensor)
    }

    fn weight(&self, linear: &Linear) -> Option<&Tensor> {
        let [weight, _] = linear.tensors();
        let own = if is_tied(linear) { self.working.get(weight).and_then(WorkingCopy::other) } else { None };
        own.or_else(|| self.used.get(weight))
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
        return safetensors::write(&path, parameters.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    }
    let kind = |name: &str| match base.tensors.get(name).map(|entry| entry.storage) {
        Some(Storage::F16) => Kind::Half,
        Some(Storage::BF16) => Kind::BFloat16,
        _ => Kind::Float,
    };
    // All versions of transformers read files with the older names.
    let older = families::older_names(base.architecture.family);
    let rounded = parameters.iter().map(|(name, tensor)| {
        let in_file = older.iter().find_map(|(here, older)| families::under_name(name, here, older));
        (in_file.unwrap_or_else(|| name.clone()), tensor, kind(name))
    });
    safetensors::write_as(&path, rounded)
}
