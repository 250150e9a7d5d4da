//! What a run would train and need, before it starts.
//!
//! Bytes follow from how the engine computes. With e the bytes of a weight and activation (4 in f32, 2 in bf16):
//!
//! - *weights*: every parameter once, e each, also those that lie quantised on disk; for QLoRA what [`Quantisation`] says.
//! - *adapter*, *gradients*, *optimizer*: per trained parameter 4 bytes each for its value and its gradient, 8 for
//!   AdamW's two moments: all in f32. Full fine-tuning trains a copy of every weight beside the base's own.
//! - *activations*: what one micro-batch keeps for the backward pass. Per token and layer, with H the width, Q and K the
//!   widths of all query heads and of all key heads, h query heads, F the feed-forward width, and a tensor that only an
//!   adapter reads back counted only where one reads it:
//!   - each norm keeps its input: eH, once for two that read the same; an RMS norm keeps it in f32: 4H, where the
//!     engine's own kernels for the processor do not serve (on a GPU, for Gemma's, and where the norm itself is
//!     trained: then eH more in bf16 for what its weight reads back); for adapters on query, key or value and on gate
//!     or up their outputs: eH each, once where both parts read the same. The norms of query and key heads keep Q + K
//!     alike;
//!   - attention keeps query, key, value and result: e(2Q + 2K), and 4h for the normalisers of its softmax. Where scores are
//!     capped or biased they stand in memory, so that with L tokens in the longest row h · L · (4, e more in bf16, and e
//!     more for a cap) are kept instead, keys and values are repeated for each query head: e · 4Q, and the mask takes L.
//!     A window that is shorter than L makes a mask: eL;
//!   - the feed-forward part keeps gate and up: 2eF, without a gate only up: eF; and what goes into down for an adapter
//!     there: eF;
//!   - on a GPU, or where the gate's activation is not SiLU, the activated gate too: eF; on a GPU, and where attention
//!     has scores or masks in memory, also its result once more, laid end to end, for an adapter on the output
//!     projection: eQ;
//!   - each LoRA adapter keeps its input times A: e · rank; dropout keeps mask and masked input: 2e · in, in place of the
//!     shared input; DoRA keeps the output that it scales: e · out;
//!   - IA3 keeps what it scales: the input that a scaled input reads back, or the output: e · out;
//!   - full fine-tuning reads every layer's input back;
//!   - a prefix lies before the keys and values of each document once more: e · 2K per token, its own tokens included;
//!   - in bf16 what is trained in the place of weights, or as an adapter's factors, once more in bf16.
//!
//!   Gradients on their way through one layer take, beside that, e · max(3F + 2H, 4Q + 2K + 2H) per token, with 2F in
//!   place of 3F where there is no gate, and 8hL for scores that stand in memory. With recompute only each layer's
//!   input is kept, eH per token, and one layer at a time is as above. QLoRA decodes one matrix at a time: the largest
//!   of them, e each, and on a GPU [`DECODING`] bytes more for every element.
//! - *logits*: the head works through the trained tokens in parts of at most [`LOGITS_AT_ONCE`] logits: e each on the
//!   processor, where they become their gradient in place; 8 bytes in f32 (logits, and a copy that the normaliser
//!   takes) and 10 in bf16 on a GPU, under a cap, and for preference pairs; on the processor e more for a head that is
//!   trained, and in bf16 for an odd vocabulary; and twice eH per trained token.
//!   A trained head keeps its gradient twice while the parts are worked through: 8 bytes for each of its weights.
//! - *runtime*: libtorch, its kernels and their workspaces ([`Place::runtime_bytes`]), measured, not derived.
//!
//! The micro-batch is the largest that can come up: without packing the `batch_size` longest rows together, with packing
//! `batch_size` full sequences. All its tokens count as trained, and as if no two rows began alike. On the processor a
//! prompt's or prefix's virtual tokens are there once; on a GPU attention lays them out before every document.

mod place;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use place::{DECODING, LOGITS_AT_ONCE, Place, is_half, wanted_gpu};

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
    /// How many numbers.
    pub parameters: Parameters,
    /// At its highest.
    pub memory: Memory,
    /// Optimiser updates.
    pub steps: u64,
    /// Tokens read over the whole run.
    pub tokens: u64,
    /// Size of one checkpoint.
    pub checkpoint_bytes: u64,
    /// The number format that weights and activations would have: `f32` or `bf16`.
    pub dtype: &'static str,
    /// Whether activations would be computed again in the backward pass.
    pub recompute: bool,
    /// Bytes that are free where the run would compute.
    pub available: u64,
}

/// How many numbers a run has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Of the base model; a tied head counts once.
    pub total: u64,
    /// Trained.
    pub trainable: u64,
}

/// Memory by part, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen base weights.
    pub weights: u64,
    /// Trained weights.
    pub adapter: u64,
    /// Of the trained weights.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What the backward pass of one micro-batch needs.
    pub activations: u64,
    /// Of as many tokens as the head takes at once.
    pub logits: u64,
    /// Libraries and their workspaces.
    pub runtime: u64,
    /// All of the above.
    pub total: u64,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The targets do not fit the model.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// The configuration names a GPU that is not there.
    #[error(
        "model.device = \"cuda:{index}\" names a GPU that cannot be seen on this machine (`luthier doctor` tells what can); set \
         it to \"auto\" or \"cpu\""
    )]
    NoGpu {
        /// Its number.
        index: usize,
    },
    /// Full fine-tuning over a GGUF file, whose layout its result could not have.
    #[error(
        "method.kind = \"full\" leaves a model folder behind, laid out as its base, and {file} is a GGUF file; give \
         model.path the model's Hugging Face folder, or use method.kind = \"lora\""
    )]
    Layout {
        /// The base model.
        file: Shown,
    },
    /// The run would not fit.
    #[error(
        "the run needs about {} of memory, but {} are free{}; {remedy}",
        bytes(plan.memory.total), bytes(plan.available), if *gpu { " on the GPU" } else { "" }
    )]
    TooLarge {
        /// What was forecast.
        plan: Box<Plan>,
        /// Whether a GPU is what is too small.
        gpu: bool,
        /// What to change, with what each change saves.
        remedy: String,
    },
}

/// Forecasts a run on this machine; refuses one that cannot fit.
pub fn plan(files: &ModelFiles, config: &Config, data: &DataSummary) -> Result<Plan, PlanError> {
    plan_at(files, config, data, Place::here(config)?)
}

/// As [`plan`], for another place.
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
        // Weights, two moments each, and little else.
        checkpoint_bytes: trainable * 12 + CHECKPOINT_EXTRAS,
        dtype: if half { "bf16" } else { "f32" },
        recompute,
        available: place.available,
    };
    if memory.total <= place.available {
        return Ok(plan);
    }
    let remedy = remedy(&model, config, data, &plan, place)?;
    Err(PlanError::TooLarge { plan: Box::new(plan), gpu: place.gpu, remedy })
}

/// Steps of the run and tokens read in them.
fn course(config: &Config, data: &DataSummary) -> (u64, u64) {
    /// Enough steps to tell the tokens per step; finding the epoch of a far step means packing all before it.
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

/// The base model, as far as sizes go.
struct Model<'a> {
    architecture: &'a Architecture,
    parameters: u64,
    /// As QLoRA holds it.
    quantised: Held,
}

/// What a run takes.
struct Sizes {
    trainable: u64,
    memory: Memory,
    /// Whether weights and activations are bf16.
    half: bool,
    recompute: bool,
}

impl Model<'_> {
    fn sizes(&self, config: &Config, data: &DataSummary, place: Place) -> Result<Sizes, PlanError> {
        let held = if config.method.kind == MethodKind::Qlora {
            self.quantised
        } else {
            Held::dense(self.parameters)
        };
        let trainable = trained_count(&config.method, self.architecture)?;
        let touched = Touched::of(config, self.architecture)?;
        let half = is_half(config.model.dtype, place.gpu);
        let element = if half { 2 } else { 4 };
        let batch = largest_batch(config, data);
        let fused = !place.gpu;
        let times = if fused { 1 } else { documents(config, data) };
        let virtual_tokens = times * config.method.virtual_tokens as u64;
        let has_prompt = config.method.kind == MethodKind::Prompt;
        let batch = if has_prompt { batch + virtual_tokens } else { batch };
        let own = if has_prompt { config.method.virtual_tokens as u64 } else { 0 };
        let longest = longest_row(config, data) + own;
        let shape = Shape { element, fused, batch, longest, virtual_tokens, config, touched: &touched };
        let decoding = held.largest_decoded * (element + if place.gpu { DECODING } else { 0 });
        let activations = |recompute| shape.activations(self.architecture, recompute) + decoding;
        let mut memory = Memory {
            weights: held.bytes(element),
            adapter: trainable * 4,
            gradients: trainable * 4,
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

/// Manifest, configuration and headers of a checkpoint.
const CHECKPOINT_EXTRAS: u64 = 64 << 10;

impl Memory {
    fn sum(&self) -> u64 {
        let Self { weights, adapter, gradients, optimizer, activations, logits, runtime, total: _ } = *self;
        weights + adapter + gradients + optimizer + activations + logits + runtime
    }
}

/// Tokens of the largest micro-batch that can come up.
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

/// Tokens of the longest row that comes up.
fn longest_row(config: &Config, data: &DataSummary) -> u64 {
    data.train_lengths.iter().map(|&length| length.min(config.data.max_length) as u64).max().unwrap_or(0)
}

/// Documents in the largest micro-batch: its rows, or with packing as many as fill its sequences on average.
fn documents(config: &Config, data: &DataSummary) -> u64 {
    if !config.packs() {
        let each = config.train.algorithm.declaration().sides as u64;
        return each * config.train.batch_size.min(data.train_lengths.len()) as u64;
    }
    let rows = data.train_lengths.len() as u64;
    (largest_batch(config, data) * rows).div_ceil(data.train_tokens.max(1))
}

/// The layers that a method acts on, by what it keeps of them.
struct Touched {
    /// Their input is read back in the backward pass.
    read: Vec<LinearModule>,
    /// They have low-rank factors.
    factors: Vec<LinearModule>,
    /// Their output is kept to be scaled.
    scaled: Vec<LinearModule>,
    /// Elements used in the type of the activations in the place of base weights.
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
                touched.replaced = trained_count(method, architecture)?;
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
    /// Whether the engine's own kernels for the processor serve.
    fused: bool,
    /// Tokens of a micro-batch.
    batch: u64,
    /// Tokens of its longest row.
    longest: u64,
    /// Virtual tokens before its documents.
    virtual_tokens: u64,
    config: &'a Config,
    touched: &'a Touched,
}

impl Shape<'_> {
    /// See the module's documentation.
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
        // An adapter reads its input back; with dropout it reads its own masked copy instead.
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
        let mixed = if has_open_scores(attention) { 4 * query } else { 2 * query + 2 * key };
        let apart = plain.max(u64::from(has_open_scores(attention) || self.is_masked(attention)));
        let laid = apart * reads(&[Role::Output]) * query;
        let width = layer.mlp.width() as u64;
        let product = match layer.mlp {
            Mlp::Gated { activation: Activation::Silu, .. }
            | Mlp::GatedFused { activation: Activation::Silu, .. } => 2 + plain,
            Mlp::Gated { .. } | Mlp::GatedFused { .. } => 3,
            Mlp::Plain { .. } => 1,
        };
        let product = (product + reads(&[Role::Down])) * width;
        let factors = || within(&self.touched.factors, index);
        let low_rank = factors().count() as u64 * self.config.method.rank as u64;
        let masked: u64 =
            if dropout { factors().map(|module| 2 * module.in_features as u64).sum() } else { 0 };
        let scaled: u64 = within(&self.touched.scaled, index).map(|module| module.out_features as u64).sum();
        let elements = inputs * hidden + mixed + laid + product + low_rank + masked + scaled;
        let norms = norms * self.normed(layer.norm, hidden) + head_norms;
        norms + 4 * attention.heads as u64 + self.scores(attention) + self.element * elements
    }

    /// Bytes that a norm keeps of so many elements.
    fn normed(&self, norm: Norm, elements: u64) -> u64 {
        let trained = self.config.method.kind == MethodKind::Full;
        match norm {
            Norm::Rms { .. } if self.fused && !trained => self.element * elements,
            Norm::Rms { .. } if self.element == 2 && trained => (4 + self.element) * elements,
            Norm::Rms { .. } | Norm::RmsPlusOne { .. } => 4 * elements,
            Norm::Layer { .. } => self.element * elements,
        }
    }

    /// Whether a window is shorter than what it moves over.
    fn is_masked(&self, attention: &AttentionSpec) -> bool {
        attention.window.is_some_and(|window| (window as u64) < self.longest)
    }

    /// Bytes per token of scores that stand in memory, and of masks.
    fn scores(&self, attention: &AttentionSpec) -> u64 {
        let longest = self.longest;
        if !has_open_scores(attention) {
            return u64::from(self.is_masked(attention)) * longest * self.element;
        }
        let half = if self.element == 4 { 0 } else { self.element };
        let capped = if attention.score_cap.is_some() { self.element } else { 0 };
        longest + attention.heads as u64 * longest * (4 + half + capped)
    }

    /// Bytes per token of gradients on their way through a layer.
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

    /// Bytes of what is trained in the type of the activations, where that is another than its own.
    fn copied_weights(&self, architecture: &Architecture, recompute: bool) -> u64 {
        if self.element == 4 {
            return 0;
        }
        let factors: usize =
            self.touched.factors.iter().map(|module| module.in_features + module.out_features).sum();
        let all = (self.config.method.rank as u64 * factors as u64 + self.touched.replaced) * self.element;
        if recompute { all / (architecture.layers.len() as u64).max(1) } else { all }
    }

    /// Bytes of keys and values that are laid behind a prefix.
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
        let in_place = self.fused
            && architecture.logit_cap.is_none()
            && self.config.train.algorithm.declaration().token_loss;
        let again = u64::from(self.touched.head > 0)
            + u64::from(self.element == 2 && !architecture.vocabulary.is_multiple_of(2));
        let per_logit = match self.element {
            element if in_place => element * (1 + again),
            4 => 8,
            _ => 10,
        };
        let states = 2 * self.batch * architecture.hidden as u64 * self.element;
        all.min(LOGITS_AT_ONCE.max(architecture.vocabulary as u64)) * per_logit
            + states
            + 8 * self.touched.head
    }
}

/// Whether no fused attention serves, because scores are changed before the softmax.
fn has_open_scores(attention: &AttentionSpec) -> bool {
    attention.score_cap.is_some() || attention.position == Position::Linear
}

/// What to change, in order of how little it changes the result: each change is tried on top of those before it.
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
        bytes(plan.memory.weights)
    ))
}

/// Makes one change and says how it is written; `None` where it is made already.
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

/// The length that is suggested where memory is short.
const SHORT: usize = 256;
