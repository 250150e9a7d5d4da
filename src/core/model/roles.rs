//! Roles of modules, independent of the names in a format. Loading, adapter targets and export use them.

use serde::Serialize;

/// The role of a module in a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Token embedding, `[vocabulary, hidden]`.
    Embedding,
    /// Learned position embedding, `[positions, hidden]`.
    PositionEmbedding,
    /// Norm before attention, `[hidden]`.
    AttentionNorm,
    /// Query projection, `[heads × head size, hidden]`.
    Query,
    /// Key projection, `[key-value heads × head size, hidden]`.
    Key,
    /// Value projection, `[key-value heads × head size, hidden]`.
    Value,
    /// Query, key and value in one, `[(heads + 2 × key-value heads) × head size, hidden]`.
    Qkv,
    /// Norm of each query head, `[head size]`.
    QueryNorm,
    /// Norm of each key head, `[head size]`.
    KeyNorm,
    /// Attention output projection, `[hidden, heads × head size]`.
    Output,
    /// Norm of the output of attention, `[hidden]`.
    PostAttentionNorm,
    /// Norm before the feed-forward part, `[hidden]`.
    MlpNorm,
    /// Feed-forward gate, `[width, hidden]`.
    Gate,
    /// Feed-forward up projection, `[width, hidden]`.
    Up,
    /// Feed-forward gate and up projection in one, `[2 × width, hidden]`.
    GateUp,
    /// Feed-forward down projection, `[hidden, width]`.
    Down,
    /// Norm of the output of the feed-forward part, `[hidden]`.
    PostMlpNorm,
    /// Norm after the last layer, `[hidden]`.
    FinalNorm,
    /// Output head, `[vocabulary, hidden]`.
    Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `….weight`
    Weight,
    /// `….bias`
    Bias,
}

impl Part {
    /// The last component of a tensor's name, the same in Hugging Face and GGUF.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

impl Role {
    pub const ALL: [Self; 19] = [
        Self::Embedding,
        Self::PositionEmbedding,
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Qkv,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::Output,
        Self::PostAttentionNorm,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
        Self::PostMlpNorm,
        Self::FinalNorm,
        Self::Head,
    ];

    /// Whether each layer has one.
    pub const fn is_per_layer(self) -> bool {
        !matches!(self, Self::Embedding | Self::PositionEmbedding | Self::FinalNorm | Self::Head)
    }

    /// Whether it is a linear layer, so that an adapter can be added.
    pub const fn is_linear(self) -> bool {
        matches!(
            self,
            Self::Query
                | Self::Key
                | Self::Value
                | Self::Qkv
                | Self::Output
                | Self::Gate
                | Self::Up
                | Self::GateUp
                | Self::Down
                | Self::Head
        )
    }

    /// The module's name in GGUF (`gguf-py/gguf/constants.py`, `TENSOR_NAMES`), with `{}` for the layer.
    pub const fn gguf_template(self) -> &'static str {
        match self {
            Self::Embedding => "token_embd",
            Self::PositionEmbedding => "position_embd",
            Self::AttentionNorm => "blk.{}.attn_norm",
            Self::Query => "blk.{}.attn_q",
            Self::Key => "blk.{}.attn_k",
            Self::Value => "blk.{}.attn_v",
            Self::Qkv => "blk.{}.attn_qkv",
            Self::QueryNorm => "blk.{}.attn_q_norm",
            Self::KeyNorm => "blk.{}.attn_k_norm",
            Self::Output => "blk.{}.attn_output",
            Self::PostAttentionNorm => "blk.{}.post_attention_norm",
            Self::MlpNorm => "blk.{}.ffn_norm",
            Self::Gate => "blk.{}.ffn_gate",
            Self::Up | Self::GateUp => "blk.{}.ffn_up",
            Self::Down => "blk.{}.ffn_down",
            Self::PostMlpNorm => "blk.{}.post_ffw_norm",
            Self::FinalNorm => "output_norm",
            Self::Head => "output",
        }
    }

    /// The module's name in GGUF. `layer` is ignored if the role is not per layer.
    pub fn gguf_module(self, layer: usize) -> String {
        fill(self.gguf_template(), layer)
    }
}

/// A family's Hugging Face module names by role, with `{}` for the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names(pub &'static [(Role, &'static str)]);

impl Names {
    /// The module's name without `.weight`; `None` if the family has no such module. `layer` is ignored if
    /// the role is not per layer.
    pub fn module(&self, role: Role, layer: usize) -> Option<String> {
        self.0.iter().find(|(candidate, _)| *candidate == role).map(|(_, template)| fill(template, layer))
    }
}

fn fill(template: &str, layer: usize) -> String {
    template.replacen("{}", &layer.to_string(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_templates_and_only_those_name_a_layer() {
        for role in Role::ALL {
            assert_eq!(role.gguf_template().contains("{}"), role.is_per_layer(), "{role:?}");
        }
        assert_eq!(Role::Query.gguf_module(12), "blk.12.attn_q");
        assert_eq!(Role::Head.gguf_module(12), "output");
    }
}
