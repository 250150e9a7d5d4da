//! `luthier model`.

mod pull;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indexmap::IndexMap;
use luthier_core::config::{Config, MethodKind};
use luthier_core::data::{Template, Tokenizer};
use luthier_core::model::{ModelFiles, ModelKind, Quantisation, Storage, TensorEntry};
use luthier_core::units;
use serde::Serialize;

use super::failure::Outcome;
use super::output;

/// Look at a base model, check it, or fetch one
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(Inspect),
    Verify(verify::Arguments),
    Pull(pull::Arguments),
}

/// Show what a model's files say about it, without reading its weights
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier model inspect models/smollm2-135m-instruct-q4_1.gguf\n  luthier model inspect ~/models/tinyllama --json | jq .parameters"
)]
struct Inspect {
    /// A folder with config.json and safetensors files, a .gguf file, or hf:org/name[@revision]
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// What `model inspect` reports.
#[derive(Debug, Serialize)]
struct Inspection {
    path: PathBuf,
    kind: ModelKind,
    family: &'static str,
    parameters: u64,
    layers: usize,
    hidden: usize,
    heads: usize,
    key_value_heads: usize,
    head_size: usize,
    context: usize,
    vocabulary: usize,
    tied_head: bool,
    /// The encoding of most weights.
    dtype: Option<&'static str>,
    /// The same, where it is a quantised one.
    quantisation: Option<&'static str>,
    storage: IndexMap<&'static str, Stored>,
    file_bytes: u64,
    tokens: usize,
    special: luthier_core::model::SpecialTokens,
    template: Option<TemplateFound>,
    /// Bytes of the weights in memory, by how they are held.
    memory: IndexMap<&'static str, u64>,
    fingerprint: String,
}

/// How much is stored in one encoding.
#[derive(Debug, Default, Serialize)]
struct Stored {
    tensors: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct TemplateFound {
    name: String,
    fingerprint: String,
}

/// Looks at a model, checks it, or fetches it.
pub fn run(arguments: &Arguments) -> Outcome {
    let arguments = match &arguments.command {
        Command::Inspect(arguments) => arguments,
        Command::Verify(arguments) => return verify::run(arguments),
        Command::Pull(arguments) => return pull::run(arguments),
    };
    let inspection = inspect(&arguments.path)?;
    if arguments.json { output::document(&inspection) } else { output::line(&describe(&inspection)) }
}

fn inspect(path: &Path) -> Outcome<Inspection> {
    let files = ModelFiles::find(path, Path::new(""))?;
    let tokenizer = Tokenizer::open(&files)?;
    let template = match &files.chat_template {
        Some(_) => {
            let found = Template::resolve(&Config::default(), Path::new("."), &files)?;
            Some(TemplateFound { name: found.name, fingerprint: found.fingerprint })
        }
        None => None,
    };
    let mut storage: IndexMap<&'static str, Stored> = IndexMap::new();
    for tensor in files.tensors.values() {
        let stored = storage.entry(tensor.storage.name()).or_default();
        stored.tensors += 1;
        stored.bytes += tensor.bytes;
    }
    let elements = |wanted: Storage| -> u64 {
        let stored = files.tensors.values().filter(|tensor| tensor.storage == wanted);
        stored.map(TensorEntry::elements).sum()
    };
    let most = Storage::ALL.into_iter().max_by_key(|&storage| elements(storage));
    let architecture = &files.architecture;
    let attention = architecture.layers.first().map(|layer| &layer.attention);
    let parameters = files.parameters();
    Ok(Inspection {
        path: files.root.clone(),
        kind: files.kind,
        family: architecture.family,
        parameters,
        layers: architecture.layers.len(),
        hidden: architecture.hidden,
        heads: attention.map_or(0, |attention| attention.heads),
        key_value_heads: attention.map_or(0, |attention| attention.key_value_heads),
        head_size: attention.map_or(0, |attention| attention.head_size),
        context: architecture.positions,
        vocabulary: architecture.vocabulary,
        tied_head: architecture.tied_head,
        dtype: most.map(Storage::name),
        quantisation: most.filter(|storage| storage.block().elements > 1).map(Storage::name),
        file_bytes: storage.values().map(|stored| stored.bytes).sum(),
        storage,
        tokens: tokenizer.vocabulary_size(),
        special: files.special.clone(),
        template,
        memory: memory(&files),
        fingerprint: files.fingerprint,
    })
}

/// Bytes of the weights, dense in each format that is computed in, and as QLoRA holds them: what is not quantised in bf16.
fn memory(files: &ModelFiles) -> IndexMap<&'static str, u64> {
    let quantisation = Quantisation::of(MethodKind::Qlora, files);
    let name = if quantisation == Quantisation::AsStored { "as_stored" } else { "nf4" };
    let dense = Quantisation::None.held(files);
    [("f32", dense.bytes(4)), ("bf16", dense.bytes(2)), (name, quantisation.held(files).bytes(2))]
        .into_iter()
        .collect()
}

fn describe(model: &Inspection) -> String {
    let stored: Vec<_> = model
        .storage
        .iter()
        .map(|(name, stored)| {
            format!(
                "{name} {} in {}",
                units::bytes(stored.bytes),
                units::counted(stored.tensors, "tensor", "tensors")
            )
        })
        .collect();
    let memory: Vec<_> = model
        .memory
        .iter()
        .map(|(name, bytes)| format!("{} {}", name.replace('_', " "), units::bytes(*bytes)))
        .collect();
    let special: Vec<_> = [("begin", model.special.bos.as_ref()), ("end", model.special.eos.first())]
        .into_iter()
        .filter_map(|(name, token)| {
            let token = token?;
            Some(format!("{name} {} ({})", token.text.as_deref().unwrap_or("–"), token.id?))
        })
        .collect();
    let template = match &model.template {
        Some(template) => format!("{} ({})", template.name, short(&template.fingerprint)),
        None => {
            "none; set data.template to a built-in one, such as \"chatml\", or to a .jinja file".to_owned()
        }
    };
    let lines = [
        ("model", model.path.display().to_string()),
        ("family", model.family.to_owned()),
        ("parameters", units::count(model.parameters)),
        (
            "layers",
            format!(
                "{} of width {}, {} heads of {} with {} for keys and values",
                model.layers, model.hidden, model.heads, model.head_size, model.key_value_heads
            ),
        ),
        ("context", format!("{} tokens", units::count(model.context as u64))),
        (
            "vocabulary",
            format!(
                "{} tokens{}",
                units::count(model.vocabulary as u64),
                if model.tied_head { ", output head tied to the embedding" } else { "" }
            ),
        ),
        ("special", special.join(", ")),
        ("template", template),
        ("storage", stored.join(", ")),
        ("weights in memory", memory.join(", ")),
        ("fingerprint", short(&model.fingerprint).to_owned()),
    ];
    let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:<18} {value}")).collect();
    lines.join("\n")
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}
