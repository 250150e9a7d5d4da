//! LLaMA 1 to 3.3, SmolLM, SmolLM2, TinyLlama and everything else that transformers runs as
//! `LlamaForCausalLM`.

use super::common::{Heads, activation, decoder, gated_layer, rms};
use super::rope::Frame;
use super::{Family, GgufRows, GgufStyle};
use crate::model::architecture::{Activation, Architecture, Mlp, Position};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Llama;

pub(super) static NAMES: [(Role, &str); 12] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::MlpNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::Gate, "model.layers.{}.mlp.gate_proj"),
    (Role::Up, "model.layers.{}.mlp.up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { rows: GgufRows::RotaryPairs, ..GgufStyle::plain("llama") })
    }

    /// As in transformers' `LlamaConfig` and `modeling_llama.py`. `pretraining_tp` only splits products into
    /// parts.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, None, None)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(2048);
        let rope = Frame::whole(heads.size, positions).read(settings)?;
        let norm = rms(settings, 1e-6)?;
        let activation = activation(settings, Activation::Silu)?;
        let mut layer = gated_layer(settings, heads, norm, activation, Position::Rotary(rope))?;
        let bias = settings.flag_if_any("attention_bias")?.unwrap_or(false);
        layer.attention.input_bias = bias;
        layer.attention.output_bias = bias;
        let bias = settings.flag_if_any("mlp_bias")?.unwrap_or(false);
        layer.mlp = Mlp::Gated { activation, width: layer.mlp.width(), bias };
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}
