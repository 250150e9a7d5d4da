//! libtorch's part of a training step: backward, optimizer, loss, dropout.

use std::ffi::c_int;
use std::ptr::null_mut;

use tch::{Kind, Tensor};

use super::memory::zeros;
use super::{
    Pointer, checked, luthier_adamw, luthier_as_recorded, luthier_backward, luthier_dropout_mask,
    luthier_grad_norm, luthier_linear_cross_entropy, luthier_take_gradient, owned, pointer, pointers,
};
use crate::error::{EngineError, Result};

/// Computes the gradients of `roots` for the leaves they depend on, starting from `gradients` (in the roots'
/// shapes; `None` is 1, for scalars). Frees the graph.
pub fn backward(roots: &[&Tensor], gradients: &[Option<&Tensor>]) -> Result<()> {
    if roots.len() != gradients.len() {
        return Err(EngineError::torch("backward", "the numbers of gradients and roots differ"));
    }
    let starts: Vec<Pointer> =
        gradients.iter().map(|gradient| gradient.map_or(null_mut(), pointer)).collect();
    let roots = pointers(roots.iter().copied());
    // SAFETY: both arrays have `roots.len()` pointers to live tensors, or null where allowed.
    checked("backward", unsafe { luthier_backward(roots.as_ptr(), starts.as_ptr(), roots.len()) })
}

/// The tensor, without gradient where autograd records nothing.
pub fn as_recorded(x: &Tensor) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success.
    checked("as_recorded", unsafe { luthier_as_recorded(pointer(x), &raw mut out) })?;
    Ok(owned(out))
}

/// The gradient that a leaf has accumulated, which the leaf no longer has then; `None` if it has none.
pub fn take_gradient(leaf: &Tensor) -> Result<Option<Tensor>> {
    let mut out = null_mut();
    // SAFETY: one live tensor, whose gradient is emptied; one pointer written on success.
    checked("take_gradient", unsafe { luthier_take_gradient(pointer(leaf), &raw mut out) })?;
    Ok(Some(owned(out)).filter(Tensor::defined))
}

/// Settings of [`adamw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Decoupled: `parameter -= learning_rate · weight_decay · parameter`.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// The tensors of one parameter that [`adamw`] uses.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Updated in place.
    pub parameter: &'a Tensor,
    /// In the parameter's shape; f32, or the type of the working copy. May be scaled in place.
    pub gradient: &'a Tensor,
    /// First moment, updated in place.
    pub first: &'a Tensor,
    /// Second moment, updated in place.
    pub second: &'a Tensor,
    /// Number of updates made, a 0-dimensional f32 tensor on the parameter's device; increased by one.
    pub step: &'a Tensor,
    /// A copy of the parameter in another type, written after the update.
    pub working: Option<&'a Tensor>,
}

/// Whether [`adamw`] updates parameters that have working copies by [`Program::AdamW`](super::Program), which must be loaded
/// on their device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedUpdate {
    No,
    /// Where the kernel takes a parameter.
    Possible,
    /// It is an error if the kernel does not take one.
    Always,
}

/// Scales gradients by `min(1, limit / (norm + 1e-6))`.
#[derive(Debug, Clone, Copy)]
pub struct Clipping<'a> {
    /// From [`grad_norm`].
    pub norm: &'a Tensor,
    /// Greater than 0.
    pub limit: f64,
}

/// One AdamW update (arXiv 1711.05101, algorithm 2) of all parameters, in place, in f32. No update if
/// `left_out`, a 0-dimensional f32 tensor, is 1. All parameters are f32 on one device.
pub fn adamw(
    parameters: &[Moments],
    settings: &AdamW,
    clipping: Option<Clipping>,
    left_out: &Tensor,
    fused: FusedUpdate,
) -> Result<()> {
    if parameters.is_empty() {
        return Ok(());
    }
    let column = |pick: fn(&Moments) -> Pointer| parameters.iter().map(pick).collect::<Vec<_>>();
    let (values, gradients) = (column(|row| pointer(row.parameter)), column(|row| pointer(row.gradient)));
    let (first, second) = (column(|row| pointer(row.first)), column(|row| pointer(row.second)));
    let steps = column(|row| pointer(row.step));
    let working = column(|row| row.working.map_or(null_mut(), pointer));
    // SAFETY: each array has `parameters.len()` pointers to tensors that live through the call, or null where there is no
    // working copy or norm; `left_out` lives as long.
    checked("adamw", unsafe {
        luthier_adamw(
            values.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            working.as_ptr(),
            parameters.len(),
            clipping.map_or(null_mut(), |clipping| pointer(clipping.norm)),
            clipping.map_or(0.0, |clipping| clipping.limit),
            settings.learning_rate,
            settings.betas[0],
            settings.betas[1],
            settings.weight_decay,
            settings.epsilon,
            pointer(left_out),
            fused as c_int,
        )
    })
}

/// Euclidean norm of all gradients together, computed in f32: a 0-dimensional tensor on their device, so that
/// nothing waits for it.
pub fn grad_norm(gradients: &[Tensor]) -> Result<Tensor> {
    if gradients.is_empty() {
        return zeros(&[], Kind::Float);
    }
    let list = pointers(gradients);
    let mut out = null_mut();
    // SAFETY: `list` has `list.len()` pointers to live tensors; `out` is written on success.
    checked("grad_norm", unsafe { luthier_grad_norm(list.as_ptr(), list.len(), &raw mut out) })?;
    Ok(owned(out))
}

/// The result of [`linear_cross_entropy`] that has the gradient of the hidden states (and of a trained head).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// [`CrossEntropy::sum`]: all rows have the same weight.
    Sum,
    /// [`CrossEntropy::rows`]: the backward pass gives each row's weight. A trained head's logits are then
    /// computed again.
    Rows,
}

/// What [`linear_cross_entropy`] returns.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Sum over rows, f32, 0-dimensional.
    pub sum: Tensor,
    /// Loss of each row, `[N]` f32.
    pub rows: Tensor,
    /// Number of rows whose most likely token is the right one, 0-dimensional int64; 0 if not requested.
    pub correct: Tensor,
}

/// The output head: logits `z` are `hidden · weightᵀ + bias`, then `cap · tanh(z / cap)` if there is a cap.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[V, H]`
    pub weight: &'a Tensor,
    /// `[V]`
    pub bias: Option<&'a Tensor>,
    /// Greater than 0.
    pub cap: Option<f64>,
}

/// How [`linear_cross_entropy`] is computed.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Rows of logits that are stored at a time.
    pub chunk: i64,
    /// Whether to count [`CrossEntropy::correct`].
    pub count_correct: bool,
    pub through: Through,
    /// Whether one kernel of [`Program::CrossEntropy`](super::Program::CrossEntropy) makes losses and gradients of bf16 logits that have no cap.
    pub fused: bool,
}

/// Cross entropy of the softmax of the head's logits against `ids`, summed. `hidden` is `[N, H]`, `ids` `[N]`
/// int64 within 0..V. Gradients are computed in the same pass.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Head,
    ids: &Tensor,
    comparison: Comparison,
) -> Result<CrossEntropy> {
    let Comparison { chunk, count_correct, through, fused } = comparison;
    let (mut sum, mut rows, mut correct) = (null_mut(), null_mut(), null_mut());
    // SAFETY: live tensors in, or null where there is no bias; three pointers written on success.
    checked("linear_cross_entropy", unsafe {
        luthier_linear_cross_entropy(
            pointer(hidden),
            pointer(head.weight),
            head.bias.map_or(null_mut(), pointer),
            pointer(ids),
            head.cap.unwrap_or(0.0),
            chunk,
            c_int::from(count_correct),
            c_int::from(through == Through::Rows),
            c_int::from(fused),
            &raw mut sum,
            &raw mut rows,
            &raw mut correct,
        )
    })?;
    Ok(CrossEntropy { sum: owned(sum), rows: owned(rows), correct: owned(correct) })
}

/// A tensor like `x` whose elements are 0 with probability `p` and `1 / (1 - p)` otherwise, as a function of
/// `seed` only.
pub fn dropout_mask(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success.
    checked("dropout_mask", unsafe { luthier_dropout_mask(pointer(x), p, seed, &raw mut out) })?;
    Ok(owned(out))
}
