use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::*;
use crate::data::testing::{reference, reference_json, tiny, tiny_special};
use crate::model::{GgufTokenType, GgufVocabulary};
use crate::testing::{changes, damage, damaged, spoilt};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Byte offsets as offsets in characters, which the references use.
fn in_characters(text: &str, offsets: &[(usize, usize)]) -> Value {
    let characters = |at: usize| text[..at].chars().count();
    offsets.iter().map(|&(start, end)| json!([characters(start), characters(end)])).collect()
}

fn check_against(tokenizer: &Tokenizer, file: &str) {
    let reference = reference_json(file);
    assert_eq!(tokenizer.vocabulary_size() as u64, reference["vocab_size"].as_u64().unwrap());
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 70);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(encoding.ids, ids(&case["ids"]), "{file}: {text:?}");
        assert_eq!(in_characters(text, &encoding.offsets), case["offsets_chars"], "{file}: {text:?}");
        assert_eq!(
            tokenizer.encode(text, true).unwrap().ids,
            ids(&case["ids_with_special"]),
            "{file}: {text:?}"
        );
        assert_eq!(tokenizer.decode(&encoding.ids, false).unwrap(), case["decoded"], "{file}: {text:?}");
        assert_eq!(
            tokenizer.decode(&encoding.ids, true).unwrap(),
            case["decoded_skip_special"],
            "{file}: {text:?}"
        );
    }
    for case in reference["streaming"].as_array().unwrap() {
        let mut stream = tokenizer.stream();
        let mut out = String::new();
        for (&id, prefix) in ids(&case["ids"]).iter().zip(case["prefix_decodes"].as_array().unwrap()) {
            let prefix = prefix.as_str().unwrap();
            out.push_str(&stream.push(id).unwrap_or_default());
            if prefix.ends_with('\u{fffd}') {
                let text = case["text"].as_str().unwrap();
                assert!(text.starts_with(&out), "{file}: {out:?} is not the start of {text:?}");
            } else {
                assert_eq!(out, prefix, "{file}");
            }
        }
        assert_eq!(stream.finish(), None);
        assert_eq!(out, case["text"].as_str().unwrap());
    }
}

#[test]
fn tiny_tokenizers_equal_the_reference() {
    for name in ["bytelevel", "bytelevel-bos", "metaspace"] {
        check_against(&tiny(name), &format!("tokenizer/tiny-{name}.json"));
    }
}

#[test]
fn the_sample_model_equals_the_reference() {
    let files = ModelFiles::open(&crate::data::testing::sample_model()).unwrap();
    check_against(&Tokenizer::open(&files).unwrap(), "tokenizer/smollm2.json");
}

#[test]
fn the_tokenizer_of_a_model_folder_is_used() {
    let files = ModelFiles::open(&reference("tiny/llama")).unwrap();
    let tokenizer = Tokenizer::open(&files).unwrap();
    assert_eq!(tokenizer.inner.limit as usize, files.architecture.vocabulary);
    let text = "Hello, world!";
    let ids = tokenizer.encode(text, false).unwrap().ids;
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
}

/// The vocabulary that a GGUF file would have for a tiny tokenizer.
fn as_gguf(name: &str, model: &str, pre: Option<&str>) -> GgufVocabulary {
    let description = reference_json(&format!("tiny/_tokenizers/{name}/tokenizer.json"));
    let mut tokens = vec![String::new(); description["model"]["vocab"].as_object().unwrap().len()];
    for (token, id) in description["model"]["vocab"].as_object().unwrap() {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()].clone_from(token);
    }
    let merges: Vec<(String, String)> = description["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(text) => {
                let (left, right) = text.split_once(' ').unwrap();
                (left.to_owned(), right.to_owned())
            }
            parts => (parts[0].as_str().unwrap().to_owned(), parts[1].as_str().unwrap().to_owned()),
        })
        .collect();
    let control: Vec<usize> = description["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| usize::try_from(token["id"].as_u64().unwrap()).unwrap())
        .collect();
    let types = (0..tokens.len())
        .map(|id| match &tokens[id] {
            token if token == "<unk>" => GgufTokenType::Unknown,
            _ if control.contains(&id) => GgufTokenType::Control,
            token if token.starts_with("<0x") => GgufTokenType::Byte,
            _ => GgufTokenType::Normal,
        })
        .collect();
    let scores = tokens
        .iter()
        .map(|token| match merges.iter().position(|(left, right)| format!("{left}{right}") == *token) {
            Some(rank) => -(rank as f32),
            None => -1e6,
        })
        .collect();
    let special = tiny_special(name);
    let id = |token: Option<&SpecialToken>| {
        let text = token?.text.as_ref()?;
        tokens.iter().position(|known| known == text).and_then(|id| u32::try_from(id).ok())
    };
    GgufVocabulary {
        model: model.to_owned(),
        pre: pre.map(str::to_owned),
        bos: id(special.bos.as_ref()),
        eos: id(special.eos.first()),
        merges: if model == "gpt2" {
            merges.iter().map(|(left, right)| format!("{left} {right}")).collect()
        } else {
            vec![]
        },
        scores: if model == "llama" { scores } else { vec![] },
        types,
        tokens,
        ..GgufVocabulary::default()
    }
}

fn from_gguf(vocabulary: &GgufVocabulary, special: &SpecialTokens) -> Tokenizer {
    Tokenizer::from_json(gguf::describe(vocabulary).unwrap().to_string().as_bytes(), special).unwrap()
}

#[test]
fn a_gguf_vocabulary_encodes_like_its_tokenizer_json() {
    let plain = as_gguf("bytelevel", "gpt2", Some("gpt-2"));
    check_against(&from_gguf(&plain, &tiny_special("bytelevel")), "tokenizer/tiny-bytelevel.json");
    let with_bos = GgufVocabulary { add_bos: Some(true), ..as_gguf("bytelevel-bos", "gpt2", None) };
    check_against(&from_gguf(&with_bos, &tiny_special("bytelevel-bos")), "tokenizer/tiny-bytelevel-bos.json");
    let pieces = as_gguf("metaspace", "llama", None);
    check_against(&from_gguf(&pieces, &tiny_special("metaspace")), "tokenizer/tiny-metaspace.json");
}

#[test]
fn pre_tokenizers_split_like_their_names() {
    let encode = |pre: &str, text: &str| {
        let tokenizer = from_gguf(&as_gguf("bytelevel", "gpt2", Some(pre)), &tiny_special("bytelevel"));
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&encoding.ids, false).unwrap(), text, "{pre}");
        encoding
    };
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        assert!(!encode(pre, "It's 12345 o'clock,\n\n  naïve 日本 e-mail!\t").ids.is_empty());
    }
    let digits = encode("smollm", "1234567");
    assert_eq!(digits.offsets, (0..7).map(|at| (at, at + 1)).collect::<Vec<_>>());
}

#[test]
fn unknown_vocabularies_are_refused_with_a_remedy() {
    let refused = |vocabulary: GgufVocabulary| gguf::describe(&vocabulary).unwrap_err().to_string();
    assert!(refused(as_gguf("bytelevel", "gpt2", Some("tekken"))).contains("Hugging Face folder"));
    assert!(refused(as_gguf("bytelevel", "bert", None)).contains("\"gpt2\" and \"llama\""));
    assert!(refused(GgufVocabulary::default()).contains("no vocabulary"));
    let broken = GgufVocabulary { merges: vec!["ab".to_owned()], ..as_gguf("bytelevel", "gpt2", None) };
    assert!(refused(broken).contains("only one part"));
    let mut long = as_gguf("metaspace", "llama", None);
    long.tokens[300] = "a".repeat(12_000);
    assert!(refused(long).contains("too long"));
}

#[test]
fn a_hostile_description_is_an_error_not_a_panic() {
    let special = SpecialTokens::default();
    for hostile in [
        &b"{"[..],
        b"{}",
        br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#,
        br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[["","a"],["x","y"]]}}"#,
        br#"{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{},"merges":[]}}"#,
    ] {
        let error = Tokenizer::from_json(hostile, &special).unwrap_err();
        assert!(matches!(error, DataError::Tokenizer(_)), "{error}");
    }
}

#[test]
fn ids_beyond_the_embedding_are_refused() {
    let json = std::fs::read(reference("tiny/_tokenizers/bytelevel/tokenizer.json")).unwrap();
    let mut tokenizer = Tokenizer::from_json(&json, &SpecialTokens::default()).unwrap();
    Arc::get_mut(&mut tokenizer.inner).unwrap().limit = 100;
    let error = tokenizer.encode("Hello", false).unwrap_err();
    assert!(error.to_string().contains("do not match"), "{error}");
}

#[test]
fn the_stream_returns_bytes_that_never_become_text() {
    let tokenizer = tiny("bytelevel");
    let half = tokenizer.encode("日", false).unwrap().ids[0];
    let letter = tokenizer.encode("a", false).unwrap().ids[0];
    let mut stream = tokenizer.stream();
    let mut out: String = (0..70).filter_map(|_| stream.push(half)).collect();
    assert!(out.starts_with('\u{fffd}'), "{out:?}");
    for _ in 0..3 {
        out.push_str(&stream.push(letter).unwrap_or_default());
    }
    out.push_str(&stream.finish().unwrap_or_default());
    assert!(out.ends_with("aaa"), "{out:?}");
    stream.push(half);
    assert_eq!(stream.finish().as_deref(), Some("\u{fffd}"));
}

#[test]
fn special_tokens_are_found_by_text_and_id() {
    let tokenizer = tiny("bytelevel-bos");
    assert_eq!(tokenizer.ids_before(), &[0]);
    assert_eq!(tokenizer.ids_after(), &[] as &[u32]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    assert_eq!(tokenizer.special_at_start("<|im_end|>\n").map(|found| found.1), tokenizer.id("<|im_end|>"));
    assert_eq!(tokenizer.special_at_end("x<|im_end|>").map(|found| found.0), Some("<|im_end|>"));
    assert_eq!(tokenizer.special_at_start("im_end"), None);
    assert_eq!(tokenizer.token_text(4), "<|im_end|>");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_description_is_an_error_or_encodes(
        name in proptest::sample::select(vec!["bytelevel", "bytelevel-bos", "metaspace"]),
        changes in changes(),
        damage in damage(),
    ) {
        let whole = std::fs::read(reference(&format!("tiny/_tokenizers/{name}/tokenizer.json"))).unwrap();
        let spoilt = spoilt(&serde_json::from_slice(&whole).unwrap(), &changes).to_string().into_bytes();
        for json in [spoilt, damaged(&whole, &damage)] {
            let Ok(tokenizer) = Tokenizer::from_json(&json, &tiny_special(name)) else { continue };
            let text = "Hello, wörld! 日本 <|im_end|>";
            if let Ok(encoding) = tokenizer.encode(text, true) {
                proptest::prop_assert!(encoding.offsets.iter().all(|&(start, end)| text.get(start..end).is_some()));
                let _ = tokenizer.decode(&encoding.ids, false);
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_text_decodes_equal(text in "\\PC*") {
        for name in ["bytelevel", "bytelevel-bos"] {
            let tokenizer = tiny(name);
            let encoding = tokenizer.encode(&text, false).unwrap();
            proptest::prop_assert_eq!(encoding.ids.len(), encoding.offsets.len());
            proptest::prop_assert!(encoding.offsets.iter().all(|&(start, end)| text.get(start..end).is_some()));
            proptest::prop_assert_eq!(tokenizer.decode(&encoding.ids, false).unwrap(), text.as_str());
            let mut stream = tokenizer.stream();
            let mut streamed: String = encoding.ids.iter().filter_map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish().unwrap_or_default());
            proptest::prop_assert_eq!(streamed, tokenizer.decode(&encoding.ids, true).unwrap());
        }
    }
}
