//! A base model in a Hugging Face folder.

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indexmap::{IndexMap, IndexSet};
use serde::Deserialize;

use super::architecture::{Architecture, Parameter};
use super::error::{ModelError, TensorProblems};
use super::families;
use super::roles::Role;
use super::safetensors::{Dtype, Header};
use super::settings::Settings;
use super::special;
use super::tensors::{self, Found};
use super::{ModelFiles, ModelKind, TokenizerSource, files, fingerprint};
use crate::files::{Folder, FolderError};
use crate::json;
use crate::text::Shown;

/// Largest shard index that is read; those of the largest models have some 9 MB.
const MAX_INDEX: u64 = 32 << 20;

/// Most tensors in all shards together; the largest models have some 92,000.
const MAX_TENSORS: usize = 1 << 18;

/// Most shards; the largest models have some 200.
const MAX_SHARDS: usize = 1024;

/// Limit on the headers of all shards together, in bytes.
const MAX_HEADERS: u64 = 128 << 20;

/// Largest `tokenizer_config.json` that is read; one with 30,000 added tokens has some 6 MB.
const MAX_TOKENIZER_CONFIG: u64 = 16 << 20;

/// The template for conversations with tools, in newer folders.
pub const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
/// Largest `chat_template.jinja` that is read.
const MAX_TEMPLATE: u64 = 4 << 20;

/// Extensions of files that are, or contain, pickles.
pub(super) const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

pub(super) fn open(root: &Path) -> Result<ModelFiles, ModelError> {
    let folder = files::folder(root)?;
    let Some(config) = files::find(&folder, "config.json")? else { return Err(not_a_model(root)) };
    let settings = Settings::read(&config)?;
    if settings.get("quantization_config").is_some() {
        return Err(settings.unsupported(
            "quantization_config",
            "a checkpoint in a quantised Hugging Face format",
            "give the unquantised model, or a GGUF file of it",
        ));
    }
    let (family, mut architecture) = families::of_config(&settings)?;
    let (files, found) = weights(&folder)?;
    let bare = is_bare(&architecture, &found);
    let stored_older: Vec<_> = family
        .older_names()
        .iter()
        .filter(|(_, older)| found.keys().any(|name| families::under_name(name, older, "").is_some()))
        .collect();
    let in_file = |parameter: &Parameter| match (bare, parameter.name.split_once('.')) {
        (true, Some((_, name))) if parameter.role != Role::Head => name.to_owned(),
        _ => {
            let name = &parameter.name;
            let older = stored_older.iter().find_map(|(here, older)| families::under_name(name, here, older));
            older.unwrap_or_else(|| name.clone())
        }
    };
    if has_own_head(&architecture, &files, &found, &in_file)? {
        architecture.tied_head = false;
    }
    let tensors = tensors::assign(root, &files, &architecture, found, family.harmless(), in_file)?;
    let Some(tokenizer_json) = files::find(&folder, "tokenizer.json")? else {
        return Err(no_tokenizer(root, &root.join("tokenizer.json")));
    };
    let tokenizer_config = files::find(&folder, "tokenizer_config.json")?;
    let tokenizer_config =
        tokenizer_config.map(|path| files::read_object(&path, MAX_TOKENIZER_CONFIG)).transpose()?;
    let (chat_template, tool_template) = chat_templates(&folder, tokenizer_config.as_ref())?;
    let special = special::read(
        &folder,
        &settings,
        tokenizer_config.as_ref(),
        &tokenizer_json,
        architecture.vocabulary,
    )?;
    let fingerprint = fingerprint::of(&architecture, &tensors, &files)?;
    Ok(ModelFiles {
        root: root.to_owned(),
        kind: ModelKind::HuggingFace,
        architecture,
        tensors,
        files,
        tokenizer: TokenizerSource::HuggingFace { tokenizer_json, config: tokenizer_config.map(Into::into) },
        chat_template,
        tool_template,
        special,
        fingerprint,
    })
}

/// Whether tensor names lack their first part, such as `transformer.`. This happens if the weights were saved
/// from the model without its head.
fn is_bare(architecture: &Architecture, found: &IndexMap<String, Found>) -> bool {
    let embedding = architecture.module(Role::Embedding, 0);
    let bare = embedding.as_deref().and_then(|name| name.split_once('.')).map(|(_, name)| name);
    bare.is_some_and(|name| found.contains_key(&format!("{name}.weight")))
}

/// Number of places at which two tensors are compared, and bytes at each.
const PLACES: u64 = 64;
const AT_EACH: u64 = 256;

/// Whether a head that the settings tie to the embedding is stored with different values, for example because
/// only the head was trained. transformers 5 does not tie it then (`tie_weights` in `modeling_utils.py`).
/// Compares evenly spaced samples.
fn has_own_head(
    architecture: &Architecture,
    paths: &[PathBuf],
    found: &IndexMap<String, Found>,
    in_file: &impl Fn(&Parameter) -> String,
) -> Result<bool, ModelError> {
    let embedding = architecture.parameters().into_iter().find(|parameter| parameter.role == Role::Embedding);
    let embedding = embedding.and_then(|parameter| found.get(&in_file(&parameter)));
    let head = architecture.module(Role::Head, 0).and_then(|head| found.get(&format!("{head}.weight")));
    let (Some(embedding), Some(head), true) = (embedding, head, architecture.tied_head) else {
        return Ok(false);
    };
    if (&embedding.shape, &embedding.storage) != (&head.shape, &head.storage) {
        return Ok(true);
    }
    let place_in = |tensor: &Found, from: u64, bytes: &mut [u8]| {
        let Some(path) = paths.get(tensor.file) else { return Ok(()) };
        let (file, _) = files::open(path)?;
        file.read_exact_at(bytes, tensor.offset + from)
            .map_err(|source| ModelError::Read { file: path.into(), source })
    };
    let length = embedding.bytes.min(AT_EACH);
    for place in 0..PLACES {
        let from = (embedding.bytes - length) / PLACES * place;
        let mut samples = [vec![0; length as usize], vec![0; length as usize]];
        for (tensor, sample) in [embedding, head].into_iter().zip(&mut samples) {
            place_in(tensor, from, sample)?;
        }
        if samples[0] != samples[1] {
            return Ok(true);
        }
    }
    Ok(false)
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
        "a folder with an adapter; name it in method.init instead".to_owned()
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
        "is missing; download it from the model's source"
    };
    ModelError::Tokenizer { file: file.into(), problem: remedy.to_owned() }
}

/// All tensors by name, from `model.safetensors` or from the shards in the index; the choice is that of
/// transformers.
fn weights(folder: &Folder) -> Result<(Vec<PathBuf>, IndexMap<String, Found>), ModelError> {
    if let Some(single) = files::find(folder, "model.safetensors")? {
        return read_headers(vec![single]);
    }
    let Some(index) = files::find(folder, "model.safetensors.index.json")? else {
        return Err(no_weights(folder.path()));
    };
    let weight_map = read_index(&index)?;
    let mut files = Vec::new();
    let mut shards = HashMap::new();
    for name in weight_map.values() {
        if !shards.contains_key(name.as_str()) {
            files.push(shard(folder, &index, name)?);
            shards.insert(name.as_str(), files.len() - 1);
        }
    }
    if files.len() > MAX_SHARDS {
        let problem = format!("`weight_map` names {} files; at most {MAX_SHARDS} are read", files.len());
        return Err(ModelError::Settings { file: (&index).into(), problem });
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
    Err(ModelError::Tensors { root: folder.path().into(), problems })
}

fn read_headers(files: Vec<PathBuf>) -> Result<(Vec<PathBuf>, IndexMap<String, Found>), ModelError> {
    let mut found = IndexMap::new();
    let mut bytes = 0;
    for (file, path) in files.iter().enumerate() {
        let (opened, size) = files::open(path)?;
        let header = Header::read(BufReader::new(opened), size).map_err(|fault| fault.at(path))?;
        bytes += header.bytes;
        if bytes > MAX_HEADERS || found.len() + header.tensors.len() > MAX_TENSORS {
            let problem = format!(
                "its header and those of the files before it name more than {MAX_TENSORS} tensors or take more than \
                 {MAX_HEADERS} bytes"
            );
            return Err(ModelError::Damaged { file: path.into(), problem });
        }
        for tensor in header.tensors {
            let storage = match tensor.dtype {
                Dtype::Weight(storage) => Ok(storage),
                Dtype::Other(name, _) => Err(name),
            };
            let entry =
                Found { shape: tensor.shape, storage, file, offset: tensor.offset, bytes: tensor.bytes };
            if found.contains_key(&tensor.name) {
                let problem = format!("tensor `{}` is in an earlier file too", Shown::new(&tensor.name));
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
        .filter(|path| is_pickle(path))
        .collect();
    pickles.sort();
    match pickles.first() {
        Some(file) => ModelError::Pickle { file: file.into(), folder: root.into() },
        None => ModelError::NoWeights { folder: root.into() },
    }
}

/// Whether a file is, or contains, a pickle, judged by its name.
pub fn is_pickle(path: &Path) -> bool {
    path.extension().is_some_and(|found| PICKLES.iter().any(|pickle| found == *pickle))
}

/// The file names in a shard index (`model.safetensors.index.json`), each once. They are not checked.
pub fn shard_names(index: &Path) -> Result<Vec<String>, ModelError> {
    let names: IndexSet<String> = read_index(index)?.into_values().collect();
    Ok(names.into_iter().collect())
}

#[derive(Deserialize)]
struct Index {
    weight_map: IndexMap<String, String>,
}

fn read_index(path: &Path) -> Result<IndexMap<String, String>, ModelError> {
    let problem = |problem: String| ModelError::Settings { file: path.into(), problem };
    let index: Index = json::from_slice(&files::read(path, MAX_INDEX)?, MAX_TENSORS)
        .map_err(|error| problem(Shown::new(&error.to_string()).to_string()))?;
    if index.weight_map.is_empty() {
        return Err(problem("`weight_map` names no tensor".to_owned()));
    }
    Ok(index.weight_map)
}

/// The path of a shard. The index is untrusted: its names must be those of safetensors files inside the
/// folder.
fn shard(folder: &Folder, index: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let problem = |problem: &str| ModelError::Settings {
        file: index.into(),
        problem: format!("the shard name `{}` {problem}", Shown::new(name)),
    };
    let extension = Path::new(name).extension().unwrap_or_default();
    match folder.find(name) {
        Err(FolderError::Name) => Err(problem("points outside of the model folder")),
        Err(error) => Err(files::misplaced(&folder.path().join(name), error)),
        Ok(_) if PICKLES.iter().any(|pickle| extension == *pickle) => {
            Err(ModelError::Pickle { file: (&folder.path().join(name)).into(), folder: folder.path().into() })
        }
        Ok(_) if extension != "safetensors" => Err(problem("is not the name of a safetensors file")),
        Ok(None) => Err(problem("is the name of a missing file; was the model downloaded completely?")),
        Ok(Some(path)) => Ok(path),
    }
}

/// The template, and the one for conversations with tools if there is one of its own. As in transformers: files
/// take precedence over the configuration, which may have several templates by name.
fn chat_templates(
    folder: &Folder,
    config: Option<&serde_json::Map<String, serde_json::Value>>,
) -> Result<(Option<String>, Option<String>), ModelError> {
    let from_file = |name: &str| -> Result<Option<String>, ModelError> {
        files::find(folder, name)?.map(|file| files::read_text(&file, MAX_TEMPLATE)).transpose()
    };
    let configured = config.and_then(|config| config.get("chat_template"));
    let named = |wanted: &str| {
        let list = configured.and_then(serde_json::Value::as_array)?;
        let found = list.iter().find(|named| named.get("name").is_some_and(|name| name == wanted))?;
        Some(found.get("template")?.as_str()?.to_owned())
    };
    let first = || {
        let first = configured.and_then(serde_json::Value::as_array)?.first()?;
        Some(first.get("template")?.as_str()?.to_owned())
    };
    let alone = configured.and_then(serde_json::Value::as_str).map(ToOwned::to_owned);
    let main = from_file("chat_template.jinja")?;
    let for_tools = from_file(TOOL_TEMPLATE)?;
    if main.is_some() {
        return Ok((main, for_tools));
    }
    let main = alone.or_else(|| named("default")).or_else(first);
    Ok((main, for_tools.or_else(|| named("tool_use"))))
}

#[cfg(test)]
mod tests;
