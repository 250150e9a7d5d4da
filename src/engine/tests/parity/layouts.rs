//! The same tokens in other layouts: end to end, padded on the left, in parts through a cache.

use luthier_engine::layers::{Active, Mask, Pass};
use tch::{Kind, Tensor};

use crate::support::{columns, distance, distance_where, hidden, logits, logits_in_pieces, tensors, tiny};

#[test]
fn bf16_documents_and_cache_are_close_to_f32() {
    let (model, stored) = (tiny(Kind::BFloat16), tensors("tiny/llama/ref.safetensors"));
    let ids = stored["input_ids"].narrow(0, 0, 1);
    let whole = logits(&model, &ids, Active::Base);
    let pieces = logits_in_pieces(&model, &ids, &[20, 1, 1, 5]);
    // Sums are taken in another order, and bf16 has 8 bits of precision.
    assert!(distance(&pieces, &whole) <= 0.1);
    let ids = Tensor::cat(&[&ids, &ids.narrow(1, 0, 9)], 1);
    let positions = Tensor::cat(&[columns(1, 27), columns(1, 9)], 1);
    let mask = Mask::Documents(&[27, 9]);
    let pass = Pass { positions: &positions, mask, adapters: Active::Base, noise: None };
    let packed = model.logits(&model.hidden(&ids, &pass, None).unwrap(), Active::Base).unwrap();
    assert!(distance(&packed.narrow(1, 0, 27), &whole) <= 0.1);
    assert!(distance(&packed.narrow(1, 27, 9), &whole.narrow(1, 0, 9)) <= 0.1);
}

#[test]
fn documents_of_one_length_equal_rows() {
    let (model, stored) = (tiny(Kind::Float), tensors("tiny/llama/ref.safetensors"));
    let ids = stored["input_ids"].reshape([1, 81]);
    let positions = columns(3, 27).reshape([1, 81]);
    let mask = Mask::Documents(&[27, 27, 27]);
    let pass = Pass { positions: &positions, mask, adapters: Active::Base, noise: None };
    let packed = model.hidden(&ids, &pass, None).unwrap().reshape([3, 27, -1]);
    assert_eq!(packed, hidden(&model, &stored["input_ids"], Active::Base));
}

#[test]
fn padding_on_the_left_does_not_change_other_tokens() {
    let (model, stored) = (tiny(Kind::Float), tensors("tiny/llama/ref.safetensors"));
    let lengths = [27_i64, 19, 11];
    let shifted = |x: &Tensor| {
        let rows: Vec<Tensor> = lengths
            .iter()
            .enumerate()
            .map(|(row, &length)| x.get(row as i64).roll([27 - length], [0]))
            .collect();
        Tensor::stack(&rows, 0)
    };
    let (ids, counts) = (shifted(&stored["input_ids"]), shifted(&stored["attention_mask"]));
    let positions = (counts.cumsum(1, Kind::Int64) - 1).clamp_min(0);
    let columns = counts.to_kind(Kind::Bool);
    let pass =
        Pass { positions: &positions, mask: Mask::Columns(&columns), adapters: Active::Base, noise: None };
    let found = model.logits(&model.hidden(&ids, &pass, None).unwrap(), Active::Base).unwrap();
    let error = distance_where(&counts, &found, &shifted(&stored["logits"]));
    assert!(error <= 1e-5, "{error}");
}

#[cfg(target_arch = "x86_64")]
fn has_512_bit_vectors() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_512_bit_vectors() -> bool {
    false
}

#[test]
fn a_cache_filled_in_parts_gives_the_same_logits() {
    let (model, stored) = (tiny(Kind::Float), tensors("tiny/llama/ref.safetensors"));
    let ids = &stored["input_ids"];
    // Kernels without 512-bit vectors add fewer partial sums at a time, and round slightly more.
    let bound = if has_512_bit_vectors() { 1e-5 } else { 1.2e-5 };
    for pieces in [&[27][..], &[1; 27], &[10, 1, 1, 15], &[1, 26]] {
        let error = distance_where(
            &stored["attention_mask"],
            &logits_in_pieces(&model, ids, pieces),
            &stored["logits"],
        );
        assert!(error <= bound, "{pieces:?}: {error}");
    }
}

#[test]
fn mismatched_inputs_are_errors() {
    let model = tiny(Kind::Float);
    let (ids, positions) = (columns(2, 8), columns(2, 8));
    let refused = |ids: &Tensor, mask: Mask| {
        let pass = Pass { positions: &positions, mask, adapters: Active::Base, noise: None };
        model.hidden(ids, &pass, None).is_err()
    };
    assert!(refused(&columns(2, 7), Mask::Causal));
    assert!(refused(&columns(1, 16), Mask::Causal));
    assert!(refused(&ids, Mask::Documents(&[8, 7])));
    assert!(refused(&ids, Mask::Documents(&[17, -1])));
    assert!(refused(&(&ids + 10_000), Mask::Causal));
    let adapters = Active::Rows(&[None, None, None]);
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
    assert!(model.hidden(&ids, &pass, None).is_err());
}
