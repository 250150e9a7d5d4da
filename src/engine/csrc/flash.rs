//! CUDA's flash attention over documents of different lengths.

use std::ptr::null_mut;

use tch::{Device, Kind, Tensor};

use super::device::DeviceSet;
use super::{checked, luthier_flash_attention, owned, pointer};
use crate::error::Result;

/// The devices on which it was seen to work.
static WORKS: DeviceSet = DeviceSet::new();

/// Largest head size that the kernel takes, and what head sizes must be multiples of.
const MAX_HEAD: i64 = 256;
const HEAD_STEP: i64 = 8;

/// Lets [`flash_attention`] be used on a device.
pub fn allow_flash_attention(device: Device) {
    WORKS.insert(device);
}

/// Whether [`flash_attention`] may be used on a device for layers of this head size and type.
pub fn has_flash_attention(device: Device, head_size: i64, kind: Kind) -> bool {
    WORKS.contains(device)
        && matches!(kind, Kind::BFloat16 | Kind::Half)
        && head_size <= MAX_HEAD
        && head_size % HEAD_STEP == 0
}

/// Where documents lie, for [`flash_attention`].
#[derive(Debug)]
pub struct Lengths {
    /// `[documents + 1]` int32: the row of each document's first query, and the number of all queries.
    pub queries: Tensor,
    /// The same of keys.
    pub keys: Tensor,
    /// Most queries of a document.
    pub most_queries: i64,
    /// Most keys of a document.
    pub most_keys: i64,
}

/// Causal softmax attention of documents that lie end to end: `query` `[N, heads, size]`, `key` and `value` `[L, groups,
/// size]` on CUDA, in a type of [`has_flash_attention`]. A document's last query sees its last key, the one before it all
/// but that, and so on; with a window, the last `window` of those. Returns `[N, heads · size]`.
pub fn flash_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    lengths: &Lengths,
    window: Option<i64>,
    scale: f64,
) -> Result<Tensor> {
    let mut out = null_mut();
    // SAFETY: five live tensors in, one pointer written on success; libtorch checks shapes and types.
    checked("flash_attention", unsafe {
        luthier_flash_attention(
            pointer(query),
            pointer(key),
            pointer(value),
            pointer(&lengths.queries),
            pointer(&lengths.keys),
            lengths.most_queries,
            lengths.most_keys,
            window.unwrap_or(0),
            scale,
            &raw mut out,
        )
    })?;
    Ok(owned(out))
}
