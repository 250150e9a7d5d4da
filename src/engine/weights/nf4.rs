//! NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3): 4 bits per element, levels that are
//! quantiles of a normal distribution, and for every 64 elements a scale that is itself stored in 8 bits. The
//! bytes equal those of bitsandbytes (`bitsandbytes/functional.py`, `quantize_4bit` with
//! `compress_statistics`).
//!
//! A matrix is treated as one row of elements. Block b of 64 is divided by its largest magnitude `s[b]`, and
//! each element is replaced by the nearest level. The mean of all `s` is the *offset*. `s - offset` is
//! divided, 256 at a time, by its largest magnitude, a *nested* scale, and replaced by the nearest entry of
//! the dynamic 8-bit code.

use std::sync::OnceLock;

use luthier_core::model::{NF4_BLOCK, NF4_SCALES};

/// With fewer blocks, a thread costs more than it saves.
const BLOCKS_WORTH_A_THREAD: usize = 1024;

/// The values of the 16 codes (appendix E of the paper).
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of 0.
pub const ZERO: u8 = 7;

/// Midpoints between adjacent levels. A value at a midpoint gets the level below.
pub const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = f32::midpoint(LEVELS[i], LEVELS[i + 1]);
        i += 1;
    }
    bounds
};

/// Smallest divisor, for blocks that are all zeros.
pub const SMALLEST: f32 = 1e-38;

/// A matrix in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Two elements per byte, the first in the upper half.
    pub codes: Vec<u8>,
    /// One per block of 64 elements, in the dynamic code.
    pub scales: Vec<u8>,
    /// One per 256 scales.
    pub nested: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

/// The dynamic 8-bit code (arXiv 1511.04561, in the signed form of `create_dynamic_map` in
/// `bitsandbytes/functional.py`): seven decades below 1, each with twice as many evenly spaced fractions as
/// the decade below; in ascending order.
pub fn dynamic_code() -> &'static [f32; 256] {
    static CODE: OnceLock<[f32; 256]> = OnceLock::new();
    CODE.get_or_init(|| {
        const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
        let mut code = [0.0; 256];
        let mut next = 0;
        for (decade, unit) in DECADES.into_iter().enumerate() {
            let fractions = 1 << decade;
            let edge = |place| edge(place, fractions);
            for place in 0..fractions {
                let value = unit * f32::midpoint(edge(place), edge(place + 1));
                (code[next], code[next + 1]) = (value, -value);
                next += 2;
            }
        }
        // These are 254 entries; the last two are 0 and 1.
        code[255] = 1.0;
        code.sort_by(f32::total_cmp);
        code
    })
}

/// Edge `place` of `parts` equal parts of 0.1 to 1, rounded like `torch.linspace`: from the nearer end, in
/// one step.
fn edge(place: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1_f32) / parts as f32;
    if place < parts.div_ceil(2) {
        step.mul_add(place as f32, 0.1)
    } else {
        (-step).mul_add((parts - place) as f32, 1.0)
    }
}

/// Encodes a matrix on all cores; `None` if an element is not finite.
pub fn encode(values: &[f32]) -> Option<Encoded> {
    let blocks = values.len().div_ceil(NF4_BLOCK);
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut largest = vec![0.0; blocks];
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let each = blocks.div_ceil(workers).max(BLOCKS_WORTH_A_THREAD);
    std::thread::scope(|scope| {
        let parts = values.chunks(each * NF4_BLOCK).zip(codes.chunks_mut(each * NF4_BLOCK / 2));
        for ((values, codes), largest) in parts.zip(largest.chunks_mut(each)) {
            scope.spawn(move || {
                let blocks = values.chunks(NF4_BLOCK).zip(codes.chunks_mut(NF4_BLOCK / 2));
                for ((values, codes), largest) in blocks.zip(largest) {
                    *largest = encode_block(values, codes);
                }
            });
        }
    });
    let Scales { scales, nested, offset } = encode_scales(&largest)?;
    Some(Encoded { codes, scales, nested, offset })
}

/// The scales of a matrix, themselves encoded; see [`Encoded`].
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    pub scales: Vec<u8>,
    pub nested: Vec<f32>,
    pub offset: f32,
}

/// Encodes the largest magnitude of each block; `None` if one is not finite.
pub fn encode_scales(largest: &[f32]) -> Option<Scales> {
    if !largest.iter().all(|value| value.is_finite()) {
        return None;
    }
    let offset = mean(largest);
    let mut scales = Vec::with_capacity(largest.len());
    let mut nested = Vec::with_capacity(largest.len().div_ceil(NF4_SCALES));
    for largest in largest.chunks(NF4_SCALES) {
        let centred: Vec<f32> = largest.iter().map(|value| value - offset).collect();
        let scale = centred.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        nested.push(scale);
        let code = |value: &f32| if scale == 0.0 { 0 } else { nearest(value * (1.0 / scale)) };
        scales.extend(centred.iter().map(code));
    }
    Some(Scales { scales, nested, offset })
}

/// Encodes up to 64 elements. Returns their largest magnitude, which is not finite if an element is not.
fn encode_block(values: &[f32], codes: &mut [u8]) -> f32 {
    // Without the sign, the bits of floats have the same order as the floats, and NaN comes last.
    let magnitude = |value: &f32| value.to_bits() & !(1 << 31);
    let largest = f32::from_bits(values.iter().map(magnitude).max().unwrap_or_default());
    let divisor = largest.max(SMALLEST);
    let mut levels = [ZERO; NF4_BLOCK];
    if let Ok(values) = <&[f32; NF4_BLOCK]>::try_from(values) {
        let factor = 1.0 / divisor;
        for (level, value) in levels.iter_mut().zip(values) {
            *level = level_of(value * factor);
        }
    } else {
        // bitsandbytes divides in a last block that is not full, and multiplies by the inverse in all others.
        for (level, value) in levels.iter_mut().zip(values) {
            *level = level_of(value / divisor);
        }
    }
    for (code, pair) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
        *code = pair[0] << 4 | pair[1];
    }
    largest
}

/// The mean, summed like torch on one thread of a processor with 8 floats per register (`cascade_sum` in
/// `aten/src/ATen/native/cpu/SumKernel.cpp`); 0 if empty. Any other order rounds differently and would change
/// every element.
fn mean(values: &[f32]) -> f32 {
    const REGISTER: usize = 8;
    let (rows, rest) = values.as_chunks::<{ 4 * REGISTER }>();
    let mut sums = cascade(rows);
    let registers = rest.chunks_exact(REGISTER);
    let rest = registers.remainder();
    let (first, others) = sums.split_at_mut(REGISTER);
    for register in registers.chain(others.chunks(REGISTER)) {
        add(first, register);
    }
    let sum = rest.iter().chain(&*first).fold(0.0, |sum, value| sum + value);
    sum / values.len().max(1) as f32
}

/// Sum of rows. The sum of a run of rows is added to the level above, and a run of those to the next.
fn cascade<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    const LEVELS: usize = 4;
    let power = (rows.len().next_power_of_two().ilog2() as usize / LEVELS).max(4);
    let run = 1_usize << power;
    let mut levels = [[0.0; N]; LEVELS];
    for (done, row) in (1..).zip(rows) {
        add(&mut levels[0], row);
        let mut level = 1;
        while done % run == 0 && level < LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [0.0; N]);
            add(&mut levels[level], &below);
            if done >> (level * power) & (run - 1) != 0 {
                break;
            }
            level += 1;
        }
    }
    let [mut sum, above @ ..] = levels;
    for level in &above {
        add(&mut sum, level);
    }
    sum
}

fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

/// The code of the level nearest to a value from -1 to 1.
#[inline]
fn level_of(value: f32) -> u8 {
    BOUNDS.iter().map(|&bound| u8::from(bound < value)).sum()
}

/// The index in the dynamic code nearest to a value from -1 to 1. The value is first rounded to one of 65,536
/// steps, as bitsandbytes does on a CPU (`csrc/cpu_ops.cpp`, `norm_to_lut_index`). Its CUDA kernel does not
/// round; results differ only within half a step of a tie.
fn nearest(value: f32) -> u8 {
    const STEPS: f32 = 65_535.0;
    static BOUNDS: OnceLock<Vec<f32>> = OnceLock::new();
    let bounds = BOUNDS.get_or_init(|| {
        dynamic_code().windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect::<Vec<_>>()
    });
    let step = ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5).trunc();
    let rounded = -1.0 + 2.0 * step / STEPS;
    bounds.partition_point(|&bound| bound < rounded) as u8
}

/// Decodes a matrix into `out`, which has exactly its size.
pub fn decode(encoded: &Encoded, out: &mut [f32]) {
    let blocks = out.chunks_mut(NF4_BLOCK).zip(encoded.codes.chunks(NF4_BLOCK / 2));
    for (block, ((out, codes), &scale)) in blocks.zip(&encoded.scales).enumerate() {
        let scale = dynamic_code()[usize::from(scale)] * encoded.nested[block / NF4_SCALES] + encoded.offset;
        for (pair, &code) in out.chunks_mut(2).zip(codes) {
            for (value, code) in pair.iter_mut().zip([code >> 4, code & 15]) {
                *value = LEVELS[usize::from(code)] * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tch::{Kind, Tensor};

    use super::*;
    use crate::weights::safetensors;

    fn reference(name: &str) -> BTreeMap<String, Tensor> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/training"));
        safetensors::read(&folder.join(name)).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        assert_eq!(tensor.kind(), Kind::Uint8);
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    fn decoded(encoded: &Encoded, count: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; count];
        decode(encoded, &mut out);
        out
    }

    #[test]
    fn tables_are_those_of_bitsandbytes() {
        let stored = reference("nf4/nf4.safetensors");
        assert_eq!(floats(&stored["code_nf4"]), LEVELS);
        assert_eq!(floats(&stored["code_dynamic8"]), dynamic_code());
        assert_eq!(LEVELS.iter().position(|&level| level == 0.0), Some(usize::from(ZERO)));
    }

    #[test]
    fn encoded_matrices_equal_those_of_bitsandbytes() {
        let stored = reference("nf4/nf4.safetensors");
        for name in ["randn_128x64", "odd_33x50", "zeros_and_outlier_8x64", "bf16_64x128"] {
            let part = |part: &str| &stored[&format!("{name}.{part}")];
            let weight = floats(part("weight"));
            let encoded = encode(&weight).unwrap();
            assert_eq!(encoded.codes, bytes(part("packed")), "{name}");
            assert_eq!(encoded.scales, bytes(part("absmax_q8")), "{name}");
            assert_eq!(encoded.nested, floats(part("nested_absmax")), "{name}");
            assert_eq!(vec![encoded.offset], floats(part("offset")), "{name}");
            assert_eq!(decoded(&encoded, weight.len()), floats(part("dequant")), "{name}");
        }
    }

    #[test]
    fn encoded_scales_equal_those_of_bitsandbytes_even_at_a_tie() {
        let stored = reference("nf4/nf4.safetensors");
        let part = |part: &str| &stored[&format!("smollm2.layers.0.k_proj.{part}")];
        // The weight itself is not stored. This one has the same scales: each block is zero except for its
        // first element.
        let mut weight = vec![0.0; 192 * 576];
        for (block, largest) in weight.chunks_mut(NF4_BLOCK).zip(floats(part("absmax_f32"))) {
            block[0] = largest;
        }
        let encoded = encode(&weight).unwrap();
        assert_eq!(encoded.scales, bytes(part("absmax_q8")));
        assert_eq!(encoded.nested, floats(part("nested_absmax")));
        assert_eq!(vec![encoded.offset], floats(part("offset")));
        let whole = Encoded { codes: bytes(part("packed")), ..encoded };
        let values = decoded(&whole, 192 * 576);
        assert_eq!(values[..16 * 576], floats(part("dequant_rows0_16")));
        let sums = floats(part("dequant_sha"));
        let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        let magnitudes: f64 = values.iter().map(|&value| f64::from(value.abs())).sum();
        assert_eq!(vec![sum as f32, magnitudes as f32], sums);
    }

    #[test]
    fn a_decoded_first_layer_equals_that_of_bitsandbytes() {
        let model = safetensors::read(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/references/tiny/llama/model.safetensors"
        )));
        let (model, stored) = (model.unwrap(), reference("llama/qlora-nf4/dequant_layer0.safetensors"));
        assert_eq!(stored.len(), 7);
        for (name, expected) in stored {
            let weight = floats(&model[&name.replace(".dequant", ".weight")]);
            let encoded = encode(&weight).unwrap();
            assert!(decoded(&encoded, weight.len()) == floats(&expected), "{name}");
        }
    }

    #[test]
    fn the_mean_of_many_numbers_is_nearly_exact() {
        // Enough for every level of the cascade, and not a multiple of the register size.
        let values: Vec<f32> = (0..4_000_003).map(|i| luthier_core::random::unit(i) as f32).collect();
        let exact = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        assert!((f64::from(mean(&values)) - exact).abs() <= 1e-7, "{} {exact}", mean(&values));
        assert_eq!(mean(&[]).to_bits(), 0);
    }

    #[test]
    fn an_odd_last_element_is_padded_with_zero() {
        let encoded = encode(&[0.5; 65]).unwrap();
        assert_eq!((encoded.codes.len(), encoded.codes[32]), (33, 15 << 4 | ZERO));
        assert_eq!(decoded(&encoded, 65), [0.5; 65]);
        let nothing = encode(&[]).unwrap();
        assert_eq!(nothing, Encoded { codes: vec![], scales: vec![], nested: vec![], offset: 0.0 });
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 200];
            values[130] = wrong;
            assert_eq!(encode(&values), None, "{wrong}");
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let count = 5 * BLOCKS_WORTH_A_THREAD * NF4_BLOCK + 17;
        let values: Vec<f32> =
            (0..count as u64).map(|i| luthier_core::random::unit(i) as f32 - 0.5).collect();
        let encoded = encode(&values).unwrap();
        let mut codes = vec![0; count.div_ceil(2)];
        for (values, codes) in values.chunks(NF4_BLOCK).zip(codes.chunks_mut(NF4_BLOCK / 2)) {
            encode_block(values, codes);
        }
        assert_eq!(encoded.codes, codes);
        let furthest = decoded(&encoded, count)
            .iter()
            .zip(&values)
            .fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        // Half of the widest gap between levels, plus the scale's error.
        assert!(furthest <= 0.5 * (0.304 / 2.0 + 0.01), "{furthest}");
    }
}
