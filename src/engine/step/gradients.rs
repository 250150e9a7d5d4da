//! The gradient of a step, to which its micro-batches add their parts.

use tch::Tensor;

use crate::error::Result;
use crate::layers::{Adapter, WorkingCopy, added};
use crate::ops;

/// The gradient of each parameter of an adapter, in their order.
///
/// Autograd adds up the gradients of f32 leaves itself. Those of working copies are taken from it after each
/// backward pass: they stay in the compute type as long as there is one, and are added in f32.
pub(super) struct Gradients<'a>(Vec<Part<'a>>);

struct Part<'a> {
    parameter: &'a Tensor,
    working: Option<&'a WorkingCopy>,
    /// Of the working copy.
    sum: Option<Tensor>,
}

impl<'a> Gradients<'a> {
    /// Without the gradients of earlier steps.
    pub fn new(adapter: &'a dyn Adapter) -> Result<Self> {
        let working = adapter.working();
        let part = |(name, parameter): (&'a String, &'a Tensor)| {
            let working = working.and_then(|working| working.get(name));
            match working {
                Some(working) => drop(working.take_gradient()?),
                None => parameter.shallow_clone().zero_grad(),
            }
            Ok(Part { parameter, working, sum: None })
        };
        Ok(Self(adapter.parameters().iter().map(part).collect::<Result<_>>()?))
    }

    /// Adds what a backward pass has left.
    pub fn take(&mut self) -> Result<()> {
        for Part { working, sum, .. } in &mut self.0 {
            if let Some(working) = working
                && let Some(gradient) = working.take_gradient()?
            {
                *sum = Some(added(sum.take(), gradient)?);
            }
        }
        Ok(())
    }

    /// Every parameter's gradient, f32 or in the compute type; zeros if no loss depends on the parameter.
    pub fn finish(self) -> Result<Vec<Tensor>> {
        let finished = |Part { parameter, working, sum }: Part| {
            let found = if working.is_some() { sum } else { ops::gradient(parameter)? };
            match found {
                Some(gradient) => Ok(gradient),
                None => ops::zeros(&parameter.size(), parameter.kind(), parameter.device()),
            }
        };
        self.0.into_iter().map(finished).collect()
    }
}
