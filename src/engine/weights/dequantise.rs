//! llama.cpp's block formats to f32 (`ggml-quants.c`, the `dequantize_row_*` functions; layouts in `ggml-common.h`).

use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use luthier_core::model::{Arrangement, Storage};

use crate::csrc;
use crate::error::{EngineError, Result};

/// With fewer blocks, a thread costs more than it saves.
const BLOCKS_WORTH_A_THREAD: usize = 4096;

/// Decodes a whole tensor on all cores. `bytes` has exactly the elements of `out`.
pub(super) fn decode(storage: Storage, bytes: &[u8], out: &mut [f32]) {
    let block = storage.block();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let blocks = out.len() / block.elements;
    let each = blocks.div_ceil(workers).max(BLOCKS_WORTH_A_THREAD);
    std::thread::scope(|scope| {
        let parts = bytes.chunks(each * block.bytes).zip(out.chunks_mut(each * block.elements));
        for (bytes, out) in parts {
            scope.spawn(move || decode_part(storage, bytes, out));
        }
    });
}

/// Decodes a matrix on all cores, in rows of `columns` elements, into the architecture's order. Rows are
/// whole blocks, and `out` has exactly the matrix's elements, converted by `convert`.
pub(super) fn decode_rows<T: Send>(
    storage: Storage,
    bytes: &[u8],
    columns: usize,
    arrangement: Arrangement,
    out: &mut [T],
    convert: impl Fn(f32) -> T + Sync,
) -> Result<()> {
    let rows = out.len() / columns.max(1);
    let row_bytes = storage.bytes(columns as u64).map_or(0, |length| length as usize);
    if row_bytes == 0 || bytes.len() != rows * row_bytes || out.len() != rows * columns {
        return Err(EngineError::torch("decode_rows", "the number of bytes does not match the matrix"));
    }
    let each = (BLOCKS_WORTH_A_THREAD * storage.block().elements).div_ceil(columns);
    let parts: Vec<Mutex<&mut [T]>> = out.chunks_mut(each * columns).map(Mutex::new).collect();
    csrc::parallel(parts.len(), &|index| {
        let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        let mut values = vec![0.0; columns];
        for (place, out) in part.chunks_mut(columns).enumerate() {
            let source = arrangement.source_row(index * each + place, rows);
            decode_part(storage, &bytes[source * row_bytes..][..row_bytes], &mut values);
            for (out, &value) in out.iter_mut().zip(&values) {
                *out = convert(value);
            }
        }
    })
}

/// Decodes whole blocks on this thread.
fn decode_part(storage: Storage, bytes: &[u8], out: &mut [f32]) {
    match storage {
        Storage::F32 => each(bytes, out, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        Storage::F16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = f16::from_le_bytes(*b).to_f32();
        }),
        Storage::BF16 => {
            each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = bf16::from_le_bytes(*b).to_f32());
        }
        Storage::Q8_0 => each(bytes, out, q8_0),
        Storage::Q4_0 => each(bytes, out, q4_0),
        Storage::Q4_1 => each(bytes, out, q4_1),
        Storage::Q5_0 => each(bytes, out, q5_0),
        Storage::Q5_1 => each(bytes, out, q5_1),
        Storage::Q4K => each(bytes, out, q4_k),
        Storage::Q5K => each(bytes, out, q5_k),
        Storage::Q6K => each(bytes, out, q6_k),
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (bytes, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<ELEMENTS>().0) {
        block(bytes, out);
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// f16 scale, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (y, &q) in out.iter_mut().zip(&block[2..]) {
        *y = f32::from(q.cast_signed()) * scale;
    }
}

/// f16 scale, 16 bytes: low nibbles are elements 0..16, high nibbles 16..32; 8 means 0.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = (f32::from(q & 15) - 8.0) * scale;
        out[i + 16] = (f32::from(q >> 4) - 8.0) * scale;
    }
}

/// f16 scale and minimum, 16 bytes as in Q4_0.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * scale + minimum;
        out[i + 16] = f32::from(q >> 4) * scale + minimum;
    }
}

/// The fifth bits of a block of 32: bit `i` is that of element `i`.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// f16 scale, 32 fifth bits, 16 bytes as in Q4_0; 16 means 0.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (scale, high) = (half_at(block, 0), fifth_bits(block, 2));
    for (i, &q) in block[6..].iter().enumerate() {
        let (low, upper) = (high >> i & 1, high >> (i + 16) & 1);
        out[i] = ((u32::from(q & 15) | low << 4) as f32 - 16.0) * scale;
        out[i + 16] = ((u32::from(q >> 4) | upper << 4) as f32 - 16.0) * scale;
    }
}

/// f16 scale and minimum, then as in Q5_0.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum, high) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    for (i, &q) in block[8..].iter().enumerate() {
        let (low, upper) = (high >> i & 1, high >> (i + 16) & 1);
        out[i] = (u32::from(q & 15) | low << 4) as f32 * scale + minimum;
        out[i + 16] = (u32::from(q >> 4) | upper << 4) as f32 * scale + minimum;
    }
}

/// The 6-bit scale and minimum of group `j` of 8, packed into 12 bytes (`get_scale_min_k4`).
fn k_scale(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// f16 factors of the 6-bit scales and minimums, 12 bytes of those, then 128 bytes: every 32 bytes have two
/// groups of 32, low nibbles first.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (pair, (q, out)) in block[16..].chunks(32).zip(out.chunks_mut(64)).enumerate() {
        let (low, high) = (k_scale(&block[4..16], 2 * pair), k_scale(&block[4..16], 2 * pair + 1));
        for (i, &q) in q.iter().enumerate() {
            out[i] = scale * low.0 * f32::from(q & 15) - minimum * low.1;
            out[i + 32] = scale * high.0 * f32::from(q >> 4) - minimum * high.1;
        }
    }
}

/// As Q4_K with 32 bytes of fifth bits before the nibbles: bit `g` of byte `i` belongs to element `i` of group `g`.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for (pair, (q, out)) in block[48..].chunks(32).zip(out.chunks_mut(64)).enumerate() {
        let (low, high) = (k_scale(&block[4..16], 2 * pair), k_scale(&block[4..16], 2 * pair + 1));
        for (i, &q) in q.iter().enumerate() {
            let (first, second) = (fifth[i] >> (2 * pair) & 1, fifth[i] >> (2 * pair + 1) & 1);
            out[i] = scale * low.0 * f32::from(q & 15 | first << 4) - minimum * low.1;
            out[i + 32] = scale * high.0 * f32::from(q >> 4 | second << 4) - minimum * high.1;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one per 16 elements), f16 scale; 32
/// means 0.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (half, out) in out.chunks_mut(128).enumerate() {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..128 + 32 * half + 32];
        let scales = &block[192 + 8 * half..192 + 8 * half + 8];
        for i in 0..32 {
            let quants = [
                low[i] & 15 | (high[i] & 3) << 4,
                low[i + 32] & 15 | (high[i] >> 2 & 3) << 4,
                low[i] >> 4 | (high[i] >> 4 & 3) << 4,
                low[i + 32] >> 4 | (high[i] >> 6) << 4,
            ];
            for (quarter, quant) in quants.into_iter().enumerate() {
                let group = f32::from(scales[2 * quarter + i / 16].cast_signed());
                out[32 * quarter + i] = scale * group * (f32::from(quant) - 32.0);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes with all patterns, and finite scales at the given places.
    fn block(length: usize, halves: &[(usize, f32)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8).collect();
        for &(at, value) in halves {
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
        bytes
    }

    /// Decodes `bytes` and compares them with a formula for element `i`. The scales in these tests are powers
    /// of two, so that nothing is rounded.
    fn assert_elements(storage: Storage, bytes: &[u8], formula: impl Fn(usize) -> f32) {
        let count = bytes.len() / storage.block().bytes * storage.block().elements;
        let mut found = vec![f32::NAN; count];
        decode(storage, bytes, &mut found);
        let expected: Vec<f32> = (0..count).map(formula).collect();
        assert_eq!(found, expected, "{storage}");
    }

    #[test]
    fn plain_formats_are_read_unchanged() {
        let values = [1.0_f32, -2.5, 0.15625];
        let single: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let half: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let brain: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        for (storage, bytes) in [(Storage::F32, single), (Storage::F16, half), (Storage::BF16, brain)] {
            assert_elements(storage, &bytes, |i| values[i]);
        }
    }

    #[test]
    fn q8_0_scales_signed_bytes() {
        let bytes = block(34, &[(0, 0.5)]);
        assert_elements(Storage::Q8_0, &bytes, |i| 0.5 * f32::from(bytes[2 + i].cast_signed()));
    }

    #[test]
    fn nibble_formats_follow_their_formulae() {
        // Element i is in byte i % 16, in the low half for i < 16; its fifth bit is bit i of 32.
        let nibble = |bytes: &[u8], i: usize| f32::from(bytes[i % 16] >> (4 * (i / 16)) & 15);
        let fifth = |bytes: &[u8], i: usize| f32::from((bytes[i / 8] >> (i % 8) & 1) * 16);
        let b = block(18, &[(0, 0.25)]);
        assert_elements(Storage::Q4_0, &b, |i| 0.25 * (nibble(&b[2..], i) - 8.0));
        let b = block(20, &[(0, 0.25), (2, -1.5)]);
        assert_elements(Storage::Q4_1, &b, |i| 0.25 * nibble(&b[4..], i) - 1.5);
        let b = block(22, &[(0, 0.25)]);
        assert_elements(Storage::Q5_0, &b, |i| 0.25 * (nibble(&b[6..], i) + fifth(&b[2..6], i) - 16.0));
        let b = block(24, &[(0, 0.25), (2, -1.5)]);
        assert_elements(Storage::Q5_1, &b, |i| 0.25 * (nibble(&b[8..], i) + fifth(&b[4..8], i)) - 1.5);
    }

    #[test]
    fn k_formats_follow_their_formulae() {
        // Group g of 32 elements: scale and minimum of 6 bits each, the upper four groups split over two places.
        let group = |s: &[u8], g: usize| -> (f32, f32) {
            let (scale, minimum) = match g {
                0..4 => (s[g] & 63, s[g + 4] & 63),
                _ => ((s[g + 4] & 15) + (s[g - 4] >> 6) * 16, (s[g + 4] >> 4) + (s[g] >> 6) * 16),
            };
            (f32::from(scale), f32::from(minimum))
        };
        let b = block(144, &[(0, 0.125), (2, 0.5)]);
        assert_elements(Storage::Q4K, &b, |i| {
            let (group, within) = (group(&b[4..16], i / 32), i % 32);
            let q = b[16 + 32 * (i / 64) + within] >> (4 * (i / 32 % 2)) & 15;
            0.125 * group.0 * f32::from(q) - 0.5 * group.1
        });
        let b = block(176, &[(0, 0.125), (2, 0.5)]);
        assert_elements(Storage::Q5K, &b, |i| {
            let (group, within) = (group(&b[4..16], i / 32), i % 32);
            let low = b[48 + 32 * (i / 64) + within] >> (4 * (i / 32 % 2)) & 15;
            let fifth = b[16 + within] >> (i / 32) & 1;
            0.125 * group.0 * f32::from(low + 16 * fifth) - 0.5 * group.1
        });
    }

    #[test]
    fn q6_k_follows_its_formula() {
        let b = block(210, &[(208, 0.0625)]);
        assert_elements(Storage::Q6K, &b, |i| {
            let (half, quarter, within) = (i / 128, i / 32 % 4, i % 32);
            let low = b[64 * half + 32 * (quarter % 2) + within] >> (4 * (quarter / 2)) & 15;
            let high = b[128 + 32 * half + within] >> (2 * quarter) & 3;
            let scale = b[192 + i / 16].cast_signed();
            0.0625 * f32::from(scale) * (f32::from(low + 16 * high) - 32.0)
        });
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let blocks = 20_000;
        let bytes: Vec<u8> = (0..blocks).flat_map(|n| block(18, &[(0, n as f32 / 64.0)])).collect();
        let mut whole = vec![0.0; blocks * 32];
        decode_part(Storage::Q4_0, &bytes, &mut whole);
        assert_elements(Storage::Q4_0, &bytes, |i| whole[i]);
    }

    /// This many elements in blocks of arbitrary content, with scales that are finite and not large.
    pub(in crate::weights) fn some_blocks(storage: Storage, elements: usize) -> Vec<u8> {
        let size = storage.block().bytes;
        let byte = |place: u64| {
            let any = (luthier_core::random::unit(place) * 256.0) as u8;
            let within = place as usize % size;
            let scale = match storage {
                Storage::Q6K => within == 209,
                Storage::BF16 | Storage::Q4_0 | Storage::Q5_0 | Storage::Q8_0 => within == 1,
                _ => matches!(within, 1 | 3),
            };
            // Keeps the exponents of scales small.
            if scale { any & 0x80 | 0x28 | any & 7 } else { any }
        };
        (0..storage.bytes(elements as u64).unwrap()).map(byte).collect()
    }

    #[test]
    fn products_with_stored_matrices_equal_products_with_decoded_ones() {
        let (rows, columns) = (24_usize, 768_usize);
        let unit = |place: u64| luthier_core::random::unit(place) as f32;
        for storage in Storage::ALL.into_iter().filter(|&storage| csrc::can_multiply(storage)) {
            let bytes = some_blocks(storage, rows * columns);
            let mut dense = vec![0.0; rows * columns];
            decode(storage, &bytes, &mut dense);
            let dense = tch::Tensor::from_slice(&dense).view([rows as i64, columns as i64]);
            for paired_heads in [None, Some(3)] {
                let arrangement =
                    paired_heads.map_or(Arrangement::Plain, |heads| Arrangement::RotaryPairs { heads });
                let order: Vec<i64> = (0..rows).map(|row| arrangement.source_row(row, rows) as i64).collect();
                let restored = dense.index_select(0, &tch::Tensor::from_slice(&order));
                for tokens in [1_usize, 2, 3, 4, 7] {
                    let x: Vec<f32> = (0..tokens * columns).map(|i| unit(7919 + i as u64) - 0.5).collect();
                    let x = tch::Tensor::from_slice(&x).view([tokens as i64, columns as i64]);
                    let matrix = csrc::StoredMatrix { bytes: &bytes, storage, rows, columns, paired_heads };
                    let found = csrc::few_products(&x, &[csrc::FewMatrix::Stored(matrix)]).unwrap().remove(0);
                    let expected = x.matmul(&restored.tr());
                    let error = (&found - &expected).abs().max().double_value(&[]);
                    let largest = x.abs().matmul(&restored.tr().abs()).max().double_value(&[]);
                    assert!(error <= 1e-6 * largest, "{storage} {tokens}: {error} of {largest}");
                }
            }
            let short = csrc::StoredMatrix { bytes: &bytes[1..], storage, rows, columns, paired_heads: None };
            let x = tch::Tensor::zeros([1, 768], (tch::Kind::Float, tch::Device::Cpu));
            assert!(csrc::few_products(&x, &[csrc::FewMatrix::Stored(short)]).is_err());
        }
    }
}
