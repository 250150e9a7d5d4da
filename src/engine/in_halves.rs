//! Work that is done in smaller parts where memory runs out.

use tch::Device;

use crate::csrc;
use crate::error::{EngineError, Result};

/// Does `work` on all items together, or on each half of them if they do not fit into the memory of `device`, and so on
/// down to single items. Returns what each part gave, in order. `work` must change nothing before it fails.
pub fn in_halves<T, R>(
    device: Device,
    items: &[T],
    work: &mut dyn FnMut(&[T]) -> Result<R>,
) -> Result<Vec<R>> {
    let error = match work(items) {
        Ok(done) => return Ok(vec![done]),
        Err(error) => error,
    };
    if !matches!(error, EngineError::OutOfMemory { .. }) || items.len() < 2 {
        return Err(error);
    }
    if let Device::Cuda(index) = device {
        csrc::release_device_memory(index)?;
    }
    tracing::warn!("{} rows at a time do not fit: {error}; going on with half of them", items.len());
    let (first, second) = items.split_at(items.len() / 2);
    let mut done = in_halves(device, first, work)?;
    done.extend(in_halves(device, second, work)?);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(most: usize) -> impl FnMut(&[u32]) -> Result<u32> {
        move |items: &[u32]| {
            if items.len() > most {
                return Err(EngineError::torch("a test", "CUDA out of memory"));
            }
            Ok(items.iter().sum())
        }
    }

    #[test]
    fn parts_are_halved_until_they_fit() {
        let items = [1, 2, 3, 4, 5];
        let sums = |most: usize| in_halves(Device::Cpu, &items, &mut fits(most));
        assert_eq!(sums(5).unwrap(), [15]);
        assert_eq!(sums(2).unwrap(), [3, 3, 9]);
        assert_eq!(sums(1).unwrap(), items);
        assert!(matches!(sums(0), Err(EngineError::OutOfMemory { .. })));
    }

    #[test]
    fn other_errors_end_the_work() {
        let mut calls = 0;
        let found: Result<Vec<()>> = in_halves(Device::Cpu, &[1, 2], &mut |_| {
            calls += 1;
            Err(EngineError::torch("a test", "the shapes do not fit"))
        });
        assert!(found.is_err());
        assert_eq!(calls, 1);
    }
}
