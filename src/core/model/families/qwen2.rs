//! Qwen 1.5, 2 and 2.5, dense: everything that transformers runs as `Qwen2ForCausalLM`.

use super::common::{Heads, activation, decoder, gated_layer, rms, windows};
use super::llama::NAMES;
use super::rope::Frame;
use super::{Family, GgufStyle};
use crate::model::architecture::{Activation, Architecture, LayerSpec, Position};
use crate::model::error::ModelError;
use crate::model::roles::Names;
use crate::model::settings::Settings;

pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle::plain("qwen2"))
    }

    /// As in transformers' `Qwen2Config` and `modeling_qwen2.py`: LLaMA with biases on query, key and value.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, Some(32), None)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(32_768);
        let rope = Frame::whole(heads.size, positions).read(settings)?;
        let norm = rms(settings, 1e-6)?;
        let activation = activation(settings, Activation::Silu)?;
        let mut layer = gated_layer(settings, heads, norm, activation, Position::Rotary(rope))?;
        layer.attention.input_bias = true;
        let layers = windowed(settings, &layer)?;
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}

/// The layers of Qwen 2 and 3: with `use_sliding_window`, layers from `max_window_layers` on have a window.
pub(super) fn windowed(settings: &Settings, layer: &LayerSpec) -> Result<Vec<LayerSpec>, ModelError> {
    let layers = settings.layers("num_hidden_layers")?;
    let window = match settings.flag_if_any("use_sliding_window")? {
        Some(true) => settings.size_or("sliding_window", 4096)?,
        Some(false) | None => None,
    };
    // None before the first: `max_window_layers` may be 0.
    let full = settings.number_if_any("max_window_layers")?.unwrap_or(28.0);
    let is_windowed = |layer: usize| window.is_some() && layer as f64 >= full;
    let windows = windows(settings, layers, window, is_windowed)?;
    let layer = |window| {
        let mut layer = layer.clone();
        layer.attention.window = window;
        layer
    };
    Ok(windows.into_iter().map(layer).collect())
}
