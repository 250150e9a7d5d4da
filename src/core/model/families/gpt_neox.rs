//! GPT-NeoX-20B and Pythia: everything that transformers runs as `GPTNeoXForCausalLM`.

use super::common::{Heads, activation, decoder, layer_norm};
use super::rope::Frame;
use super::{Family, GgufRows, GgufStyle};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Position, Qkv, Residual,
};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct GptNeox;

static NAMES: [(Role, &str); 9] = [
    (Role::Embedding, "gpt_neox.embed_in"),
    (Role::AttentionNorm, "gpt_neox.layers.{}.input_layernorm"),
    (Role::Qkv, "gpt_neox.layers.{}.attention.query_key_value"),
    (Role::Output, "gpt_neox.layers.{}.attention.dense"),
    (Role::MlpNorm, "gpt_neox.layers.{}.post_attention_layernorm"),
    (Role::Up, "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    (Role::Down, "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    (Role::FinalNorm, "gpt_neox.final_layer_norm"),
    (Role::Head, "lm_head"),
];

impl Family for GptNeox {
    fn name(&self) -> &'static str {
        "gpt_neox"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")]
    }

    fn older_names(&self) -> &'static [(&'static str, &'static str)] {
        &[("lm_head", "embed_out")]
    }

    fn harmless(&self) -> &'static [&'static str] {
        &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"]
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { rows: GgufRows::ByPart, ..GgufStyle::plain("gptneox") })
    }

    /// As in transformers' `GPTNeoXConfig` and `modeling_gpt_neox.py`.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::equal(settings)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(2048);
        let rope = Frame { share: Some(0.25), ..Frame::whole(heads.size, positions) }.read(settings)?;
        let norm = layer_norm(settings)?;
        let bias = settings.flag_if_any("attention_bias")?.unwrap_or(true);
        let layer = LayerSpec {
            residual: match settings.flag_if_any("use_parallel_residual")? {
                Some(true) | None => Residual::Parallel { shared_norm: false },
                Some(false) => Residual::PreNorm,
            },
            norm,
            attention: AttentionSpec {
                heads: heads.count,
                key_value_heads: heads.key_value,
                head_size: heads.size,
                qkv: Qkv::FusedByGroup,
                input_bias: bias,
                output_bias: bias,
                scale: heads.scale(),
                position: Position::Rotary(rope),
                head_norm: None,
                window: None,
                score_cap: None,
            },
            mlp: Mlp::Plain {
                activation: activation(settings, Activation::Gelu)?,
                width: settings.size("intermediate_size")?,
                bias: true,
            },
        };
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}
