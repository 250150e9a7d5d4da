//! The model: embedding, blocks, final norm, head; the walk through them, and its twin that keeps no activations.

use luthier_core::model::roles::Role;
use luthier_core::model::{Architecture, ModelFiles};
use tch::{Device, Kind, Tensor};

use super::block::{Block, Norm};
use super::frame::Frame;
use super::rope::Rope;
use super::{Noise, Pass};
use crate::error::{EngineError, Result};
use crate::generation::KvCache;
use crate::weights::{Linear, Loader, Weight};
use crate::{csrc, ops};

/// A decoder-only language model on one device.
pub struct Model {
    architecture: Architecture,
    fingerprint: String,
    device: Device,
    kind: Kind,
    /// `[V, H]`
    embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: Norm,
    /// `[V, H]`; shares the embedding's memory where the head is tied.
    head: Weight,
    ropes: Vec<Rope>,
}

/// A forward that kept only each block's input, for [`Model::backward`].
#[derive(Debug)]
pub struct Trace {
    /// `[N, H]` each.
    inputs: Vec<Tensor>,
    /// Output of the last block, a leaf `[N, H]`.
    last: Tensor,
    /// Final hidden states `[B, T, H]`, differentiable down to the output of the last block.
    pub hidden: Tensor,
}

impl Model {
    /// Loads the weights onto `device`, as elements of type `kind` (f32 or bf16). f32 and bf16 weights that are stored as
    /// `kind` are used where they lie in the mapped file.
    pub fn load(files: &ModelFiles, device: Device, kind: Kind) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let architecture = files.architecture.clone();
        let mut loader = Loader::open(files, device, kind)?;
        let missing = |role: Role| {
            EngineError::Config(format!("{} models have no {role:?} module", architecture.family))
        };
        let module = |role: Role| architecture.module(role, 0).ok_or_else(|| missing(role));
        let role = if architecture.tied_head { Role::Embedding } else { Role::Head };
        let head = loader.weight(&format!("{}.weight", module(role)?))?;
        let embedding = if architecture.tied_head {
            head.tensor().shallow_clone()
        } else {
            loader.tensor(&format!("{}.weight", module(Role::Embedding)?))?
        };
        let mut ropes: Vec<Rope> = Vec::new();
        let mut blocks = Vec::with_capacity(architecture.layers.len());
        for (layer, spec) in architecture.layers.iter().enumerate() {
            let wanted = &spec.attention.rope;
            let known = ropes.iter().position(|rope| rope.spec == *wanted);
            if known.is_none() {
                ropes.push(Rope::new(wanted, device)?);
            }
            let rope = known.unwrap_or(ropes.len() - 1);
            blocks.push(Block::load(&architecture, layer, rope, &mut loader)?);
        }
        let final_norm = Norm::load(architecture.final_norm, &module(Role::FinalNorm)?, &loader)?;
        let fingerprint = files.fingerprint.clone();
        Ok(Self { architecture, fingerprint, device, kind, embedding, blocks, final_norm, head, ropes })
    }

    /// What the model is made of.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Names the base weights: [`ModelFiles::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where weights lie, and where every input must lie.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Element type of weights and activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Every linear layer that an adapter can act on, by [`crate::weights::Site`].
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// The head's weight, `[V, H]`.
    pub fn head_weight(&self) -> &Tensor {
        self.head.tensor()
    }

    /// Final hidden states `[B, T, H]` (after the last norm, before the head) of `ids` `[B, T]` int64. With a cache, the
    /// tokens follow those it holds, and it holds them too afterwards.
    pub fn hidden(&self, ids: &Tensor, pass: &Pass, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let frame = Frame::new(ids, pass, &self.ropes, self.kind, cache.as_deref())?;
        if let Some(cache) = cache.as_deref_mut() {
            cache.reserve(frame.width)?;
        }
        let mut x = self.embed(ids)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let layer_cache = cache.as_deref_mut().map(|cache| cache.layer(layer));
            x = block.forward(&x, &frame, layer_cache.transpose()?)?;
        }
        if let Some(cache) = cache {
            cache.advance(frame.width);
        }
        self.finish(&x, &frame)
    }

    /// The residual stream before the first block and after each but the last, then the final hidden states: as many as
    /// there are layers, and one; `[B, T, H]` each.
    pub fn hidden_states(&self, ids: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let frame = Frame::new(ids, pass, &self.ropes, self.kind, None)?;
        let shape = [frame.rows, frame.width, self.architecture.hidden as i64];
        let mut x = self.embed(ids)?;
        let mut states = Vec::with_capacity(self.blocks.len() + 1);
        for block in &self.blocks {
            states.push(ops::reshape(&x, &shape)?);
            x = block.forward(&x, &frame, None)?;
        }
        states.push(self.finish(&x, &frame)?);
        Ok(states)
    }

    /// The same hidden states as [`Model::hidden`], keeping only what enters each block: [`Model::backward`] computes the
    /// rest again.
    pub fn hidden_recomputed(&self, ids: &Tensor, pass: &Pass) -> Result<Trace> {
        let frame = Frame::new(ids, pass, &self.ropes, self.kind, None)?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        let mut x = self.embed(ids)?;
        {
            let _guard = tch::no_grad_guard();
            for block in &self.blocks {
                let next = block.forward(&x, &frame, None)?;
                inputs.push(std::mem::replace(&mut x, next));
            }
        }
        let last = ops::leaf(&x)?;
        let hidden = self.finish(&last, &frame)?;
        Ok(Trace { inputs, last, hidden })
    }

    /// Gradients of a loss into the adapter's parameters, after the loss's own backward has reached `trace.hidden`. `ids`
    /// and `pass` must be those of [`Model::hidden_recomputed`].
    pub fn backward(&self, trace: Trace, ids: &Tensor, pass: &Pass) -> Result<()> {
        let frame = Frame::new(ids, pass, &self.ropes, self.kind, None)?;
        let Trace { mut inputs, last, hidden } = trace;
        drop(hidden);
        let mut gradient = ops::gradient(&last)?;
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            let (Some(outer), Some(input)) = (gradient, inputs.pop()) else { return Ok(()) };
            // Nothing below the first block is trained.
            let input = if layer == 0 { input } else { ops::leaf(&input)? };
            let output = block.forward(&input, &frame, None)?;
            if !output.requires_grad() {
                return Ok(());
            }
            csrc::backward(&[&output], &[Some(&outer)])?;
            gradient = ops::gradient(&input)?;
        }
        Ok(())
    }

    /// Logits `[…, V]` of final hidden states `[…, H]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.linear(hidden, None).map_err(|error| error.within("the head"))
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let hidden = ops::embedding(&self.embedding, ids).map_err(|error| error.within("the embedding"))?;
        ops::reshape(&hidden, &[-1, self.architecture.hidden as i64])
    }

    fn finish(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let shape = [frame.rows, frame.width, self.architecture.hidden as i64];
        ops::reshape(&self.final_norm.forward(x)?, &shape)
    }
}

impl Noise {
    /// The seed of the random numbers of one module.
    pub fn at(self, module: &str) -> u64 {
        crate::random::derive_name(self.seed, module)
    }
}
