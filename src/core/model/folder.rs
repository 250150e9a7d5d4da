//! A base model in a Hugging Face folder.

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::path::{Component, Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;

use super::architecture::{Architecture, Parameter};
use super::error::{ModelError, Shown, TensorProblems};
use super::families;
use super::roles::Role;
use super::safetensors::{Dtype, Header};
use super::settings::Settings;
use super::special;
use super::tensors::{self, Found};
use super::{ModelFiles, ModelKind, TokenizerSource, files, fingerprint};

/// Largest shard index that is read.
const MAX_INDEX: u64 = 64 << 20;

/// Largest `tokenizer_config.json` that is read.
const MAX_TOKENIZER_CONFIG: u64 = 64 << 20;

/// Largest `chat_template.jinja` that is read.
const MAX_TEMPLATE: u64 = 4 << 20;

/// Endings of files that are, or hold, pickles.
pub(super) const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

/// Opens a folder.
pub(super) fn open(root: &Path) -> Result<ModelFiles, ModelError> {
    let config = root.join("config.json");
    if !config.exists() {
        return Err(not_a_model(root));
    }
    let settings = Settings::read(&config)?;
    if settings.get("quantization_config").is_some() {
        return Err(settings.unsupported(
            "quantization_config",
            "a checkpoint in a quantised Hugging Face format",
            "give the unquantised model, or a GGUF file of it",
        ));
    }
    let (family, architecture) = families::of_config(&settings)?;
    let (files, found) = weights(root)?;
    let bare = is_bare(&architecture, &found);
    let in_file = |parameter: &Parameter| match (bare, parameter.name.split_once('.')) {
        (true, Some((_, name))) if parameter.role != Role::Head => name.to_owned(),
        _ => parameter.name.clone(),
    };
    let tensors = tensors::assign(root, &files, &architecture, found, family.harmless(), in_file)?;
    let tokenizer_json = root.join("tokenizer.json");
    if !tokenizer_json.is_file() {
        return Err(no_tokenizer(root, &tokenizer_json));
    }
    let tokenizer_config = root.join("tokenizer_config.json");
    let tokenizer_config = if tokenizer_config.exists() {
        Some(files::read_object(&tokenizer_config, MAX_TOKENIZER_CONFIG)?)
    } else {
        None
    };
    let chat_template = chat_template(root, tokenizer_config.as_ref())?;
    let special =
        special::read(root, &settings, tokenizer_config.as_ref(), &tokenizer_json, architecture.vocabulary)?;
    let fingerprint = fingerprint::of(&architecture, &tensors, &files)?;
    Ok(ModelFiles {
        root: root.to_owned(),
        kind: ModelKind::HuggingFace,
        architecture,
        tensors,
        files,
        tokenizer: TokenizerSource::HuggingFace { tokenizer_json, config: tokenizer_config.map(Into::into) },
        chat_template,
        special,
        fingerprint,
    })
}

/// Whether names lack their first part, such as `transformer.`: so it is where the weights were saved from the model
/// without its head.
fn is_bare(architecture: &Architecture, found: &IndexMap<String, Found>) -> bool {
    let embedding = architecture.module(Role::Embedding, 0);
    let bare = embedding.as_deref().and_then(|name| name.split_once('.')).map(|(_, name)| name);
    bare.is_some_and(|name| found.contains_key(&format!("{name}.weight")))
}

fn not_a_model(root: &Path) -> ModelError {
    let first = |wanted: &str| {
        let mut names: Vec<_> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|found| found == wanted))
            .collect();
        names.sort();
        names.into_iter().next()
    };
    let found = if let Some(gguf) = first("gguf") {
        format!("a folder without config.json; give the file {} itself", Shown::from(&gguf))
    } else if root.join("adapter_config.json").exists() {
        "a folder with an adapter, which belongs into method.init".to_owned()
    } else {
        "a folder without config.json".to_owned()
    };
    ModelError::NotAModel { path: root.into(), found }
}

fn no_tokenizer(root: &Path, file: &Path) -> ModelError {
    let remedy = if root.join("tokenizer.model").exists() {
        "is missing; tokenizer.model alone is not enough. Convert it: python3 -c \"from transformers import \
         AutoTokenizer as T; T.from_pretrained('.').save_pretrained('.')\" in the model folder"
    } else {
        "is missing; download it from where the model came"
    };
    ModelError::Tokenizer { file: file.into(), problem: remedy.to_owned() }
}

/// All tensors by name, from `model.safetensors` or the shards that the index names, as transformers chooses.
fn weights(root: &Path) -> Result<(Vec<PathBuf>, IndexMap<String, Found>), ModelError> {
    let single = root.join("model.safetensors");
    let index = root.join("model.safetensors.index.json");
    if single.exists() {
        return read_headers(vec![single]);
    }
    if !index.exists() {
        return Err(no_weights(root));
    }
    let weight_map = read_index(&index)?;
    let mut files = Vec::new();
    let mut shards = HashMap::new();
    for name in weight_map.values() {
        if !shards.contains_key(name.as_str()) {
            files.push(shard(root, &index, name)?);
            shards.insert(name.as_str(), files.len() - 1);
        }
    }
    let (files, found) = read_headers(files)?;
    let missing: Vec<String> = weight_map
        .iter()
        .filter(|(tensor, name)| {
            found.get(*tensor).map(|found| found.file) != shards.get(name.as_str()).copied()
        })
        .map(|(tensor, name)| format!("{tensor} (in {})", Shown::new(name)))
        .collect();
    if missing.is_empty() {
        return Ok((files, found));
    }
    let problems = TensorProblems { missing, ..TensorProblems::default() };
    Err(ModelError::Tensors { root: root.into(), problems })
}

fn read_headers(files: Vec<PathBuf>) -> Result<(Vec<PathBuf>, IndexMap<String, Found>), ModelError> {
    let mut found = IndexMap::new();
    for (file, path) in files.iter().enumerate() {
        let (opened, size) = files::open(path)?;
        let header = Header::read(BufReader::new(opened), size).map_err(|fault| fault.at(path))?;
        for tensor in header.tensors {
            let storage = match tensor.dtype {
                Dtype::Weight(storage) => Ok(storage),
                Dtype::Other(name, _) => Err(name),
            };
            let entry =
                Found { shape: tensor.shape, storage, file, offset: tensor.offset, bytes: tensor.bytes };
            if found.contains_key(&tensor.name) {
                let problem = format!("tensor `{}` stands in an earlier file too", Shown::new(&tensor.name));
                return Err(ModelError::Damaged { file: path.into(), problem });
            }
            found.insert(tensor.name, entry);
        }
    }
    Ok((files, found))
}

fn no_weights(root: &Path) -> ModelError {
    let mut pickles: Vec<PathBuf> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| PICKLES.iter().any(|pickle| found == *pickle)))
        .collect();
    pickles.sort();
    match pickles.first() {
        Some(file) => ModelError::Pickle { file: file.into(), folder: root.into() },
        None => ModelError::NoWeights { folder: root.into() },
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: IndexMap<String, String>,
}

fn read_index(path: &Path) -> Result<IndexMap<String, String>, ModelError> {
    let problem = |problem: String| ModelError::Settings { file: path.into(), problem };
    let index: Index = serde_json::from_slice(&files::read(path, MAX_INDEX)?)
        .map_err(|error| problem(Shown::new(&error.to_string()).to_string()))?;
    if index.weight_map.is_empty() {
        return Err(problem("`weight_map` names no tensor".to_owned()));
    }
    Ok(index.weight_map)
}

/// The path of a shard. The index is untrusted: its names must be those of safetensors files inside the folder.
fn shard(root: &Path, index: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let problem = |problem: &str| ModelError::Settings {
        file: index.into(),
        problem: format!("the shard name `{}` {problem}", Shown::new(name)),
    };
    let inside = Path::new(name);
    if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(problem("points outside of the model folder"));
    }
    let extension = inside.extension().unwrap_or_default();
    if PICKLES.iter().any(|pickle| extension == *pickle) {
        return Err(ModelError::Pickle { file: (&root.join(inside)).into(), folder: root.into() });
    }
    if extension != "safetensors" {
        return Err(problem("is not that of a safetensors file"));
    }
    let path = root.join(inside);
    let resolve =
        |path: &Path| path.canonicalize().map_err(|source| ModelError::Read { file: path.into(), source });
    let (target, root) = (resolve(&path)?, resolve(root)?);
    if target.starts_with(&root) || blobs(&root).is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(path);
    }
    Err(problem("is a link to outside of the model folder"))
}

/// In the hub's download cache a model is a folder `models--…/snapshots/<revision>` of links into `models--…/blobs`.
fn blobs(root: &Path) -> Option<PathBuf> {
    let snapshots =
        root.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
    Some(snapshots.parent()?.join("blobs"))
}

/// As transformers: the file goes before the configuration, where several templates may stand by name.
fn chat_template(
    root: &Path,
    config: Option<&serde_json::Map<String, serde_json::Value>>,
) -> Result<Option<String>, ModelError> {
    let file = root.join("chat_template.jinja");
    if file.exists() {
        return files::read_text(&file, MAX_TEMPLATE).map(Some);
    }
    let template = config.and_then(|config| config.get("chat_template"));
    Ok(match template {
        Some(serde_json::Value::String(template)) => Some(template.clone()),
        Some(serde_json::Value::Array(named)) => {
            let template = |named: &serde_json::Value| Some(named.get("template")?.as_str()?.to_owned());
            let is_default =
                |named: &&serde_json::Value| named.get("name").is_some_and(|name| name == "default");
            named.iter().find(is_default).or(named.first()).and_then(template)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests;
