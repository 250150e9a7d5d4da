//! Forecasts what a run would train and how much memory it needs, before it starts.
//!
//! The byte counts follow from how the engine computes. Let e be the bytes of a weight or activation (4 in f32,
//! 2 in bf16):
//!
//! - *weights*: e for every parameter, even if the file stores it quantised; for QLoRA, see [`Quantisation`]. Full
//!   fine-tuning holds none, because it trains them all.
//! - *adapter*, *gradients*, *optimizer*: for each trained parameter 4 bytes for its value, 4 for its gradient and
//!   8 for AdamW's two moments, all in f32. Full fine-tuning in bf16 has 2 more for the copy that the forward pass
//!   uses, and 2 instead of 4 for the gradient of a single micro-batch. With several, the gradient of one takes
//!   another 2 at the end of its backward pass, when its activations are gone, or with recompute those of one layer.
//! - *activations*: what one micro-batch keeps for the backward pass. Per token and layer, with H the hidden width,
//!   Q and K the widths of all query heads and of all key heads, h the number of query heads, and F the
//!   feed-forward width. A tensor that only an adapter needs in the backward pass is counted only if there is one:
//!   - Each norm keeps its input: eH, once for two norms with the same input. An RMS norm keeps it in f32, 4H,
//!     for Gemma's norm, and on the CPU if the norm is trained. A trained one takes another eH in bf16, for the gradient
//!     of its weight. For adapters on query, key or value, and on gate or up,
//!     the norm's output is kept: eH each, once if both parts have the same input. The norms of query and key heads
//!     keep Q + K in the same way.
//!   - Attention keeps query, key, value and result: e(2Q + 2K), and 4h for the normalisers of its softmax. Scores
//!     that are capped or biased are held in memory: with L tokens in the longest row, h · L · 4 is kept for them
//!     (e more in bf16, and e more for a cap), keys and values are repeated for each query head, e · 4Q, and the
//!     mask takes L. A window shorter than L needs a mask: eL. On a GPU, with a mask or a prefix and in f32, keys and
//!     values are repeated for each query head too.
//!   - The feed-forward part keeps gate and up, 2eF, or only up, eF, if it has no gate. For an adapter on down its
//!     input is kept: eF, but for LoRA's factors it is computed again where our kernels for CUDA are used.
//!   - On a GPU without our kernels ([`Place::kernels`]), or if the gate's activation is not SiLU, the activated gate is
//!     kept: eF. On a GPU, and if
//!     attention holds scores or masks in memory, an adapter on the output projection needs a contiguous copy of
//!     attention's result: eQ.
//!   - Each LoRA adapter keeps its input times A: e · rank. Dropout keeps the mask and the masked input, 2e · in,
//!     instead of the shared input. DoRA keeps the output that it scales: e · out.
//!   - IA3 keeps what it scales: an input that is scaled (for its gradient), or the output: e · out.
//!   - Full fine-tuning needs the input of every layer.
//!   - A prefix needs a copy of the keys and values of each document, which follow its own: e · 2K per token, its
//!     own tokens included.
//!   - In bf16, trained weights that an adapter uses instead of base weights, and its factors, have a copy in bf16.
//!
//!   Gradients that pass through one layer take another e · max(3F + 2H, 4Q + 2K + 2H) per token, with 2F instead of
//!   3F if there is no gate, and 8hL for scores that are held in memory. With recompute only each layer's input is
//!   kept, eH per token, and the above is needed for one layer at a time. QLoRA decodes one matrix at a time: e for
//!   each element of the largest, and on a GPU [`DECODING`] more bytes.
//! - *logits*: the head handles the trained tokens in parts of at most [`logits_at_once`] logits. They take e each on
//!   the CPU and where our kernels are used, because the gradient overwrites them. On other GPUs, with a cap, and for
//!   losses over whole answers, they take
//!   8 bytes in f32 (the logits and a copy for the normaliser) and 10 in bf16. On the CPU they take e more if the
//!   head is trained, and in bf16 if the vocabulary is odd. Each trained token takes another 2eH. A trained head has
//!   its gradient twice meanwhile: 8 bytes for each of its weights.
//! - *runtime*: libtorch, its kernels and their workspaces ([`Place::runtime_bytes`]), measured, not derived.
//!
//! The micro-batch is the largest possible: the `batch_size` longest rows together or, with packing, `batch_size` full
//! sequences. All its tokens count as trained, and no prefix counts as shared. On the CPU the virtual tokens of a
//! prompt or prefix exist once; on a GPU attention copies them for every document.

mod gpu;
mod place;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use gpu::{GpuUse, NoGpu, use_of};
pub use place::{DECODING, Place, is_half, logits_at_once};

use crate::config::{Bias, Config, Dtype, MethodKind, Recompute, Variant};
use crate::data::{DataSummary, StepOrder};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Norm, Position, Residual,
};
use crate::model::roles::Role;
use crate::model::trained::{copied_tensors, prefix_heads, scaled_layers, trained_count};
use crate::model::{Held, LinearModule, ModelFiles, ModelKind, Quantisation, TargetError, match_targets};
use crate::text::Shown;
use crate::units::bytes;

/// What a run would train and need.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Numbers of parameters.
    pub parameters: Parameters,
    /// At its peak.
    pub memory: Memory,
    /// Number of optimiser updates.
    pub steps: u64,
    /// Tokens read in the whole run.
    pub tokens: u64,
    /// Size of one checkpoint, in bytes.
    pub checkpoint_bytes: u64,
    /// The dtype of weights and activations: `f32` or `bf16`.
    pub dtype: &'static str,
    /// Whether activations would be recomputed in the backward pass.
    pub recompute: bool,
    /// Free bytes on the device of the run.
    pub available: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Of the base model; a tied head counts once.
    pub total: u64,
    /// Trained by the method.
    pub trainable: u64,
}

/// Memory by part, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen base weights.
    pub weights: u64,
    /// Trained weights, with the copies that full fine-tuning computes with.
    pub adapter: u64,
    /// Gradients of the trained weights.
    pub gradients: u64,
    /// The state of AdamW.
    pub optimizer: u64,
    /// Kept for the backward pass of one micro-batch.
    pub activations: u64,
    /// Logits of as many tokens as the head handles at once.
    pub logits: u64,
    /// Libraries and their workspaces.
    pub runtime: u64,
    /// The sum of the above.
    pub total: u64,
}

/// Why there is no forecast.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The targets do not match the model.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// The configuration asks for a GPU that cannot be used.
    #[error(transparent)]
    Gpu(#[from] NoGpu),
    /// Full fine-tuning of a GGUF file: its result is a folder in the layout of the base model, which a GGUF
    /// file does not have.
    #[error(
        "method.kind = \"full\" writes a model folder with the layout of its base, but {file} is a GGUF file; give \
         model.path the model's Hugging Face folder, or use method.kind = \"lora\""
    )]
    Layout { file: Shown },
    /// The run would not fit into memory.
    #[error(
        "the run needs about {} of memory, but {} are free{}; {remedy}",
        bytes(plan.memory.total), bytes(plan.available), where_free(*place)
    )]
    TooLarge {
        plan: Box<Plan>,
        /// Where.
        place: Place,
        /// What to change, and the memory needed after it.
        remedy: String,
    },
}

/// Forecasts a run on a device; an error if it cannot fit.
pub fn plan_at(
    files: &ModelFiles,
    config: &Config,
    data: &DataSummary,
    place: Place,
) -> Result<Plan, PlanError> {
    if config.method.kind == MethodKind::Full && files.kind == ModelKind::Gguf {
        return Err(PlanError::Layout { file: Shown::from(&files.root) });
    }
    let quantised = Quantisation::of(MethodKind::Qlora, files).held(files);
    let model = Model { architecture: &files.architecture, parameters: files.parameters(), quantised };
    let Sizes { trainable, memory, half, recompute } = model.sizes(config, data, place)?;
    let (steps, tokens) = course(config, data);
    let plan = Plan {
        parameters: Parameters { total: model.parameters, trainable },
        memory,
        steps,
        tokens,
        // Weights, two moments each, and a little more.
        checkpoint_bytes: trainable * 12 + CHECKPOINT_EXTRAS,
        dtype: if half { "bf16" } else { "f32" },
        recompute,
        available: place.available,
    };
    if memory.total <= place.available {
        return Ok(plan);
    }
    let remedy = remedy(&model, config, data, &plan, place)?;
    Err(PlanError::TooLarge { plan: Box::new(plan), place, remedy })
}

/// Whose memory is free, if it is not the machine's.
fn where_free(place: Place) -> String {
    match (place.gpu, place.others) {
        (false, _) => String::new(),
        (true, 0) => " on the GPU".to_owned(),
        (true, 1) => " on the GPU, which another process uses too".to_owned(),
        (true, others) => format!(" on the GPU, which {others} other processes use too"),
    }
}

/// Number of steps of the run, and tokens read in them.
fn course(config: &Config, data: &DataSummary) -> (u64, u64) {
    /// Enough steps to know the tokens per step. The epoch of a later step would need packing of all steps
    /// before it.
    const MOST: u64 = 10_000;
    let order = StepOrder::new(&data.train_lengths, config);
    let steps = order.total_steps();
    let counted = steps.min(MOST);
    if counted == 0 {
        return (steps, 0);
    }
    let per_step = order.epoch_of(counted) * data.train_tokens as f64 / counted as f64;
    (steps, (per_step * steps as f64).round() as u64)
}

/// The sizes of the base model.
struct Model<'a> {
    architecture: &'a Architecture,
    parameters: u64,
    /// As QLoRA holds it.
    quantised: Held,
}

/// The sizes of a run.
struct Sizes {
    trainable: u64,
    memory: Memory,
    /// Whether weights and activations are bf16.
    half: bool,
    recompute: bool,
}

impl Model<'_> {
    fn sizes(&self, config: &Config, data: &DataSummary, place: Place) -> Result<Sizes, PlanError> {
        let held = match config.method.kind {
            MethodKind::Qlora => self.quantised,
            MethodKind::Full => Held::dense(0),
            _ => Held::dense(self.parameters),
        };
        let trainable = trained_count(&config.method, self.architecture)?;
        let touched = Touched::of(config, self.architecture)?;
        let half = is_half(config.model.dtype, place);
        let element = if half { 2 } else { 4 };
        let batch = largest_batch(config, data);
        let fused = !place.gpu;
        let kernels = place.kernels && half;
        let times = if fused { 1 } else { documents(config, data) };
        let virtual_tokens = times * config.method.virtual_tokens as u64;
        let has_prompt = config.method.kind == MethodKind::Prompt;
        let batch = if has_prompt { batch + virtual_tokens } else { batch };
        let own = if has_prompt { config.method.virtual_tokens as u64 } else { 0 };
        let longest = longest_row(config, data) + own;
        let gpu_memory = place.gpu_memory;
        let shape = Shape {
            element,
            fused,
            kernels,
            gpu_memory,
            batch,
            longest,
            virtual_tokens,
            config,
            touched: &touched,
        };
        let decoding = held.largest_decoded * (element + if place.gpu { DECODING } else { 0 });
        // Gradients of the compute type, beside those of the micro-batches before.
        let has_copies = config.method.kind == MethodKind::Full && half;
        let is_added = has_copies && config.train.accumulate > 1;
        let passing = if is_added { trainable * element } else { 0 };
        let layers = (self.architecture.layers.len() as u64).max(1);
        let activations = |recompute| {
            let kept = shape.activations(self.architecture, recompute) + decoding;
            if recompute { kept + passing / layers } else { kept.max(passing) }
        };
        let mut memory = Memory {
            weights: held.bytes(element),
            adapter: trainable * if has_copies { 4 + element } else { 4 },
            gradients: trainable * if has_copies && !is_added { element } else { 4 },
            optimizer: trainable * 8,
            activations: activations(false),
            logits: shape.logits(self.architecture),
            runtime: place.runtime_bytes(),
            total: 0,
        };
        memory.total = memory.sum();
        let recompute = match config.train.recompute {
            Recompute::On => true,
            Recompute::Off => false,
            Recompute::Auto => memory.total > place.available / 10 * 9,
        };
        if recompute {
            memory.activations = activations(true);
            memory.total = memory.sum();
        }
        Ok(Sizes { trainable, memory, half, recompute })
    }
}

/// Bytes of a checkpoint's manifest, configuration and headers.
const CHECKPOINT_EXTRAS: u64 = 64 << 10;

impl Memory {
    fn sum(&self) -> u64 {
        let Self { weights, adapter, gradients, optimizer, activations, logits, runtime, total: _ } = *self;
        weights + adapter + gradients + optimizer + activations + logits + runtime
    }
}

/// Tokens of the largest possible micro-batch.
fn largest_batch(config: &Config, data: &DataSummary) -> u64 {
    let rows = config.train.batch_size;
    if config.packs() {
        let full = config.data.max_length.min(data.train_tokens as usize) as u64;
        return full.saturating_mul(rows as u64).min(data.train_tokens);
    }
    let mut lengths = data.train_lengths.clone();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.iter().take(rows).map(|&length| length as u64).sum()
}

/// Tokens of the longest row used.
fn longest_row(config: &Config, data: &DataSummary) -> u64 {
    data.train_lengths.iter().map(|&length| length.min(config.data.max_length) as u64).max().unwrap_or(0)
}

/// Documents in the largest micro-batch: its rows; with packing, the average number that fill its sequences.
fn documents(config: &Config, data: &DataSummary) -> u64 {
    if !config.packs() {
        let each = config.train.algorithm.declaration().sides as u64;
        return each * config.train.batch_size.min(data.train_lengths.len()) as u64;
    }
    let rows = data.train_lengths.len() as u64;
    (largest_batch(config, data) * rows).div_ceil(data.train_tokens.max(1))
}

/// The layers that a method changes, by what must be kept for them.
struct Touched {
    /// Their input is read in the backward pass.
    read: Vec<LinearModule>,
    /// They have low-rank factors.
    factors: Vec<LinearModule>,
    /// Their output is kept in order to be scaled.
    scaled: Vec<LinearModule>,
    /// Elements that an adapter uses instead of base weights, in the dtype of activations.
    replaced: u64,
    /// Elements of a trained head.
    head: u64,
}

impl Touched {
    fn of(config: &Config, architecture: &Architecture) -> Result<Self, TargetError> {
        let method = &config.method;
        let modules = architecture.linear_modules();
        let mut touched =
            Self { read: Vec::new(), factors: Vec::new(), scaled: Vec::new(), replaced: 0, head: 0 };
        match method.kind {
            MethodKind::Full => {
                touched.head = (architecture.vocabulary * architecture.hidden) as u64;
                touched.read = modules;
                return Ok(touched);
            }
            MethodKind::Lora | MethodKind::Qlora => {
                touched.factors = match_targets(&method.targets, &modules)?;
                touched.read.clone_from(&touched.factors);
                if method.variant == Variant::Dora {
                    touched.scaled.clone_from(&touched.factors);
                }
            }
            MethodKind::Ia3 => {
                for layer in scaled_layers(&method.targets, architecture)? {
                    if layer.input { &mut touched.read } else { &mut touched.scaled }.push(layer.module);
                }
            }
            MethodKind::Prefix | MethodKind::Prompt => return Ok(touched),
        }
        let acted_on: Vec<LinearModule> = touched.read.iter().chain(&touched.scaled).cloned().collect();
        let bias = if method.kind == MethodKind::Ia3 { Bias::None } else { method.bias };
        for copied in copied_tensors(&method.modules_to_save, bias, &acted_on, architecture)? {
            let elements: usize = copied.shape.iter().product();
            touched.replaced += elements as u64;
            let module =
                modules.iter().find(|module| module.name == copied.module && copied.shape.len() == 2);
            match module {
                Some(module) if module.role == Role::Head => touched.head = elements as u64,
                Some(module) => touched.read.push(module.clone()),
                None => {}
            }
        }
        Ok(touched)
    }
}

/// What the sizes of activations depend on.
struct Shape<'a> {
    /// Bytes per element.
    element: u64,
    /// Whether the engine's own CPU kernels are used.
    fused: bool,
    /// Whether its kernels for CUDA are.
    kernels: bool,
    /// All bytes of the GPU.
    gpu_memory: u64,
    /// Tokens of a micro-batch.
    batch: u64,
    /// Tokens of its longest row.
    longest: u64,
    /// Virtual tokens before each of its documents.
    virtual_tokens: u64,
    config: &'a Config,
    touched: &'a Touched,
}

impl Shape<'_> {
    /// See the documentation of the module.
    fn activations(&self, architecture: &Architecture, recompute: bool) -> u64 {
        let hidden = architecture.hidden as u64;
        let layers: Vec<u64> = (0..architecture.layers.len())
            .map(|index| self.kept(architecture, index, &architecture.layers[index]))
            .collect();
        let largest = layers.iter().copied().max().unwrap_or(0);
        let passing = architecture.layers.iter().map(|layer| self.passing(hidden, layer)).max().unwrap_or(0);
        let kept = if recompute {
            layers.len() as u64 * self.element * hidden + largest
        } else {
            layers.iter().sum()
        };
        self.batch * (kept + passing)
            + self.copied_weights(architecture, recompute)
            + self.prefixed(architecture, recompute)
    }

    /// Bytes per token that a layer keeps for its backward pass.
    fn kept(&self, architecture: &Architecture, index: usize, layer: &LayerSpec) -> u64 {
        fn within(modules: &[LinearModule], index: usize) -> impl Iterator<Item = &LinearModule> {
            modules.iter().filter(move |module| module.layer == Some(index))
        }
        let dropout = self.config.method.dropout > 0.0;
        // An adapter reads its input in the backward pass; with dropout it reads its own masked copy instead.
        let reads = |roles: &[Role]| {
            let is_read = within(&self.touched.read, index).any(|module| roles.contains(&module.role));
            u64::from(!dropout && is_read)
        };
        let hidden = architecture.hidden as u64;
        let attention = &layer.attention;
        let (query, key) = (attention.query_width() as u64, attention.key_value_width() as u64);
        let norms = match (layer.residual, layer.norm) {
            (Residual::Parallel { .. }, Norm::Layer { .. }) => 1,
            (residual, _) => residual.norms().len() as u64,
        };
        let head_norms = attention.head_norm.map_or(0, |norm| self.normed(norm, query + key));
        let inner = [Role::Gate, Role::Up, Role::GateUp];
        let outer = [Role::Query, Role::Key, Role::Value, Role::Qkv];
        let inputs = match layer.residual {
            Residual::Parallel { shared_norm: true } => reads(&[outer.as_slice(), &inner].concat()),
            Residual::PreNorm | Residual::Sandwich | Residual::Parallel { shared_norm: false } => {
                reads(&outer) + reads(&inner)
            }
        };
        let plain = u64::from(!self.fused);
        let is_repeated =
            !self.fused && (self.element == 4 || self.is_masked(attention) || self.virtual_tokens > 0);
        let mixed = if has_open_scores(attention) || is_repeated { 4 * query } else { 2 * query + 2 * key };
        let apart = plain.max(u64::from(has_open_scores(attention) || self.is_masked(attention)));
        let laid = apart * reads(&[Role::Output]) * query;
        let width = layer.mlp.width() as u64;
        let is_silu = matches!(
            layer.mlp,
            Mlp::Gated { activation: Activation::Silu, .. }
                | Mlp::GatedFused { activation: Activation::Silu, .. }
        );
        let product = match layer.mlp {
            Mlp::Plain { .. } => 1,
            Mlp::Gated { .. } | Mlp::GatedFused { .. } if is_silu && (self.fused || self.kernels) => 2,
            Mlp::Gated { .. } | Mlp::GatedFused { .. } => 3,
        };
        // The kernels compute it again where an adapter is nothing but factors.
        let has_factors = within(&self.touched.factors, index).any(|module| module.role == Role::Down)
            && self.config.method.variant != Variant::Dora;
        let again = is_silu && self.kernels && has_factors;
        let product = (product + if again { 0 } else { reads(&[Role::Down]) }) * width;
        let factors = || within(&self.touched.factors, index);
        let low_rank = factors().count() as u64 * self.config.method.rank as u64;
        let masked: u64 =
            if dropout { factors().map(|module| 2 * module.in_features as u64).sum() } else { 0 };
        let scaled: u64 = within(&self.touched.scaled, index).map(|module| module.out_features as u64).sum();
        let elements = inputs * hidden + mixed + laid + product + low_rank + masked + scaled;
        let norms = norms * self.normed(layer.norm, hidden) + head_norms;
        norms + 4 * attention.heads as u64 + self.scores(attention) + self.element * elements
    }

    /// Bytes that a norm keeps for this many elements.
    fn normed(&self, norm: Norm, elements: u64) -> u64 {
        let trained = self.config.method.kind == MethodKind::Full;
        match norm {
            Norm::Rms { .. } if self.fused && !trained => self.element * elements,
            // One kernel; the weight's gradient needs the normalised input.
            Norm::Rms { .. } if !self.fused && trained && self.element == 2 => 2 * self.element * elements,
            Norm::Rms { .. } if !self.fused => self.element * elements,
            Norm::Rms { .. } if self.element == 2 && trained => (4 + self.element) * elements,
            Norm::Rms { .. } | Norm::RmsPlusOne { .. } => 4 * elements,
            Norm::Layer { .. } => self.element * elements,
        }
    }

    /// Whether the window is shorter than the longest row, so that a mask is needed.
    fn is_masked(&self, attention: &AttentionSpec) -> bool {
        attention.window.is_some_and(|window| (window as u64) < self.longest)
    }

    /// Bytes per token of scores and masks that are held in memory.
    fn scores(&self, attention: &AttentionSpec) -> u64 {
        let longest = self.longest;
        if !has_open_scores(attention) {
            return u64::from(self.is_masked(attention)) * longest * self.element;
        }
        let half = if self.element == 4 { 0 } else { self.element };
        let capped = if attention.score_cap.is_some() { self.element } else { 0 };
        longest + attention.heads as u64 * longest * (4 + half + capped)
    }

    /// Bytes per token of gradients while they pass through a layer.
    fn passing(&self, hidden: u64, layer: &LayerSpec) -> u64 {
        let attention = &layer.attention;
        let (query, key) = (attention.query_width() as u64, attention.key_value_width() as u64);
        let parts = match layer.mlp {
            Mlp::Gated { .. } | Mlp::GatedFused { .. } => 3,
            Mlp::Plain { .. } => 2,
        };
        let scores = if has_open_scores(attention) { 8 * attention.heads as u64 * self.longest } else { 0 };
        let mlp = parts * layer.mlp.width() as u64;
        self.element * (mlp.max(4 * query + 2 * key) + 2 * hidden) + scores
    }

    /// Bytes of trained weights copied to the dtype of activations, if it differs from their own.
    fn copied_weights(&self, architecture: &Architecture, recompute: bool) -> u64 {
        if self.element == 4 {
            return 0;
        }
        let factors: usize =
            self.touched.factors.iter().map(|module| module.in_features + module.out_features).sum();
        let all = (self.config.method.rank as u64 * factors as u64 + self.touched.replaced) * self.element;
        if recompute { all / (architecture.layers.len() as u64).max(1) } else { all }
    }

    /// Bytes of keys and values that are copied to follow a prefix.
    fn prefixed(&self, architecture: &Architecture, recompute: bool) -> u64 {
        if self.config.method.kind != MethodKind::Prefix {
            return 0;
        }
        let width =
            |layer: &LayerSpec| 2 * (prefix_heads(&layer.attention) * layer.attention.head_size) as u64;
        let widths = architecture.layers.iter().map(width);
        let kept: u64 = if recompute { widths.max().unwrap_or(0) } else { widths.sum() };
        (self.batch + self.virtual_tokens) * kept * self.element
    }

    fn logits(&self, architecture: &Architecture) -> u64 {
        let all = self.batch * architecture.vocabulary as u64;
        let in_place =
            architecture.logit_cap.is_none() && self.config.train.algorithm.declaration().token_loss;
        let again = u64::from(self.touched.head > 0)
            + u64::from(self.element == 2 && !architecture.vocabulary.is_multiple_of(2));
        let per_logit = match self.element {
            element if in_place && self.fused => element * (1 + again),
            element if in_place && self.kernels => element,
            4 => 8,
            _ => 10,
        };
        let states = 2 * self.batch * architecture.hidden as u64 * self.element;
        let at_once = logits_at_once((!self.fused).then_some(self.gpu_memory));
        all.min(at_once.max(architecture.vocabulary as u64)) * per_logit + states + 8 * self.touched.head
    }
}

/// Whether fused attention cannot be used, because scores are changed before the softmax.
fn has_open_scores(attention: &AttentionSpec) -> bool {
    attention.score_cap.is_some() || attention.position == Position::Linear
}

/// What to change, beginning with the changes that affect the result least. Each is tried in addition to
/// those before it.
fn remedy(
    model: &Model,
    config: &Config,
    data: &DataSummary,
    plan: &Plan,
    place: Place,
) -> Result<String, PlanError> {
    let mut config = config.clone();
    let mut data = data.clone();
    let mut changes: Vec<String> = Vec::new();
    let tries: [Change; 5] = [recomputed, halved, one_by_one, quantised, shortened];
    for change in tries {
        let Some(change) = change(&mut config, &mut data, plan) else { continue };
        changes.push(change);
        let total = model.sizes(&config, &data, place)?.memory.total;
        if total <= place.available {
            return Ok(format!("{} would bring it to {}", changes.join(" and "), bytes(total)));
        }
    }
    let also =
        if changes.is_empty() { String::new() } else { format!(", even with {}", changes.join(" and ")) };
    Ok(format!(
        "it cannot fit here{also}: the weights alone take {}; choose a smaller model, or a machine with more memory",
        bytes(plan.memory.weights + plan.memory.adapter)
    ))
}

/// Makes one change and returns it as the user would write it; `None` if it is made already.
type Change = fn(&mut Config, &mut DataSummary, &Plan) -> Option<String>;

fn recomputed(config: &mut Config, _: &mut DataSummary, plan: &Plan) -> Option<String> {
    config.train.recompute = Recompute::On;
    (!plan.recompute).then(|| "train.recompute = \"on\"".to_owned())
}

fn halved(config: &mut Config, _: &mut DataSummary, plan: &Plan) -> Option<String> {
    config.model.dtype = Dtype::Bf16;
    (plan.dtype == "f32").then(|| "model.dtype = \"bf16\"".to_owned())
}

fn one_by_one(config: &mut Config, _: &mut DataSummary, _: &Plan) -> Option<String> {
    let train = &mut config.train;
    if train.batch_size <= 1 {
        return None;
    }
    train.accumulate = train.accumulate.saturating_mul(train.batch_size);
    train.batch_size = 1;
    Some(format!("train.batch_size = 1 with train.accumulate = {}", train.accumulate))
}

fn quantised(config: &mut Config, _: &mut DataSummary, _: &Plan) -> Option<String> {
    if config.method.kind != MethodKind::Lora {
        return None;
    }
    config.method.kind = MethodKind::Qlora;
    Some("method.kind = \"qlora\"".to_owned())
}

fn shortened(config: &mut Config, data: &mut DataSummary, _: &Plan) -> Option<String> {
    if config.data.max_length <= SHORT {
        return None;
    }
    config.data.max_length = SHORT;
    // All sides count as one row's tokens.
    let most = config.train.algorithm.declaration().sides * SHORT;
    for length in &mut data.train_lengths {
        *length = (*length).min(most);
    }
    data.train_tokens = data.train_lengths.iter().map(|&length| length as u64).sum();
    Some(format!("data.max_length = {SHORT}"))
}

/// The length that is suggested if memory is short.
const SHORT: usize = 256;
