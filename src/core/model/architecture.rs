//! The structure of a decoder, as plain values. Each way in which families differ is a closed enum, so that
//! code that runs or measures a model does not compile until it handles a new variant.

use serde::Serialize;

use super::LinearModule;
use super::roles::{Names, Part, Role};

/// A decoder-only language model. Built by a [`super::families::Family`], which rejects values for which
/// [`Architecture::contradiction`] finds a problem.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// The family's name, e.g. `llama`.
    pub family: &'static str,
    /// Hugging Face module names by role.
    #[serde(skip)]
    pub names: Names,
    /// Rows of the embedding and of the head.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Longest context that the model was trained for, in tokens.
    pub positions: usize,
    pub layers: Vec<LayerSpec>,
    /// The norm between the last layer and the head.
    pub final_norm: Norm,
    /// Whether the head is the embedding, so that no head is stored.
    pub tied_head: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub head_bias: bool,
    /// Logits `z` become `cap · tanh(z / cap)` (Gemma 2, arXiv 2408.00118, section 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_cap: Option<f64>,
    /// Factor on the token embeddings before the first layer; it is rounded to the compute dtype first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    /// Rows of a learned position embedding that is added to the token embeddings (GPT-2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned_positions: Option<usize>,
    /// Whether linear weights are stored `[in, out]`, as in GPT-2's `Conv1D`.
    #[serde(skip_serializing_if = "is_false")]
    pub transposed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// One layer: attention and feed-forward part around a residual stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSpec {
    /// How the two parts join the residual stream.
    pub residual: Residual,
    /// The norms before both parts.
    pub norm: Norm,
    pub attention: AttentionSpec,
    pub mlp: Mlp,
}

/// How attention and feed-forward part join the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
    PreNorm,
    /// `x + norm(attention(norm(x)))`, then `x + norm(mlp(norm(x)))`: four norms a layer (Gemma 2).
    Sandwich,
    /// `x + attention(norm(x)) + mlp(norm(x))`
    Parallel {
        /// Whether both parts use the same norm; otherwise each has its own.
        shared_norm: bool,
    },
}

impl Residual {
    /// The norms of a layer, in the order in which they are applied.
    pub fn norms(self) -> &'static [Role] {
        match self {
            Self::PreNorm | Self::Parallel { shared_norm: false } => &[Role::AttentionNorm, Role::MlpNorm],
            Self::Sandwich => {
                &[Role::AttentionNorm, Role::PostAttentionNorm, Role::MlpNorm, Role::PostMlpNorm]
            }
            Self::Parallel { shared_norm: true } => &[Role::AttentionNorm],
        }
    }
}

/// Normalisation over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `weight · x / sqrt(mean(x²) + epsilon)`. Statistics in f32; the result is rounded to the input's dtype
    /// before it is multiplied by `weight` (`LlamaRMSNorm`).
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// `(1 + weight) · x / sqrt(mean(x²) + epsilon)`, computed in f32 and rounded at the end
    /// (`GemmaRMSNorm`).
    RmsPlusOne {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// `weight · (x - mean(x)) / sqrt(variance(x) + epsilon) + bias` (arXiv 1607.06450).
    Layer {
        /// Added to the variance.
        epsilon: f64,
    },
}

/// Causal self-attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key-value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Dimensions of a head; `heads × head_size` may differ from the hidden width.
    pub head_size: usize,
    /// How the query, key and value projections are stored.
    pub qkv: Qkv,
    /// Whether the query, key and value projections have a bias.
    pub input_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Factor on query · key.
    pub scale: f64,
    /// How attention knows token positions.
    pub position: Position,
    /// The norm on each query and key head, before the position embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_norm: Option<Norm>,
    /// Number of tokens that a token attends to, including itself; `None` for all before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)` before the softmax (Gemma 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_cap: Option<f64>,
}

/// How attention knows token positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Queries and keys are rotated.
    Rotary(RopeSpec),
    /// Scores get a bias that is linear in the key's position, with a slope for each head (ALiBi, arXiv
    /// 2108.12409). As in transformers' Falcon, the bias is in bf16 and scaled like the scores.
    Linear,
    /// It does not: the embedding contains the positions.
    Embedded,
}

/// How the query, key and value projections are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Qkv {
    /// Three matrices.
    Split,
    /// One matrix: all query heads, then all key heads, then all value heads.
    Fused,
    /// One matrix: for each key-value head its query heads, then its key, then its value.
    FusedByGroup,
}

/// Rotary position embedding in the rotate-half form: dimension `i` of a head is paired with `i + rotated/2`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Base of the frequencies: `theta^(-2i / rotated)`.
    pub theta: f64,
    /// Number of rotated dimensions at the start of a head; even.
    pub rotated: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts (transformers' `modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Unchanged.
    None,
    /// Each frequency is divided by `factor`.
    Linear {
        /// ≥ 1.
        factor: f64,
    },
    /// Frequencies with wavelengths above `original_positions / low_frequency_factor` are divided by
    /// `factor`, those with wavelengths below `original_positions / high_frequency_factor` are unchanged, the
    /// rest interpolated (LLaMA 3.1).
    Llama3 {
        /// ≥ 1.
        factor: f64,
        /// Positive, below `high_frequency_factor`.
        low_frequency_factor: f64,
        /// Above `low_frequency_factor`.
        high_frequency_factor: f64,
        /// Context length of pre-training.
        original_positions: usize,
    },
    /// The base grows with the longest sequence of a forward pass, once that is longer than
    /// `original_positions` ("dynamic NTK").
    Dynamic {
        /// ≥ 1.
        factor: f64,
        /// Context length of pre-training.
        original_positions: usize,
    },
    /// Interpolates between unchanged frequencies and those divided by `factor`, by the number of turns they
    /// make within `original_positions` (YaRN, arXiv 2309.00071, section 3).
    Yarn {
        /// ≥ 1.
        factor: f64,
        /// With at least this many turns a frequency is unchanged.
        beta_fast: f64,
        /// With at most this many turns a frequency is divided by `factor`.
        beta_slow: f64,
        /// Context length of pre-training.
        original_positions: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Whether the bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// Frequency `i` is divided by `short[i]`, or by `long[i]` if the longest sequence of the forward pass
    /// exceeds `original_positions`. Both have `rotated / 2` elements (LongRoPE, arXiv 2402.13753).
    Long {
        /// Divisors up to the context length of pre-training.
        short: Vec<f32>,
        /// Divisors beyond it.
        long: Vec<f32>,
        /// Context length of pre-training.
        original_positions: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// Frequency `i` is divided by `divisors[i]`; `rotated / 2` elements. GGUF stores the result of the LLaMA
    /// 3 rule like this.
    Divisors(Vec<f32>),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// `down(activation(gate(x)) · up(x))`
    Gated {
        /// Applied to the gate.
        activation: Activation,
        /// Output width of gate and up.
        width: usize,
        /// Whether all three matrices have a bias.
        bias: bool,
    },
    /// As `Gated`, but gate and up are one matrix, with the gate first.
    GatedFused {
        /// Applied to the gate.
        activation: Activation,
        /// Output width of gate and up each.
        width: usize,
        /// Whether both matrices have a bias.
        bias: bool,
    },
    /// `down(activation(up(x)))`
    Plain {
        /// Applied between the two.
        activation: Activation,
        /// Output width of up.
        width: usize,
        /// Whether both matrices have a bias.
        bias: bool,
    },
}

impl Mlp {
    /// Input width of the down projection.
    pub fn width(self) -> usize {
        match self {
            Self::Gated { width, .. } | Self::GatedFused { width, .. } | Self::Plain { width, .. } => width,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)`, where Φ is the normal distribution function (arXiv 1606.08415)
    Gelu,
    /// The tanh approximation of GELU, `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// A tensor that the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Hugging Face tensor name.
    pub name: String,
    /// The role of its module.
    pub role: Role,
    /// Its layer, for roles that exist in each layer.
    pub layer: Option<usize>,
    pub part: Part,
    /// Row-major, as in torch. A linear weight is `[out, in]`, even if the file stores it transposed.
    pub shape: Vec<usize>,
}

impl AttentionSpec {
    /// The rotary embedding, if there is one.
    pub fn rope(&self) -> Option<&RopeSpec> {
        match &self.position {
            Position::Rotary(rope) => Some(rope),
            Position::Linear | Position::Embedded => None,
        }
    }

    /// Total width of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Total width of all key (or value) heads.
    pub fn key_value_width(&self) -> usize {
        self.key_value_heads * self.head_size
    }
}

impl LayerSpec {
    fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let AttentionSpec { heads, key_value_heads, head_size, position, head_norm, .. } = &self.attention;
        if !heads.is_multiple_of(*key_value_heads) {
            return Some(("num_key_value_heads", "must divide the number of attention heads"));
        }
        let rope = match position {
            Position::Rotary(rope) => rope.contradiction(*head_size),
            Position::Linear | Position::Embedded => None,
        };
        rope.or_else(|| self.norm.contradiction()).or_else(|| head_norm.and_then(Norm::contradiction))
    }
}

impl Norm {
    fn contradiction(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Rms { epsilon } | Self::RmsPlusOne { epsilon } if epsilon <= 0.0 => {
                Some(("rms_norm_eps", "must be above 0"))
            }
            Self::Layer { epsilon } if epsilon <= 0.0 => Some(("layer_norm_eps", "must be above 0")),
            Self::Rms { .. } | Self::RmsPlusOne { .. } | Self::Layer { .. } => None,
        }
    }

    /// Whether it has a bias as well as a weight.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::Layer { .. })
    }
}

impl RopeSpec {
    fn contradiction(&self, head_size: usize) -> Option<(&'static str, &'static str)> {
        if self.theta <= 0.0 {
            return Some(("rope_theta", "must be above 0"));
        }
        if self.rotated == head_size && !head_size.is_multiple_of(2) {
            return Some(("head_dim", "must be even, since rotary embedding works on pairs"));
        }
        if self.rotated == 0 || self.rotated > head_size || !self.rotated.is_multiple_of(2) {
            return Some(("partial_rotary_factor", "must rotate an even number of each head's dimensions"));
        }
        match &self.scaling {
            RopeScaling::Linear { factor }
            | RopeScaling::Llama3 { factor, .. }
            | RopeScaling::Dynamic { factor, .. }
            | RopeScaling::Yarn { factor, .. }
                if *factor < 1.0 =>
            {
                Some(("factor", "must be at least 1"))
            }
            RopeScaling::Llama3 { low_frequency_factor: low, high_frequency_factor: high, .. }
                if *low <= 0.0 || high <= low =>
            {
                Some(("high_freq_factor", "must be above `low_freq_factor`, and both above 0"))
            }
            RopeScaling::Dynamic { .. } if self.rotated == 2 => {
                Some(("rope_type", "cannot be dynamic where only one pair is rotated"))
            }
            RopeScaling::Yarn { beta_fast, beta_slow, .. } if *beta_slow <= 0.0 || beta_fast < beta_slow => {
                Some(("beta_fast", "must not be below `beta_slow`, and both above 0"))
            }
            RopeScaling::Yarn { .. } if self.theta <= 1.0 => Some(("rope_theta", "must be above 1")),
            RopeScaling::Long { short, .. } if !self.fits(short) => Some((
                "short_factor",
                "must be a list of numbers above 0, one for each pair of rotated dimensions",
            )),
            RopeScaling::Long { long, .. } if !self.fits(long) => Some((
                "long_factor",
                "must be a list of numbers above 0, one for each pair of rotated dimensions",
            )),
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Yarn { .. }
            | RopeScaling::Long { .. }
            | RopeScaling::Divisors(_) => None,
        }
    }

    fn fits(&self, divisors: &[f32]) -> bool {
        divisors.len() == self.rotated / 2
            && divisors.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0)
    }
}

impl Architecture {
    /// The module's Hugging Face name without `.weight`; `None` if the family has no such module.
    pub fn module(&self, role: Role, layer: usize) -> Option<String> {
        self.names.module(role, layer)
    }

    /// The first value that contradicts another, as its Hugging Face key and the problem.
    pub fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        self.layers.iter().find_map(LayerSpec::contradiction).or_else(|| self.final_norm.contradiction())
    }

    /// Every tensor the architecture needs, the embedding first. A tied head has no tensor.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        let mut add = |role: Role, layer: usize, shape: &[usize], bias: bool| {
            let Some(module) = self.module(role, layer) else { return };
            let layer = role.is_per_layer().then_some(layer);
            let mut part = |part: Part, shape: &[usize]| {
                let name = format!("{module}.{}", part.suffix());
                parameters.push(Parameter { name, role, layer, part, shape: shape.to_vec() });
            };
            part(Part::Weight, shape);
            if bias {
                part(Part::Bias, &shape[..1]);
            }
        };
        add(Role::Embedding, 0, &[self.vocabulary, self.hidden], false);
        if let Some(positions) = self.learned_positions {
            add(Role::PositionEmbedding, 0, &[positions, self.hidden], false);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let LayerSpec { residual, norm, attention, mlp } = layer;
            let (query, key_value) = (attention.query_width(), attention.key_value_width());
            for &role in residual.norms() {
                add(role, index, &[self.hidden], norm.has_bias());
            }
            match attention.qkv {
                Qkv::Split => {
                    add(Role::Query, index, &[query, self.hidden], attention.input_bias);
                    add(Role::Key, index, &[key_value, self.hidden], attention.input_bias);
                    add(Role::Value, index, &[key_value, self.hidden], attention.input_bias);
                }
                Qkv::Fused | Qkv::FusedByGroup => {
                    add(Role::Qkv, index, &[query + 2 * key_value, self.hidden], attention.input_bias);
                }
            }
            if let Some(norm) = attention.head_norm {
                add(Role::QueryNorm, index, &[attention.head_size], norm.has_bias());
                add(Role::KeyNorm, index, &[attention.head_size], norm.has_bias());
            }
            add(Role::Output, index, &[self.hidden, query], attention.output_bias);
            match *mlp {
                Mlp::Gated { width, bias, .. } => {
                    add(Role::Gate, index, &[width, self.hidden], bias);
                    add(Role::Up, index, &[width, self.hidden], bias);
                    add(Role::Down, index, &[self.hidden, width], bias);
                }
                Mlp::GatedFused { width, bias, .. } => {
                    add(Role::GateUp, index, &[2 * width, self.hidden], bias);
                    add(Role::Down, index, &[self.hidden, width], bias);
                }
                Mlp::Plain { width, bias, .. } => {
                    add(Role::Up, index, &[width, self.hidden], bias);
                    add(Role::Down, index, &[self.hidden, width], bias);
                }
            }
        }
        add(Role::FinalNorm, 0, &[self.hidden], self.final_norm.has_bias());
        if !self.tied_head {
            add(Role::Head, 0, &[self.vocabulary, self.hidden], self.head_bias);
        }
        parameters
    }

    /// All linear layers in order; the head comes last, even if it is tied.
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        let tied_head = self.tied_head.then_some([self.vocabulary, self.hidden]);
        let tied_head = tied_head.and_then(|[out_features, in_features]| {
            let name = self.module(Role::Head, 0)?;
            Some(LinearModule { name, role: Role::Head, layer: None, in_features, out_features })
        });
        self.parameters()
            .into_iter()
            .filter(|parameter| parameter.part == Part::Weight && parameter.role.is_linear())
            .filter_map(|Parameter { role, layer, shape, .. }| {
                let name = self.module(role, layer.unwrap_or(0))?;
                let &[out_features, in_features] = shape.as_slice() else { return None };
                Some(LinearModule { name, role, layer, in_features, out_features })
            })
            .chain(tied_head)
            .collect()
    }
}
