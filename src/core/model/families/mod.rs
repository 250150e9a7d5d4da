//! The model families Luthier knows. A family is data: it says what a checkpoint is, never how to run it.

mod llama;

use super::architecture::Architecture;
use super::error::{ModelError, Shown};
use super::roles::Role;
use super::settings::Settings;

/// What a family's checkpoints are.
pub trait Family: Sync {
    /// Its name in screens and reports.
    fn name(&self) -> &'static str;
    /// The values of `model_type` in `config.json` that mean it.
    fn model_types(&self) -> &'static [&'static str];
    /// Hugging Face module names by role, `{}` standing for the layer.
    fn names(&self) -> &'static [(Role, &'static str)];
    /// Ends of tensor names that old checkpoints carry and nothing reads.
    fn harmless(&self) -> &'static [&'static str];
    /// How llama.cpp stores it.
    fn gguf(&self) -> GgufStyle;
    /// Its architecture as configured.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError>;
}

/// How llama.cpp stores a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufStyle {
    /// `general.architecture`.
    pub name: &'static str,
    /// Whether rotary pairs of query and key rows lie side by side (see [`super::Arrangement::RotaryPairs`]).
    pub permuted: bool,
}

static FAMILIES: [&dyn Family; 1] = [&llama::Llama];

/// The family of a `config.json`.
pub fn of_config(settings: &Settings) -> Result<&'static dyn Family, ModelError> {
    let found =
        settings.text_if_any("model_type")?.ok_or_else(|| settings.wrong("model_type", "is missing"))?;
    FAMILIES.iter().find(|family| family.model_types().contains(&found)).copied().ok_or_else(|| {
        let supported = FAMILIES.iter().flat_map(|family| family.model_types()).copied().collect();
        ModelError::UnknownArchitecture { file: settings.file().into(), found: Shown::new(found), supported }
    })
}

/// The family of a GGUF file, by its `general.architecture`; else the names that would be known.
pub fn of_gguf(name: &str) -> Result<&'static dyn Family, Vec<&'static str>> {
    let found = FAMILIES.iter().find(|family| family.gguf().name == name).copied();
    found.ok_or_else(|| FAMILIES.iter().map(|family| family.gguf().name).collect())
}
