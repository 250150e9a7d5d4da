//! Copies of tensors in host memory, which a thread can write while training changes the tensors.

use tch::{Device, Kind, Tensor};

use crate::csrc::{self, Event};
use crate::error::Result;
use crate::ops;

/// Bytes that are copied at once. From a GPU they pass through pinned memory, of which there is no more than a few parts,
/// and which is fast to copy from in parts of this size.
const PART: usize = 16 << 20;

/// Each copy begins at a multiple of this many bytes, as tensors do.
const ALIGNMENT: u64 = 64;

/// Part of a tensor on its way to host memory.
struct Part {
    pinned: Tensor,
    arrived: Event,
    target: Tensor,
}

impl Part {
    fn put(mut self) -> Result<()> {
        self.arrived.wait()?;
        ops::copy_into(&mut self.target, &self.pinned)
    }
}

/// Copies in host memory, in row-major order and without autograd history. They are parts of one allocation, because the
/// process keeps the memory of small ones after their end.
pub fn copies(tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    let room = |tensor: &Tensor| ops::bytes_of(tensor).next_multiple_of(ALIGNMENT) as i64;
    let total = tensors.iter().map(|tensor| room(tensor)).sum();
    let memory = ops::empty(&[total], Kind::Uint8, Device::Cpu)?;
    let mut copies = Vec::with_capacity(tensors.len());
    let mut start = 0;
    // A part is put in its place while the next one is on its way.
    let mut before: Option<Part> = None;
    for tensor in tensors {
        let own = ops::narrow(&memory, 0, start, ops::bytes_of(tensor) as i64)?;
        start += room(tensor);
        let copy = ops::bytes_as(&own, tensor.kind())?;
        let elements = tensor.numel();
        let source = ops::reshape(&ops::detach(tensor)?, &[elements as i64])?;
        let step = PART / tensor.kind().elt_size_in_bytes();
        for from in (0..elements).step_by(step) {
            let (from, length) = (from as i64, step.min(elements - from) as i64);
            let pinned = csrc::download(&ops::narrow(&source, 0, from, length)?)?;
            let target = ops::narrow(&copy, 0, from, length)?;
            let part = Part { pinned, arrived: Event::record(tensor.device())?, target };
            if let Some(before) = before.replace(part) {
                before.put()?;
            }
        }
        copies.push(ops::reshape(&copy, &tensor.size())?);
    }
    before.map_or(Ok(()), Part::put)?;
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_the_same_elements_and_memory_of_their_own() {
        let part = PART as i64;
        let ramp = |count: i64| Tensor::arange(count, (Kind::Float, Device::Cpu));
        let tensors = [
            ramp(7).set_requires_grad(true),
            ramp(6).reshape([2, 3]).tr(),
            ramp(10).to_kind(Kind::BFloat16),
            Tensor::zeros([0, 4], (Kind::Half, Device::Cpu)),
            ramp(1).reshape([]),
            Tensor::randint(256, [2 * part + 3], (Kind::Uint8, Device::Cpu)),
            Tensor::from_slice(&[1_i64, -2]),
        ];
        let expected: Vec<Tensor> = tensors.iter().map(|tensor| tensor.detach().copy()).collect();
        let copies = copies(&tensors.iter().collect::<Vec<_>>()).unwrap();
        for tensor in &tensors {
            drop(tensor.detach().fill_(1));
        }
        assert_eq!(copies.len(), expected.len());
        for (copy, expected) in copies.iter().zip(&expected) {
            assert_eq!((copy.kind(), copy.size()), (expected.kind(), expected.size()));
            assert!(copy.is_contiguous() && !copy.requires_grad());
            assert!(copy.equal(expected), "{copy:?}");
        }
    }
}
