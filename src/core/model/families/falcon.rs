//! Falcon 7B, 11B, 40B, 180B and Falcon-RW: everything that transformers runs as `FalconForCausalLM`.

use serde_json::{Value, json};

use super::common::{Heads, activation, decoder, layer_norm};
use super::rope::Frame;
use super::{Family, GgufRows, GgufStyle};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Position, Qkv, Residual,
};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Falcon;

static ONE_NORM: [(Role, &str); 8] = [
    (Role::Embedding, "transformer.word_embeddings"),
    (Role::AttentionNorm, "transformer.h.{}.input_layernorm"),
    (Role::Qkv, "transformer.h.{}.self_attention.query_key_value"),
    (Role::Output, "transformer.h.{}.self_attention.dense"),
    (Role::Up, "transformer.h.{}.mlp.dense_h_to_4h"),
    (Role::Down, "transformer.h.{}.mlp.dense_4h_to_h"),
    (Role::FinalNorm, "transformer.ln_f"),
    (Role::Head, "lm_head"),
];

static TWO_NORMS: [(Role, &str); 9] = [
    (Role::Embedding, "transformer.word_embeddings"),
    (Role::AttentionNorm, "transformer.h.{}.ln_attn"),
    (Role::Qkv, "transformer.h.{}.self_attention.query_key_value"),
    (Role::Output, "transformer.h.{}.self_attention.dense"),
    (Role::MlpNorm, "transformer.h.{}.ln_mlp"),
    (Role::Up, "transformer.h.{}.mlp.dense_h_to_4h"),
    (Role::Down, "transformer.h.{}.mlp.dense_4h_to_h"),
    (Role::FinalNorm, "transformer.ln_f"),
    (Role::Head, "lm_head"),
];

static IN_TURN: [(Role, &str); 9] = [
    (Role::Embedding, "transformer.word_embeddings"),
    (Role::AttentionNorm, "transformer.h.{}.input_layernorm"),
    (Role::Qkv, "transformer.h.{}.self_attention.query_key_value"),
    (Role::Output, "transformer.h.{}.self_attention.dense"),
    (Role::MlpNorm, "transformer.h.{}.post_attention_layernorm"),
    (Role::Up, "transformer.h.{}.mlp.dense_h_to_4h"),
    (Role::Down, "transformer.h.{}.mlp.dense_4h_to_h"),
    (Role::FinalNorm, "transformer.ln_f"),
    (Role::Head, "lm_head"),
];

impl Family for Falcon {
    fn name(&self) -> &'static str {
        "falcon"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("num_key_value_heads", "num_kv_heads"),
            ("intermediate_size", "ffn_hidden_size"),
            ("hidden_act", "activation"),
            ("layer_norm_eps", "layer_norm_epsilon"),
        ]
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { rows: GgufRows::ByPart, ..GgufStyle::plain("falcon") })
    }

    /// If both parts have a norm, the one before the feed-forward part has the other's usual name.
    fn gguf_names(&self, architecture: &Architecture) -> Names {
        match architecture.layers.first().map(|layer| layer.residual) {
            Some(Residual::Parallel { shared_norm: false }) => {
                Names(&[(Role::AttentionNorm, "blk.{}.attn_norm_2"), (Role::MlpNorm, "blk.{}.attn_norm")])
            }
            _ => Names(&[]),
        }
    }

    /// llama.cpp has the variants with rotary embedding and parallel parts (`src/models/falcon.cpp`).
    fn gguf_values(
        &self,
        settings: &Settings,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Value)>, ModelError> {
        let two_norms = has_tensor("blk.0.attn_norm_2.weight");
        let grouped = two_norms || settings.size("num_key_value_heads")? > 1;
        Ok(vec![
            ("new_decoder_architecture", json!(grouped)),
            ("num_ln_in_parallel_attn", json!(if two_norms { 2 } else { 1 })),
        ])
    }

    /// As in transformers' `FalconConfig` and `modeling_falcon.py`.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let flag = |key, default| Ok::<_, ModelError>(settings.flag_if_any(key)?.unwrap_or(default));
        let heads = Heads::equal(settings)?;
        let grouped = flag("new_decoder_architecture", false)?;
        let key_value_heads = match (grouped, flag("multi_query", true)?) {
            (false, true) => 1,
            (false, false) => heads.count,
            (true, _) => settings.size_if_any("num_key_value_heads")?.unwrap_or(heads.count),
        };
        let (residual, names) = arrangement(settings, grouped)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(2048);
        let position = if flag("alibi", false)? {
            Position::Linear
        } else {
            Position::Rotary(Frame::whole(heads.size, positions).read(settings)?)
        };
        let bias = flag("bias", false)?;
        let norm = layer_norm(settings)?;
        let width = settings.size_if_any("intermediate_size")?;
        let layer = LayerSpec {
            residual,
            norm,
            attention: AttentionSpec {
                heads: heads.count,
                key_value_heads,
                head_size: heads.size,
                qkv: Qkv::FusedByGroup,
                input_bias: bias,
                output_bias: bias,
                scale: heads.scale(),
                position,
                head_norm: None,
                window: None,
                score_cap: None,
            },
            mlp: Mlp::Plain {
                activation: activation(settings, Activation::Gelu)?,
                width: width.unwrap_or(4 * settings.size("hidden_size")?),
                bias,
            },
        };
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), names, settings, positions, norm, layers)?;
        architecture.tied_head = flag("tie_word_embeddings", true)?;
        Ok(architecture)
    }
}

/// How attention and feed-forward part are joined, and the names of their norms. `num_ln_in_parallel_attn`
/// has a meaning only in the new decoder architecture, where both parts are always parallel.
fn arrangement(settings: &Settings, grouped: bool) -> Result<(Residual, Names), ModelError> {
    let parallel = settings.flag_if_any("parallel_attn")?.unwrap_or(true);
    let norms = settings.size_if_any("num_ln_in_parallel_attn")?;
    match (grouped, parallel, norms) {
        (true, true, None | Some(2)) => Ok((Residual::Parallel { shared_norm: false }, Names(&TWO_NORMS))),
        (_, true, Some(1)) | (false, true, None) => {
            Ok((Residual::Parallel { shared_norm: true }, Names(&ONE_NORM)))
        }
        (false, false, _) => Ok((Residual::PreNorm, Names(&IN_TURN))),
        (true, false, _) => {
            Err(settings.wrong("parallel_attn", "must be true where `new_decoder_architecture` is"))
        }
        (true, true, Some(_)) => Err(settings.wrong("num_ln_in_parallel_attn", "must be 1 or 2")),
        (false, true, Some(_)) => Err(settings
            .wrong("num_ln_in_parallel_attn", "must be 1 where `new_decoder_architecture` is not true")),
    }
}
