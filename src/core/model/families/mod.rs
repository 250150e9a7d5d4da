//! The model families that Luthier knows. A family is data: it describes checkpoints and has no code that
//! runs them.
//!
//! Dropout in a configuration (`attention_dropout`, `resid_pdrop` …) was meant for pre-training and is not
//! applied; a run here uses `method.dropout`. Any other option that changes the computation is either
//! supported or refused by name.

mod common;
mod falcon;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use serde_json::Value;

use super::architecture::Architecture;
use super::error::ModelError;
use super::roles::Names;
use super::settings::Settings;
use crate::text::Shown;
pub(super) use rope::ROTATED;

/// Describes the checkpoints of a family.
pub trait Family: Sync {
    /// The name in screens and reports.
    fn name(&self) -> &'static str;

    /// The `model_type` in `config.json`.
    fn model_type(&self) -> &'static str {
        self.name()
    }

    /// Keys of its `config.json` with unusual names: pairs of the usual key and its own.
    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Modules with another name in files, and in adapters made with transformers 4: pairs of the name in
    /// memory and the name in the file.
    fn older_names(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Endings of tensor names in old checkpoints that no code reads.
    fn harmless(&self) -> &'static [&'static str] {
        &[".rotary_emb.inv_freq"]
    }

    /// How llama.cpp stores the family, if it has a name there.
    fn gguf(&self) -> Option<GgufStyle>;

    /// Module names in GGUF that differ from [`super::roles::Role::gguf_template`].
    fn gguf_names(&self, _architecture: &Architecture) -> Names {
        Names(&[])
    }

    /// Settings that llama.cpp knows without a key, or from the presence of a tensor, under the usual keys.
    /// `settings` has the values in the file.
    fn gguf_values(
        &self,
        _settings: &Settings,
        _has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Value)>, ModelError> {
        Ok(Vec::new())
    }

    /// The architecture for settings under the usual keys. Defaults are those of transformers 5.23, except
    /// that sizes are required.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError>;
}

/// How llama.cpp stores a family (`conversion/` and `src/models/` of llama.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufStyle {
    /// `general.architecture`.
    pub name: &'static str,
    /// The order of rows in query, key and value projections.
    pub rows: GgufRows,
    /// Which layers have a window.
    pub windows: GgufWindows,
    /// Whether layers with a window have their own rotary embedding, which is never scaled.
    pub local_rope: bool,
}

/// The order of rows in the query, key and value projections of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufRows {
    /// As in the architecture.
    Same,
    /// See [`super::Arrangement::RotaryPairs`].
    RotaryPairs,
    /// See [`super::Arrangement::ByPart`].
    ByPart,
}

/// Which layers of a family get the window of `attention.sliding_window` in llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWindows {
    None,
    All,
    /// Those in `attention.sliding_window_pattern`; without it, those that the family specifies.
    Some,
}

impl GgufStyle {
    /// Rows as in the architecture, no windows.
    const fn plain(name: &'static str) -> Self {
        Self { name, rows: GgufRows::Same, windows: GgufWindows::None, local_rope: false }
    }
}

static FAMILIES: [&dyn Family; 11] = [
    &llama::Llama,
    &mistral::Mistral,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &phi::Phi,
    &phi3::Phi3,
    &falcon::Falcon,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &gpt_neox::GptNeox,
    &gpt2::Gpt2,
];

/// The family of a `config.json`, and its architecture.
pub fn of_config(settings: &Settings) -> Result<(&'static dyn Family, Architecture), ModelError> {
    let found =
        settings.text_if_any("model_type")?.ok_or_else(|| settings.wrong("model_type", "is missing"))?;
    let Some(&family) = FAMILIES.iter().find(|family| family.model_type() == found) else {
        let supported = FAMILIES.iter().map(|family| family.model_type()).collect();
        let (file, found) = (settings.file().into(), Shown::new(found));
        return Err(ModelError::UnknownArchitecture { file, found, supported });
    };
    if settings.section_if_any("per_layer_config")?.is_some_and(|layers| !layers.is_empty()) {
        let remedy = "choose another model";
        return Err(settings.unsupported("per_layer_config", "settings of single layers", remedy));
    }
    Ok((family, build(family, &settings.renamed(family.keys()))?))
}

/// [`Family::older_names`] of the family with this name.
pub fn older_names(family: &str) -> &'static [(&'static str, &'static str)] {
    FAMILIES.iter().find(|known| known.name() == family).map_or(&[], |known| known.older_names())
}

/// Renames the module `from` to `to` in the name of a tensor or module; `None` if the name is of another
/// module.
pub fn under_name(name: &str, from: &str, to: &str) -> Option<String> {
    let rest = name.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
}

/// The family of a GGUF file by its `general.architecture`; otherwise the known names.
pub fn of_gguf(name: &str) -> Result<(&'static dyn Family, GgufStyle), Vec<&'static str>> {
    let styles = || FAMILIES.iter().filter_map(|&family| Some((family, family.gguf()?)));
    let found = styles().find(|(_, style)| style.name == name);
    found.ok_or_else(|| styles().map(|(_, style)| style.name).collect())
}

/// The architecture for settings under the usual keys, checked for contradictions.
pub fn build(family: &dyn Family, settings: &Settings) -> Result<Architecture, ModelError> {
    let architecture = family.architecture(settings)?;
    match architecture.contradiction() {
        Some((key, problem)) => Err(settings.wrong(key, problem)),
        None => Ok(architecture),
    }
}

#[cfg(test)]
mod tests;
