//! llama.cpp's block formats to f32 (`ggml-quants.c`, the `dequantize_row_*` functions; layouts in `ggml-common.h`).

use half::{bf16, f16};
use luthier_core::model::Storage;

/// Decodes a whole tensor on all cores. `bytes` holds exactly the elements of `out`.
pub(super) fn decode(storage: Storage, bytes: &[u8], out: &mut [f32]) {
    let block = storage.block();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let blocks = out.len() / block.elements;
    // Below this a thread costs more than it saves.
    const BLOCKS_WORTH_A_THREAD: usize = 4096;
    let each = blocks.div_ceil(workers).max(BLOCKS_WORTH_A_THREAD);
    std::thread::scope(|scope| {
        let parts = bytes.chunks(each * block.bytes).zip(out.chunks_mut(each * block.elements));
        for (bytes, out) in parts {
            scope.spawn(move || decode_part(storage, bytes, out));
        }
    });
}

/// Decodes whole blocks on this thread.
fn decode_part(storage: Storage, bytes: &[u8], out: &mut [f32]) {
    match storage {
        Storage::F32 => each(bytes, out, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        Storage::F16 => {
            each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = f16::from_le_bytes(*b).to_f32())
        }
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

/// f16 scale, 16 bytes: low nibbles are elements 0..16, high ones 16..32; 8 stands for 0.
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

/// The fifth bits of a block of 32, one of element `i` at bit `i`.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// f16 scale, 32 fifth bits, 16 bytes as in Q4_0; 16 stands for 0.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (scale, high) = (half_at(block, 0), fifth_bits(block, 2));
    for (i, &q) in block[6..].iter().enumerate() {
        let (low, upper) = (high >> i & 1, high >> (i + 16) & 1);
        out[i] = ((u32::from(q & 15) | low << 4) as f32 - 16.0) * scale;
        out[i + 16] = ((u32::from(q >> 4) | upper << 4) as f32 - 16.0) * scale;
    }
}

/// f16 scale and minimum, then as Q5_0.
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

/// f16 scale and minimum of the 6-bit ones, 12 bytes of those, 128 bytes: each 32 hold two groups of 32, low nibbles
/// first.
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

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one for 16 elements), f16 scale; 32 stands for 0.
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
mod tests {
    use super::*;

    /// Bytes with every pattern in them, and finite scales at the given places.
    fn block(length: usize, halves: &[(usize, f32)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8).collect();
        for &(at, value) in halves {
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
        bytes
    }

    fn decoded(storage: Storage, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / storage.block().bytes * storage.block().elements];
        decode(storage, bytes, &mut out);
        out
    }

    #[test]
    fn q8_0_scales_signed_bytes() {
        let bytes = block(34, &[(0, 0.5)]);
        let out = decoded(Storage::Q8_0, &bytes);
        for i in 0..32 {
            assert_eq!(out[i], 0.5 * f32::from(bytes[2 + i] as i8));
        }
    }

    #[test]
    fn nibble_formats_follow_their_formulae() {
        // Element i lies in byte i % 16, in its low half for i < 16.
        let nibble = |bytes: &[u8], i: usize| (bytes[i % 16] >> (4 * (i / 16)) & 15) as i32;
        let fifth = |bytes: &[u8], i: usize| i32::from(bytes[i / 8] >> (i % 8) & 1) << 4;
        let (b0, b1) = (block(18, &[(0, 0.25)]), block(20, &[(0, 0.25), (2, -1.5)]));
        let (c0, c1) = (block(22, &[(0, 0.25)]), block(24, &[(0, 0.25), (2, -1.5)]));
        let (o0, o1) = (decoded(Storage::Q4_0, &b0), decoded(Storage::Q4_1, &b1));
        let (p0, p1) = (decoded(Storage::Q5_0, &c0), decoded(Storage::Q5_1, &c1));
        for i in 0..32 {
            assert_eq!(o0[i], 0.25 * (nibble(&b0[2..], i) - 8) as f32);
            assert_eq!(o1[i], 0.25 * nibble(&b1[4..], i) as f32 - 1.5);
            assert_eq!(p0[i], 0.25 * ((nibble(&c0[6..], i) | fifth(&c0[2..6], i)) - 16) as f32);
            assert_eq!(p1[i], 0.25 * (nibble(&c1[8..], i) | fifth(&c1[4..8], i)) as f32 - 1.5);
        }
    }

    #[test]
    fn k_formats_follow_their_formulae() {
        // Group g of 32 elements: scale and minimum of 6 bits each, the upper four groups split over two places.
        let group = |s: &[u8], g: usize| -> (f32, f32) {
            if g < 4 {
                (f32::from(s[g] & 63), f32::from(s[g + 4] & 63))
            } else {
                (
                    f32::from((s[g + 4] & 0xF) | ((s[g - 4] >> 6) << 4)),
                    f32::from((s[g + 4] >> 4) | ((s[g] >> 6) << 4)),
                )
            }
        };
        let b = block(144, &[(0, 0.125), (2, 0.5)]);
        let o = decoded(Storage::Q4K, &b);
        let c = block(176, &[(0, 0.125), (2, 0.5)]);
        let p = decoded(Storage::Q5K, &c);
        for e in 0..256 {
            let (g, i) = (e / 32, e % 32);
            let shift = 4 * (g % 2);
            let (scale, minimum) = group(&b[4..16], g);
            let q = f32::from(b[16 + 32 * (g / 2) + i] >> shift & 15);
            assert_eq!(o[e], 0.125 * scale * q - 0.5 * minimum, "Q4_K {e}");
            let (scale, minimum) = group(&c[4..16], g);
            let q = (c[48 + 32 * (g / 2) + i] >> shift & 15) + 16 * (c[16 + i] >> g & 1);
            assert_eq!(p[e], 0.125 * scale * f32::from(q) - 0.5 * minimum, "Q5_K {e}");
        }
    }

    #[test]
    fn q6_k_follows_its_formula() {
        let b = block(210, &[(208, 0.0625)]);
        let o = decoded(Storage::Q6K, &b);
        for e in 0..256 {
            let (half, within) = (e / 128, e % 128);
            let (quarter, i) = (within / 32, within % 32);
            let low = b[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter / 2)) & 15;
            let high = b[128 + 32 * half + i] >> (2 * quarter) & 3;
            let scale = f32::from(b[192 + 8 * half + 2 * quarter + i / 16] as i8);
            assert_eq!(o[e], 0.0625 * scale * (f32::from(low | high << 4) - 32.0), "{e}");
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let blocks = 20_000;
        let bytes: Vec<u8> = (0..blocks).flat_map(|n| block(18, &[(0, n as f32 / 64.0)])).collect();
        let mut whole = vec![0.0; blocks * 32];
        decode_part(Storage::Q4_0, &bytes, &mut whole);
        assert_eq!(whole, decoded(Storage::Q4_0, &bytes));
    }
}
