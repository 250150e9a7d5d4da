//! Tensors over memory that Rust owns, and access to tensors' memory from Rust.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::ptr::null_mut;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use tch::{Kind, Tensor};

use super::{checked, luthier_borrow, owned};
use crate::error::{EngineError, Result, from_tch};

/// Maps a whole file for reading.
pub fn map(file: &File) -> std::io::Result<Arc<Mmap>> {
    // SAFETY: weights are opened read-only. If another program writes to the file at the same time, the numbers read
    // change or the process ends. Avoiding that is up to the user, as with every program that maps its model.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Arc::new(map))
}

/// Releases the memory of a part of a mapped file. The system reads it again if it is used again. Without
/// this, rarely used pages would stay in memory in addition to the tensors made from them.
pub fn release_pages(map: &Mmap, offset: usize, length: usize) {
    if offset.checked_add(length).and_then(|end| map.get(offset..end)).is_none() {
        return;
    }
    // SAFETY: the part is within the map, which is read-only and backed by a file, so no data is lost.
    let released = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, length) };
    if let Err(error) = released {
        tracing::debug!(%error, "memory of a mapped file could not be released");
    }
}

extern "C" fn release_map(owner: *mut c_void) {
    // SAFETY: `owner` is the box that `borrow_map` made; libtorch calls this once, after the last use of the memory.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<Mmap>>()) });
}

/// Number of an element type in `c10/core/ScalarType.h`; `None` if weights never have it.
pub(super) fn scalar_type(kind: Kind) -> Option<c_int> {
    match kind {
        Kind::Uint8 => Some(0),
        Kind::Half => Some(5),
        Kind::Float => Some(6),
        Kind::BFloat16 => Some(15),
        _ => None,
    }
}

/// A CPU tensor over `bytes` of a mapped file, without copying. The map lives as long as the tensor. The
/// tensor must never be written to. `None` if the bytes do not have exactly the shape's size, or are not
/// aligned.
pub fn borrow_map(map: &Arc<Mmap>, offset: usize, shape: &[i64], kind: Kind) -> Result<Option<Tensor>> {
    let size = kind.elt_size_in_bytes();
    let Some(scalar_type) = scalar_type(kind) else { return Ok(None) };
    let elements =
        shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(usize::try_from(length).ok()?));
    let Some(length) = elements.and_then(|elements| elements.checked_mul(size)) else { return Ok(None) };
    let Some(bytes) = offset.checked_add(length).and_then(|end| map.get(offset..end)) else {
        return Ok(None);
    };
    if bytes.is_empty() || !bytes.as_ptr().addr().is_multiple_of(size) {
        return Ok(None);
    }
    let owner = Box::into_raw(Box::new(Arc::clone(map)));
    let mut out = null_mut();
    // SAFETY: `bytes` is in the map, has the size of the whole shape, is aligned and is kept alive by `owner`; frozen
    // weights are never written to.
    let status = unsafe {
        luthier_borrow(
            bytes.as_ptr().cast_mut().cast(),
            shape.as_ptr(),
            shape.len(),
            scalar_type,
            release_map,
            owner.cast(),
            &raw mut out,
        )
    };
    if status != 0 {
        // SAFETY: the tensor was not made, so the box still has this one owner.
        drop(unsafe { Box::from_raw(owner) });
    }
    checked("borrow_map", status)?;
    Ok(Some(owned(out)))
}

/// Element types that [`fill`] supports.
pub trait Element: Copy {
    /// Its name in libtorch.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}

/// Zeros on the CPU.
pub(super) fn zeros(shape: &[i64], kind: Kind) -> Result<Tensor> {
    Tensor::f_zeros(shape, (kind, tch::Device::Cpu)).map_err(|error| from_tch("zeros", &error))
}

/// A new CPU tensor whose elements are set by `write`; they are zero before.
pub fn fill<T: Element>(shape: &[i64], write: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Tensor> {
    let tensor = zeros(shape, T::KIND)?;
    let length = tensor.numel();
    if length > 0 {
        // SAFETY: a new tensor is contiguous, holds `length` elements of `T`'s layout, is zeroed, and has no other
        // handle while the slice lives.
        write(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), length) })?;
    }
    Ok(tensor)
}

/// Calls `look` with the elements of a contiguous f32 tensor on the CPU, in row-major order.
pub fn with_floats<T>(x: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    if x.kind() != Kind::Float || x.device() != tch::Device::Cpu || !x.is_contiguous() {
        return Err(EngineError::mismatch("with_floats", &[x], "needs f32 in row-major order on the CPU"));
    }
    if x.numel() == 0 {
        return Ok(look(&[]));
    }
    // SAFETY: such a tensor has `numel` consecutive f32, which live as long as `x`. Tensors are written in place only
    // on the engine's one thread, which is this one.
    Ok(look(unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<f32>(), x.numel()) }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_borrowed_tensor_outlives_the_map_it_came_from() {
        let mut file = tempfile::tempfile().unwrap();
        let values: Vec<u8> = (0..64_u16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        file.write_all(&values).unwrap();
        let map = map(&file).unwrap();
        let tensor = borrow_map(&map, 16, &[3, 5], Kind::Float).unwrap().unwrap();
        assert_eq!(tensor.data_ptr().addr(), map.as_ptr().addr() + 16);
        assert_eq!(Arc::strong_count(&map), 2);
        let view = tensor.narrow(0, 1, 1);
        drop(tensor);
        let weak = Arc::downgrade(&map);
        drop(map);
        assert_eq!(Vec::<f32>::try_from(view.flatten(0, -1)).unwrap(), [9.0, 10.0, 11.0, 12.0, 13.0]);
        drop(view);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn released_pages_are_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let map = map(&file).unwrap();
        assert_eq!(map[..], content);
        release_pages(&map, 5000, 20_000);
        assert_eq!(map[..], content);
        release_pages(&map, usize::MAX, 1);
    }

    #[test]
    fn bytes_outside_the_map_are_not_borrowed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 64]).unwrap();
        let map = map(&file).unwrap();
        let borrow = |offset, shape: &[i64], kind| borrow_map(&map, offset, shape, kind).unwrap().is_some();
        assert!(borrow(0, &[16], Kind::Float) && borrow(2, &[31], Kind::BFloat16));
        assert!(!borrow(0, &[17], Kind::Float), "too long");
        assert!(!borrow(2, &[4], Kind::Float), "unaligned");
        assert!(
            !borrow(usize::MAX, &[1], Kind::Float) && !borrow(0, &[i64::MAX, 8], Kind::Float),
            "overflow"
        );
        assert!(!borrow(0, &[-1], Kind::Float) && !borrow(0, &[4], Kind::Int64));
    }
}
