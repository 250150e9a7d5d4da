use proptest::prelude::*;

use super::*;
use crate::model::gguf::writer::{self, Writer};
use crate::testing::{damage, damaged};

fn read(bytes: &[u8]) -> Result<Header, Fault> {
    Header::read(bytes, bytes.len() as u64)
}

fn refusal(bytes: &[u8]) -> String {
    match read(bytes).unwrap_err() {
        Fault::Damaged(problem) => problem,
        other => panic!("{other:?}"),
    }
}

fn good() -> Writer {
    let nested = [
        ARRAY.to_le_bytes().to_vec(),
        1_u64.to_le_bytes().to_vec(),
        vec![0, 0, 0, 0],
        vec![2, 0, 0, 0, 0, 0, 0, 0, 7, 8],
    ]
    .concat();
    Writer::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10_000.0)
        .truth("tokenizer.ggml.add_bos_token", true)
        .texts("tokenizer.ggml.tokens", &["a", "ß", ""])
        .i32s("tokenizer.ggml.token_type", &[3, 1, -1])
        .raw("nested", ARRAY, &nested)
        .tensor("a.weight", &[64, 3], 8, &[1; 3 * 2 * 34])
        .tensor("b.weight", &[5], 0, &[2; 20])
        .tensor("c.weight", &[0, 5], 0, &[])
}

#[test]
fn a_good_header_is_read_in_both_versions() {
    for version in [2, 3] {
        let header = read(&good().version(version).build()).unwrap();
        assert_eq!(header.get("general.architecture").unwrap().text(), Some("llama"));
        assert_eq!(header.get("llama.block_count").unwrap().unsigned(), Some(2));
        assert_eq!(header.get("llama.rope.freq_base").unwrap().number(), Some(10_000.0));
        assert_eq!(header.get("tokenizer.ggml.add_bos_token").unwrap().truth(), Some(true));
        let tokens = header.get("tokenizer.ggml.tokens").unwrap().array().unwrap();
        assert_eq!(tokens, &Array::Texts(["a", "ß", ""].map(str::to_owned).to_vec()));
        let types = header.get("tokenizer.ggml.token_type").unwrap().array().unwrap();
        let types: Vec<Value> = types.numbers().unwrap().collect();
        assert_eq!(types, [Value::Signed(3), Value::Signed(1), Value::Signed(-1)]);
        let bytes = Array::Numbers { kind: Number::U8, bytes: vec![7, 8] };
        assert_eq!(header.get("nested").unwrap().array(), Some(&Array::Arrays(vec![bytes])));
    }
}

#[test]
fn offsets_point_to_the_data() {
    let bytes = good().build();
    let header = read(&bytes).unwrap();
    let [a, b, c] = header.tensors.as_slice() else { panic!("{header:?}") };
    assert_eq!((a.shape.as_slice(), a.storage, a.bytes), (&[3, 64][..], Storage::Q8_0, 204));
    assert_eq!((b.shape.as_slice(), b.storage, b.bytes), (&[5][..], Storage::F32, 20));
    assert_eq!((c.shape.as_slice(), c.bytes), (&[5, 0][..], 0));
    let data = |tensor: &Tensor| &bytes[tensor.offset as usize..(tensor.offset + tensor.bytes) as usize];
    assert!(data(a).iter().all(|&byte| byte == 1) && data(b).iter().all(|&byte| byte == 2));
}

#[test]
fn other_files_and_versions_get_their_own_errors() {
    assert!(refusal(b"").contains("does not begin with `GGUF`"));
    assert!(refusal(b"PK\x03\x04....................").contains("does not begin with `GGUF`"));
    for (version, words) in [(1, "GGUF version 1"), (4, "GGUF version 4"), (3_u32.swap_bytes(), "big-endian")]
    {
        match read(&good().version(version).build()).unwrap_err() {
            Fault::Unsupported { feature, .. } => assert!(feature.contains(words), "{feature}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn counts_beyond_the_file_are_refused_before_allocation() {
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 100_000, 1_000] {
            let mut bytes = good().build();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            read(&bytes).unwrap_err();
        }
    }
    for count in [u64::MAX, u64::MAX / 8 + 1, 1 << 32, 1_000_000] {
        for kind in [0, 4, TEXT, ARRAY, 12] {
            let array = [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
            let problem = refusal(&Writer::new().raw("x", ARRAY, &array).build());
            assert!(problem.contains("asks for") || problem.contains("claim"), "{problem}");
        }
        let problem = refusal(&Writer::new().raw("x", TEXT, &count.to_le_bytes()).build());
        assert!(problem.contains("in the middle of its header"), "{problem}");
    }
}

#[test]
fn the_element_limit_is_for_all_arrays_together() {
    let texts: Vec<&str> = vec![""; 1 << 20];
    let mut writer = Writer::new();
    for key in ["a", "b", "c", "d"] {
        writer = writer.texts(key, &texts);
    }
    assert!(read(&writer.build()).is_ok());
    assert!(refusal(&writer.texts("e", &[""]).build()).contains("arrays claim"));
}

#[test]
fn deep_arrays_are_refused() {
    let mut value = Vec::new();
    for _ in 0..100_000 {
        value.extend_from_slice(&ARRAY.to_le_bytes());
        value.extend_from_slice(&1_u64.to_le_bytes());
    }
    assert!(refusal(&Writer::new().raw("x", ARRAY, &value).build()).contains("deeper than"));
}

#[test]
fn duplicates_are_refused() {
    assert!(refusal(&good().u32("nested", 1).build()).contains("`nested` appears twice"));
    assert!(
        refusal(&good().tensor("b.weight", &[1], 0, &[0; 4]).build()).contains("`b.weight` appears twice")
    );
}

#[test]
fn tensors_that_overlap_or_leave_the_file_are_refused() {
    let at = |offset| good().tensor_at("evil", &[8], 0, offset).build();
    assert!(refusal(&at(u64::MAX - 31)).contains("beyond the end"));
    assert!(refusal(&at(1 << 40)).contains("beyond the end"));
    assert!(refusal(&at(32)).contains("overlap"));
    assert!(refusal(&at(33)).contains("no multiple of 32"));
}

#[test]
fn impossible_shapes_are_refused() {
    let shape = |dimensions: &[u64], kind| refusal(&good().tensor_at("evil", dimensions, kind, 0).build());
    assert!(shape(&[1 << 32, 1 << 32], 0).contains("impossible shape"));
    assert!(shape(&[u64::MAX], 0).contains("impossible shape"));
    assert!(shape(&[33, 32], 8).contains("no multiple of 32"));
    assert!(shape(&[128, 2], 14).contains("no multiple of 256"));
    assert!(shape(&[], 8).contains("no multiple of 32"));
    assert!(shape(&[1, 1, 1, 1, 1], 0).contains("5 dimensions"));
}

#[test]
fn unsupported_encodings_name_their_tensor() {
    match read(&good().tensor_at("blk.0.ffn_up.weight", &[256], 16, 0).build()).unwrap_err() {
        Fault::TensorType { tensor, found } => {
            assert_eq!((tensor.as_str(), found.as_str()), ("blk.0.ffn_up.weight", "IQ2_XXS"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn alignment_must_be_a_power_of_two() {
    for alignment in [0, 3, 33, 1 << 21] {
        let problem = refusal(&good().u32("general.alignment", alignment).build());
        assert!(problem.contains("power of two"), "{problem}");
    }
    assert!(read(&good().u32("general.alignment", 16).build()).is_ok());
    assert!(refusal(&good().text("general.alignment", "x").build()).contains("power of two"));
}

#[test]
fn text_must_be_utf8() {
    let bytes = [2_u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat();
    assert!(refusal(&Writer::new().raw("x", TEXT, &bytes).build()).contains("not UTF-8"));
    assert!(refusal(&Writer::new().raw("x", 13, &[0; 16]).build()).contains("metadata type 13"));
    assert_eq!(writer::text("ß").len(), 10);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&tail);
        let _ = read(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }

    #[test]
    fn mutated_files_are_refused_or_consistent(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = good().build();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(header) = read(&bytes) {
            for tensor in header.tensors {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn damaged_files_are_refused_or_consistent(damage in damage()) {
        let bytes = damaged(&good().build(), &damage);
        if let Ok(header) = read(&bytes) {
            for tensor in header.tensors {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn truncated_files_are_refused(at in any::<prop::sample::Index>()) {
        let header = good().header().len();
        prop_assert!(read(&good().build()[..at.index(header)]).is_err());
    }
}
