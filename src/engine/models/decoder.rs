//! The model: embedding, blocks, final norm and head, with a forward pass and one that keeps no activations.

use luthier_core::model::architecture::{AttentionSpec, Position};
use luthier_core::model::roles::Role;
use luthier_core::model::{Architecture, ModelFiles, Quantisation};
use tch::{Device, Kind, Tensor};

use super::block::Block;
use super::frame::Frame;
use super::norm::Norm;
use super::rope::Rope;
use crate::error::{EngineError, Result};
use crate::layers::{Active, Adapter, KvCache, Linear, Mask, Pass};
use crate::weights::Loader;
use crate::{csrc, ops};

/// A decoder-only language model on one device.
pub struct Model {
    files: ModelFiles,
    device: Device,
    kind: Kind,
    /// `[V, H]`
    embedding: Tensor,
    /// `[positions, H]`
    learned_positions: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: Norm,
    /// A tied head shares the embedding's memory.
    head: Linear,
    ropes: Vec<Rope>,
    weight_bytes: u64,
    /// Whether there are weights, not only their shapes.
    has_weights: bool,
}

/// A forward pass that kept only each block's input, for [`Model::backward`].
#[derive(Debug)]
pub struct Trace {
    /// `[N, H]` each; the first has the gradient history of trained embeddings.
    inputs: Vec<Tensor>,
    /// Output of the last block, a leaf `[N, H]`.
    last: Tensor,
    /// Final hidden states `[B, T, H]`, differentiable back to the output of the last block.
    pub hidden: Tensor,
}

impl Model {
    /// Loads the weights onto `device` as type `kind` (f32 or bf16), with the blocks' linear layers in the
    /// form given by `quantisation`. f32 and bf16 weights that are stored as `kind` are used directly from
    /// the mapped file.
    pub fn load(files: &ModelFiles, device: Device, kind: Kind, quantisation: Quantisation) -> Result<Self> {
        Self::of(files, Loader::open(files, device, kind, quantisation)?, true)
    }

    /// The model without its weights, for training that replaces them all. A forward pass that would need them is
    /// an error.
    pub fn without_weights(files: &ModelFiles, device: Device, kind: Kind) -> Result<Self> {
        Self::of(files, Loader::absent(files, device, kind), false)
    }

    fn of(files: &ModelFiles, mut loader: Loader, has_weights: bool) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let architecture = &files.architecture;
        let (device, kind) = (loader.device(), loader.kind());
        let module = |role: Role| {
            architecture.module(role, 0).ok_or_else(|| {
                EngineError::Config(format!("{} models have no {role:?} module", architecture.family))
            })
        };
        let mut ropes: Vec<Rope> = Vec::new();
        let mut blocks = Vec::with_capacity(architecture.layers.len());
        for (layer, spec) in architecture.layers.iter().enumerate() {
            let rope = match spec.attention.rope() {
                None => None,
                Some(wanted) => {
                    let known = ropes.iter().position(|rope| rope.spec == *wanted);
                    if known.is_none() {
                        ropes.push(Rope::new(wanted, device)?);
                    }
                    Some(known.unwrap_or(ropes.len() - 1))
                }
            };
            blocks.push(Block::load(architecture, layer, rope, &mut loader)?);
        }
        let embedding_name = format!("{}.weight", module(Role::Embedding)?);
        let head_name = module(Role::Head)?;
        let head_weight =
            if architecture.tied_head { embedding_name.clone() } else { format!("{head_name}.weight") };
        let head = Linear::load_head(&mut loader, &head_name, head_weight, architecture.head_bias)?;
        let embedding = if architecture.tied_head {
            head.weight().dense(kind)?
        } else {
            loader.tensor(&embedding_name)?
        };
        let learned_positions = match architecture.learned_positions {
            Some(_) => Some(loader.tensor(&format!("{}.weight", module(Role::PositionEmbedding)?))?),
            None => None,
        };
        let final_norm = Norm::load(architecture.final_norm, &module(Role::FinalNorm)?, &loader)?;
        let weight_bytes = loader.bytes();
        Ok(Self {
            files: files.clone(),
            device,
            kind,
            embedding,
            learned_positions,
            blocks,
            final_norm,
            head,
            ropes,
            weight_bytes,
            has_weights,
        })
    }

    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    pub fn architecture(&self) -> &Architecture {
        &self.files.architecture
    }

    /// The fingerprint of the base weights: [`ModelFiles::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.files.fingerprint
    }

    /// The device of the weights; every input must be on it.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Element type of weights and activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the weights. For those that stay mapped, bytes in their file.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Whether keys are rotated equally in sequences of `a` and of `b` tokens. If not (LongRoPE, dynamic
    /// NTK), the cache of a sequence that grew from one length to the other must be computed again.
    pub fn rotates_alike(&self, a: i64, b: i64) -> bool {
        self.ropes.iter().all(|rope| rope.is_equal_at(a, b))
    }

    /// Whether attention, too, is computed once for tokens that several documents begin with
    /// ([`Mask::Branches`]).
    pub fn shares_attention(&self) -> bool {
        let is_usual = |attention: &AttentionSpec| {
            attention.score_cap.is_none() && attention.position != Position::Linear
        };
        let is_shared = |attention: &AttentionSpec| {
            let flash = csrc::has_flash_attention(self.device, attention.head_size as i64, self.kind);
            is_usual(attention) && (self.device == Device::Cpu || flash)
        };
        self.files.architecture.layers.iter().all(|layer| is_shared(&layer.attention))
    }

    /// Every linear layer that an adapter can act on, by [`crate::layers::Site`]. The head is the last.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.head])
    }

    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// The type in which the forward pass uses a tensor of this Hugging Face name: the compute type, and f32 for
    /// the weights of some norms.
    pub fn kind_of(&self, tensor: &str) -> Kind {
        let mut norms = self.blocks.iter().flat_map(Block::norms).chain([&self.final_norm]);
        let is_exact = norms.any(|norm| norm.exact_weight() == Some(tensor));
        if is_exact { Kind::Float } else { self.kind }
    }

    /// An error if the base model's weights are needed and were left out.
    pub(super) fn expect_weights(&self, adapters: Active) -> Result<()> {
        if self.has_weights || !adapters.uses_base() {
            return Ok(());
        }
        Err(EngineError::torch(
            "the base model",
            "its weights are not in memory while all of them are trained",
        ))
    }

    /// The token embedding, `[V, H]`.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// An empty cache of `rows` rows.
    pub fn cache(&self, rows: usize) -> KvCache {
        KvCache::new(self.architecture(), rows, self.kind, self.device)
    }

    /// Final hidden states `[B, T, H]` (after the last norm, before the head) of `ids` `[B, T]` int64. With a
    /// cache, the tokens follow the cached ones and are added to it.
    pub fn hidden(&self, ids: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let frame = self.frame(ids, pass, cache.as_deref())?;
        let x = self.embed(ids, &frame)?;
        let x = self.walk(x, &frame, cache)?;
        self.finish(&x, &frame)
    }

    /// The residual stream before the first block and after each block but the last, then the final hidden
    /// states: one more than there are layers, `[B, T, H]` each.
    pub fn hidden_states(&self, ids: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let frame = self.frame(ids, pass, None)?;
        let mut x = self.embed(ids, &frame)?;
        let mut states = Vec::with_capacity(self.blocks.len() + 1);
        for block in &self.blocks {
            states.push(self.given(&x, &frame)?);
            x = block.forward(&x, &frame, None)?;
        }
        states.push(self.finish(&x, &frame)?);
        Ok(states)
    }

    /// The same hidden states as [`Model::hidden`], but only the input of each block is kept:
    /// [`Model::backward`] computes the rest again.
    pub fn hidden_recomputed(&self, ids: &Tensor, pass: &Pass) -> Result<Trace> {
        let frame = self.frame(ids, pass, None)?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        let mut x = self.embed(ids, &frame)?;
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

    /// Computes the gradients of a loss for the adapter's parameters, after the loss's own backward has
    /// reached `trace.hidden`. `ids` and `pass` must be those of [`Model::hidden_recomputed`]. `each` is called
    /// after each block's gradients, and after the embedding's.
    pub fn backward(
        &self,
        trace: Trace,
        ids: &Tensor,
        pass: &Pass,
        each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let frame = self.frame(ids, pass, None)?;
        let Trace { mut inputs, last, hidden } = trace;
        drop(hidden);
        let mut gradient = ops::gradient(&last)?;
        for block in self.blocks.iter().rev() {
            let (Some(outer), Some(input)) = (gradient, inputs.pop()) else { return Ok(()) };
            let embedded = inputs.is_empty();
            let below_is_trained = !embedded || input.requires_grad();
            let start = if below_is_trained { ops::leaf(&input)? } else { input.shallow_clone() };
            let output = block.forward(&start, &frame, None)?;
            if !output.requires_grad() {
                return Ok(());
            }
            csrc::backward(&[&output], &[Some(&outer)])?;
            each()?;
            gradient = if below_is_trained { ops::gradient(&start)? } else { None };
            if let (true, Some(gradient)) = (embedded, &gradient) {
                csrc::backward(&[&input], &[Some(gradient)])?;
                each()?;
            }
        }
        Ok(())
    }

    /// Writes the virtual tokens of each row's adapter into an empty cache.
    pub fn begin(&self, adapters: &[Option<&dyn Adapter>], cache: &mut KvCache) -> Result<()> {
        let mut made: Vec<(&dyn Adapter, i64, KvCache)> = Vec::new();
        let mut taken = Vec::new();
        let lengths = cache.sequence_lengths(0);
        for (row, (adapter, &length)) in adapters.iter().zip(&lengths).enumerate() {
            let Some(adapter) = adapter.filter(|adapter| adapter.virtual_tokens() > 0) else { continue };
            let length = length.max(adapter.virtual_tokens() as i64);
            let known = made.iter().position(|(other, of, _)| {
                std::ptr::addr_eq(*other, adapter) && self.rotates_alike(*of, length)
            });
            if known.is_none() {
                made.push((adapter, length, self.virtual_tokens(adapter, length)?));
            }
            taken.push((row, known.unwrap_or(made.len() - 1)));
        }
        for (_, _, other) in &made {
            cache.widen(other);
        }
        for (row, place) in taken {
            cache.adopt(row, &made[place].2)?;
        }
        Ok(())
    }

    /// Logits `[…, V]` of final hidden states `[…, H]`, rows in the first dimension.
    pub fn logits(&self, hidden: &Tensor, adapters: Active) -> Result<Tensor> {
        self.expect_weights(adapters)?;
        let mut size = hidden.size();
        let flat = ops::reshape(hidden, &[-1, self.files.architecture.hidden as i64])?;
        let nowhere = ops::integers(&[], self.device)?;
        let pass = Pass { positions: &nowhere, mask: Mask::Causal, adapters, noise: None };
        let logits = self.head.forward(&flat, &pass)?;
        let logits = match self.files.architecture.logit_cap {
            Some(cap) => ops::soft_cap(&logits, cap)?,
            None => logits,
        };
        if let Some(last) = size.last_mut() {
            *last = self.files.architecture.vocabulary as i64;
        }
        ops::reshape(&logits, &size)
    }

    fn frame<'a>(&self, ids: &Tensor, pass: &'a Pass<'a>, cache: Option<&KvCache>) -> Result<Frame<'a>> {
        let Ok((rows, columns)) = ids.size2() else {
            return Err(EngineError::mismatch("hidden", &[ids], "ids must have shape [rows, columns]"));
        };
        self.expect_weights(pass.adapters)?;
        Frame::new([rows, columns], pass, &self.ropes, self.kind, cache)
    }

    /// Runs all blocks.
    fn walk(&self, mut x: Tensor, frame: &Frame, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        if let Some(cache) = cache.as_deref_mut() {
            cache.prepare(frame.width)?;
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let layer_cache = cache.as_deref().map(|cache| cache.layer(layer)).transpose()?;
            x = block.forward(&x, frame, layer_cache.as_ref())?;
        }
        if let Some(cache) = cache {
            cache.advance(frame.width);
        }
        Ok(x)
    }

    /// `[N, H]` of the given tokens, and of virtual tokens before them.
    fn embed(&self, ids: &Tensor, frame: &Frame) -> Result<Tensor> {
        let given = self.look_up(Role::Embedding, &self.embedding, &ops::reshape(ids, &[-1])?, frame.pass);
        let given = given.map_err(|error| error.within("the embedding"))?;
        let given = match self.files.architecture.embedding_scale {
            Some(scale) => ops::scale(&given, ops::rounded(scale, self.kind))?,
            None => given,
        };
        let all = match &frame.prompt {
            Some(prompt) => {
                let table = ops::concatenate(&[prompt.embeddings.shallow_clone(), given], 0)?;
                match &prompt.order {
                    Some(order) => ops::select_rows(&table, 0, order)?,
                    None => table,
                }
            }
            None => given,
        };
        self.place(all, frame)
    }

    /// Adds the learned embedding of each token's position, if the family has one.
    fn place(&self, x: Tensor, frame: &Frame) -> Result<Tensor> {
        let Some(base) = &self.learned_positions else { return Ok(x) };
        let room = base.size().first().copied().unwrap_or_default();
        let longest = frame.longest()?;
        if longest > room {
            return Err(EngineError::Data(format!(
                "a sequence of {longest} tokens does not fit this model, which has positions for {room}; lower \
                 data.max_length, or give shorter prompts"
            )));
        }
        ops::add(&x, &self.look_up(Role::PositionEmbedding, base, &frame.positions, frame.pass)?)
    }

    /// Rows of a table `[…, H]` by index `[N]`, or of the tables that adapters replace it with.
    fn look_up(&self, role: Role, base: &Tensor, index: &Tensor, pass: &Pass) -> Result<Tensor> {
        let name = self.files.architecture.module(role, 0).map(|name| format!("{name}.weight"));
        let Some(name) = name.filter(|name| pass.replaces(name)) else { return ops::embedding(base, index) };
        pass.by_adapter(index, |adapter, index| {
            let own = adapter.and_then(|adapter| adapter.replacement(&name));
            let table = own.map(|table| ops::to_kind(table, self.kind)).transpose()?;
            ops::embedding(table.as_ref().unwrap_or(base), index)
        })
    }

    fn finish(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        self.given(&self.final_norm.forward(x, frame.pass)?, frame)
    }

    /// Selects the `[B, T, H]` of the given tokens from the `[N, H]` of all.
    fn given(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let size = frame.pass.positions.size();
        let shape = [size[0], size[1], self.files.architecture.hidden as i64];
        match &frame.prompt {
            Some(prompt) => ops::reshape(&ops::select_rows(x, 0, &prompt.given)?, &shape),
            None => ops::reshape(x, &shape),
        }
    }

    /// A cache of one row with an adapter's virtual tokens, for a sequence of `length` tokens.
    fn virtual_tokens(&self, adapter: &dyn Adapter, length: i64) -> Result<KvCache> {
        let count = adapter.virtual_tokens() as i64;
        let mut cache = self.cache(1);
        let Some(prompt) = adapter.prompt() else {
            let mut prefixes = Vec::with_capacity(self.blocks.len());
            for layer in 0..self.blocks.len() {
                let Some((keys, values)) = adapter.prefix(layer)? else { continue };
                cache.set_heads(layer, keys.size().get(1).copied().unwrap_or_default());
                prefixes.push((layer, keys, values));
            }
            cache.prepare(count)?;
            for (layer, keys, values) in prefixes {
                let row = |x: &Tensor| {
                    let x = ops::to_kind(&ops::transpose(x, 0, 1)?, self.kind)?; // [g, P, d]
                    let size = x.size();
                    ops::reshape(&x, &[1, size[0], size[1], size[2]])
                };
                cache.layer(layer)?.write(&row(&keys)?, &row(&values)?)?;
            }
            cache.advance(count);
            return Ok(cache);
        };
        cache.expect(&[length]);
        let places = ops::integers(&(0..count).collect::<Vec<_>>(), self.device)?;
        let positions = ops::reshape(&places, &[1, count])?;
        let adapters = Active::All(adapter);
        let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
        let frame = Frame::new([1, count], &pass, &self.ropes, self.kind, Some(&cache))?;
        let x = self.place(ops::to_kind(prompt, self.kind)?, &frame)?;
        drop(self.walk(x, &frame, Some(&mut cache))?);
        Ok(cache)
    }
}
