//! The encoding of a tensor's elements in a file.

use serde::Serialize;

/// The element encodings that weights may have on disk. Everything from [`Storage::Q8_0`] on is a block format of
/// llama.cpp (`ggml-common.h`), where a fixed number of elements shares scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Storage {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    BF16,
    /// 32 signed bytes and one f16 scale.
    Q8_0,
    /// 32 4-bit values and one f16 scale.
    Q4_0,
    /// 32 4-bit values, f16 scale and minimum.
    Q4_1,
    /// 32 5-bit values and one f16 scale.
    Q5_0,
    /// 32 5-bit values, f16 scale and minimum.
    Q5_1,
    /// 256 4-bit values, 8 6-bit scales and minima under two f16.
    #[serde(rename = "Q4_K")]
    Q4K,
    /// 256 5-bit values, 8 6-bit scales and minima under two f16.
    #[serde(rename = "Q5_K")]
    Q5K,
    /// 256 6-bit values, 16 8-bit scales under one f16.
    #[serde(rename = "Q6_K")]
    Q6K,
}

/// The smallest part of a tensor that can be decoded alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Number of elements, consecutive along the last (fastest) dimension.
    pub elements: usize,
    pub bytes: usize,
}

impl Storage {
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Elements and bytes per block, as in `ggml-common.h`; dense encodings have blocks of one element.
    pub const fn block(self) -> Block {
        let (elements, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        };
        Block { elements, bytes }
    }

    /// Bytes of `elements` elements; `None` if they do not fill whole blocks, or on overflow.
    pub const fn bytes(self, elements: u64) -> Option<u64> {
        let block = self.block();
        if !elements.is_multiple_of(block.elements as u64) {
            return None;
        }
        (elements / block.elements as u64).checked_mul(block.bytes as u64)
    }

    /// Whether elements share scales, so that single elements cannot be addressed.
    pub const fn is_quantised(self) -> bool {
        self.block().elements > 1
    }

    /// The name that users know, e.g. `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_whole_blocks_only() {
        assert_eq!(Storage::Q4_1.bytes(576 * 576), Some(576 * 576 / 32 * 20));
        assert_eq!(Storage::Q6K.bytes(255), None);
        assert_eq!(Storage::Q6K.bytes(0), Some(0));
    }

    #[test]
    fn bytes_refuse_to_overflow() {
        assert_eq!(Storage::F32.bytes(u64::MAX), None);
        assert_eq!(Storage::Q8_0.bytes(u64::MAX - 31), None);
    }

    #[test]
    fn names_equal_the_serialised_names() {
        for storage in Storage::ALL {
            assert_eq!(serde_json::to_value(storage).unwrap(), storage.name());
        }
    }
}
