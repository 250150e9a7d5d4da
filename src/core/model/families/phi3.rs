//! Phi 3, 3.5 and 4, dense and without images: everything that transformers runs as `Phi3ForCausalLM`.

use super::common::{Heads, activation, decoder, gated_layer, rms};
use super::rope::Frame;
use super::{Family, GgufStyle, GgufWindows};
use crate::model::architecture::{Activation, Architecture, Mlp, Position, Qkv};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Phi3;

static NAMES: [(Role, &str); 9] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Qkv, "model.layers.{}.self_attn.qkv_proj"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::MlpNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::GateUp, "model.layers.{}.mlp.gate_up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { windows: GgufWindows::All, ..GgufStyle::plain("phi3") })
    }

    /// As in transformers' `Phi3Config` and `modeling_phi3.py`: LLaMA with fused projections.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, None, None)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(4096);
        let frame = Frame { head_size: heads.size, positions, share: Some(1.0), original: Some(4096) };
        let position = Position::Rotary(frame.read(settings)?);
        let norm = rms(settings, 1e-5)?;
        let activation = activation(settings, Activation::Silu)?;
        let mut layer = gated_layer(settings, heads, norm, activation, position)?;
        layer.attention.qkv = Qkv::Fused;
        layer.attention.window = settings.size_if_any("sliding_window")?;
        layer.mlp = Mlp::GatedFused { activation, width: layer.mlp.width(), bias: false };
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}
