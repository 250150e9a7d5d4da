//! Gemma 2: everything that transformers runs as `Gemma2ForCausalLM` (arXiv 2408.00118).

use serde_json::{Value, json};

use super::common::{Heads, activation, decoder, gated_layer, windows};
use super::rope::Frame;
use super::{Family, GgufStyle, GgufWindows};
use crate::model::architecture::{Activation, Architecture, LayerSpec, Norm, Position, Residual};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Gemma2;

static NAMES: [(Role, &str); 14] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::PostAttentionNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::MlpNorm, "model.layers.{}.pre_feedforward_layernorm"),
    (Role::Gate, "model.layers.{}.mlp.gate_proj"),
    (Role::Up, "model.layers.{}.mlp.up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::PostMlpNorm, "model.layers.{}.post_feedforward_layernorm"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Gemma2 {
    fn name(&self) -> &'static str {
        "gemma2"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[("hidden_act", "hidden_activation")]
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { windows: GgufWindows::Some, ..GgufStyle::plain("gemma2") })
    }

    fn gguf_values(
        &self,
        settings: &Settings,
        _has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Value)>, ModelError> {
        // The model with 46 layers is the 27B (`src/models/gemma2.cpp`).
        Ok(vec![("query_pre_attn_scalar", query_scalar(settings, 46)?)])
    }

    /// As in transformers' `Gemma2Config` and `modeling_gemma2.py`: soft caps, and a window in every other
    /// layer.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, Some(4), Some(256))?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(8192);
        let rope = Frame::whole(heads.size, positions).read(settings)?;
        let mut layer = gemma_layer(settings, heads, Position::Rotary(rope))?;
        layer.attention.score_cap = cap(settings, "attn_logit_softcapping", Some(50.0))?;
        let window = settings.size_or("sliding_window", 4096)?;
        let count = settings.layers("num_hidden_layers")?;
        let windows = windows(settings, count, window, |layer| layer.is_multiple_of(2))?;
        let with_window = |window| {
            let mut layer = layer.clone();
            layer.attention.window = window;
            layer
        };
        let layers = windows.into_iter().map(with_window).collect();
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, layer.norm, layers)?;
        finish(settings, &mut architecture, Some(30.0))?;
        Ok(architecture)
    }
}

/// The `query_pre_attn_scalar` that llama.cpp uses: the size of a head, except for the model with `wide`
/// layers, where it is the width divided by the number of heads.
pub(super) fn query_scalar(settings: &Settings, wide: usize) -> Result<Value, ModelError> {
    if settings.layers("num_hidden_layers")? == wide {
        return Ok(json!(settings.size("hidden_size")? / settings.size("num_attention_heads")?));
    }
    Ok(json!(settings.size("head_dim")?))
}

/// The layer of Gemma 2 and 3: norms before and after both parts, with one added to their weights.
pub(super) fn gemma_layer(
    settings: &Settings,
    heads: Heads,
    position: Position,
) -> Result<LayerSpec, ModelError> {
    if settings.flag_if_any("use_bidirectional_attention")?.unwrap_or(false) {
        let remedy = "choose a model that predicts the next token";
        let key = "use_bidirectional_attention";
        return Err(settings.unsupported(key, "attention to tokens that follow", remedy));
    }
    let norm = Norm::RmsPlusOne { epsilon: settings.number_if_any("rms_norm_eps")?.unwrap_or(1e-6) };
    let activation = activation(settings, Activation::GeluTanh)?;
    let mut layer = gated_layer(settings, heads, norm, activation, position)?;
    layer.residual = Residual::Sandwich;
    let scalar = settings.number_if_any("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(settings.wrong("query_pre_attn_scalar", "must be above 0"));
    }
    layer.attention.scale = scalar.sqrt().recip();
    let bias = settings.flag_if_any("attention_bias")?.unwrap_or(false);
    layer.attention.input_bias = bias;
    layer.attention.output_bias = bias;
    Ok(layer)
}

/// The parts of Gemma 2 and 3 outside of their layers.
pub(super) fn finish(
    settings: &Settings,
    architecture: &mut Architecture,
    logit_cap: Option<f64>,
) -> Result<(), ModelError> {
    architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(true);
    architecture.logit_cap = cap(settings, "final_logit_softcapping", logit_cap)?;
    architecture.embedding_scale = Some((architecture.hidden as f64).sqrt());
    Ok(())
}

/// A soft cap; `null` means none.
fn cap(settings: &Settings, key: &str, default: Option<f64>) -> Result<Option<f64>, ModelError> {
    let cap = if settings.has(key) { settings.number_if_any(key)? } else { default };
    match cap {
        Some(cap) if cap <= 0.0 => Err(settings.wrong(key, "must be above 0")),
        cap => Ok(cap),
    }
}
