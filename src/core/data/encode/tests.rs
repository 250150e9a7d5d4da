use pretty_assertions::assert_eq;
use serde_json::Value;

use super::*;
use crate::data::testing::{
    chat_tokenizer, config, reference, reference_integers, reference_json, sample_model, tiny,
};
use crate::data::{EncodedRow, Extras, Origin, Split};
use crate::model::{ModelFiles, SpecialToken, SpecialTokens};

fn row(example: Example) -> Row {
    Row {
        index: 0,
        origin: Origin { file: "a.jsonl".into(), line: 1 },
        split: Split::Train,
        example,
        extras: Extras::default(),
    }
}

fn template(reference: &Value, name: &str, kind: &str) -> Template {
    let entry = &reference["templates"][name];
    let token =
        |key: &str| entry[key].as_str().map(|text| SpecialToken { id: None, text: Some(text.to_owned()) });
    let special = SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token").into_iter().collect(),
        ..SpecialTokens::default()
    };
    Template::compile(name, entry[kind].as_str().unwrap(), &special).unwrap()
}

fn conversation_row(reference: &Value, id: &Value) -> Row {
    let found =
        reference["conversations"].as_array().unwrap().iter().find(|found| found["id"] == *id).unwrap();
    let messages: Vec<Message> = serde_json::from_value(found["messages"].clone()).unwrap();
    let tools = Some(found["tools"].clone()).filter(|tools| !tools.is_null());
    Row { extras: Extras { tools, ..Extras::default() }, ..row(Example::Messages(messages)) }
}

/// Gives a message of a conversation a weight of its own.
fn weigh(row: &mut Row, message: usize, trained: bool) {
    let Example::Messages(messages) = &mut row.example else { panic!("{row:?}") };
    messages[message].trained = Some(trained);
}

/// The first side of a row.
fn first_side(
    row: &Row,
    tokenizer: &Tokenizer,
    template: &Template,
    config: &Config,
) -> Result<Encoded, RowProblem> {
    encode(row, tokenizer, template, config).map(|mut sides| sides.remove(0))
}

/// The trained parts of a row's text; adjacent parts are joined.
fn trained_text(encoded: &Encoded) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut before = false;
    for piece in row_tokens(encoded) {
        match (piece.trained, before) {
            (true, true) => parts.last_mut().unwrap().push_str(&piece.text),
            (true, false) => parts.push(piece.text),
            _ => {}
        }
        before = piece.trained;
    }
    parts
}

fn chatml() -> Template {
    template(&reference_json("chat/chat.json"), "chatml", "template")
}

#[test]
fn masks_equal_the_reference_with_the_sample_model() {
    let tokenizer = Tokenizer::open(&ModelFiles::open(&sample_model()).unwrap()).unwrap();
    let reference = reference_json("chat/chat.json");
    let masks = reference_json("chat/masks.json");
    let settings = config("a.jsonl", &["data.train_on=\"assistant\"", "data.max_length=4096"]);
    for case in masks["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let row = conversation_row(&reference, &case["conv"]);
        let encoded =
            first_side(&row, &tokenizer, &template(&reference, name, "generation_template"), &settings)
                .unwrap();
        let place = format!("{name} / {}", case["conv"]);
        assert_eq!(serde_json::to_value(&encoded.ids).unwrap(), case["input_ids"], "{place}");
        let mask: Vec<u8> = encoded.trained.iter().map(|&trained| trained.into()).collect();
        assert_eq!(serde_json::to_value(mask).unwrap(), case["assistant_mask"], "{place}");
    }
}

/// Without white space at the end of a part. Parts that the template writes one after another are joined.
fn comparable(text: &str, spans: &[Range<usize>]) -> Vec<String> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ => joined.push(span.clone()),
        }
    }
    joined.into_iter().map(|span| text[span].trim_end().to_owned()).collect()
}

#[test]
fn prefix_rendering_finds_the_spans_of_generation_blocks() {
    let tokenizer = chat_tokenizer();
    let reference = reference_json("chat/chat.json");
    let masks = reference_json("chat/masks.json");
    let mut compared = 0;
    for case in masks["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let place = format!("{name} / {}", case["conv"]);
        let row = conversation_row(&reference, &case["conv"]);
        let messages = row.example.messages().unwrap();
        let plain = template(&reference, name, "template");
        let whole = plain.render_marked(&messages, &row.extras, false).unwrap();
        let spans = trained_spans(
            &plain,
            &tokenizer,
            &messages,
            &row.extras,
            &Config::default().data,
            TrainOn::Assistant,
            &whole,
        );
        if case["same_text_as_plain_template"] == false {
            continue;
        }
        if name == "mistral-v0.3" && case["conv"] == "empty-contents" {
            // Without words and without a header, nothing tells where the reply stands.
            assert!(matches!(spans, Err(MaskError::Uncertain(_))), "{place}");
            continue;
        }
        let marked = template(&reference, name, "generation_template")
            .render_marked(&messages, &row.extras, false)
            .unwrap();
        assert_eq!(
            comparable(&whole.text, &spans.unwrap()),
            comparable(&marked.text, &marked.generation),
            "{place}"
        );
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_followed_or_refused() {
    let tokenizer = chat_tokenizer();
    let reference = reference_json("chat/chat.json");
    let qwen = template(&reference, "qwen3", "template");
    let row = conversation_row(&reference, &"system-multi-turn".into());
    let settings = config("a.jsonl", &["data.train_on=\"assistant\""]);
    let encoded = first_side(&row, &tokenizer, &qwen, &settings).unwrap();
    assert_eq!(
        trained_text(&encoded),
        ["Bonjour !<|im_end|>", "<think>\n\n</think>\n\nBonne nuit !<|im_end|>"]
    );
    let shouting = "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last else m.content | upper }};{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    let shouting = Template::compile("shouting", shouting, &SpecialTokens::default()).unwrap();
    let refused = first_side(&row, &tokenizer, &shouting, &settings).unwrap_err();
    assert_eq!(refused.kind, RowProblemKind::Mask);
    assert!(refused.to_string().contains("a.jsonl:1: the loss mask is uncertain"), "{refused}");
    let first =
        self::row(Example::Messages(vec![Message::new("assistant", "I begin."), Message::new("user", "ok")]));
    let strict = Template::compile(
        "strict",
        "{{ messages[0].role }}: {{ messages[0].content }}",
        &SpecialTokens::default(),
    );
    let encoded = first_side(&first, &tokenizer, &strict.unwrap(), &settings).unwrap();
    assert_eq!(trained_text(&encoded), [" I begin."]);
    let all = config("a.jsonl", &["data.train_on=\"all\""]);
    assert!(first_side(&row, &tokenizer, &shouting, &all).is_ok());
}

#[test]
fn train_on_chooses_the_turns() {
    let tokenizer = tiny("bytelevel");
    let reference = reference_json("chat/chat.json");
    let row = conversation_row(&reference, &"system-multi-turn".into());
    let trained = |row: &Row, kind: &str, train_on: &str| {
        let settings = config("a.jsonl", &[&format!("data.train_on={train_on:?}")]);
        trained_text(&first_side(row, &tokenizer, &template(&reference, "chatml", kind), &settings).unwrap())
    };
    for kind in ["template", "generation_template"] {
        assert_eq!(trained(&row, kind, "completion"), ["Bonne nuit !<|im_end|>"]);
        assert_eq!(trained(&row, kind, "assistant"), ["Bonjour !<|im_end|>", "Bonne nuit !<|im_end|>"]);
        let all = trained(&row, kind, "all");
        assert_eq!(all.len(), 1);
        assert!(
            all[0].starts_with("system\nAnswer in French.") && all[0].ends_with("<|im_end|>\n"),
            "{all:?}"
        );
        let mut weighted = row.clone();
        weigh(&mut weighted, 2, false);
        assert_eq!(trained(&weighted, kind, "assistant"), ["Bonne nuit !<|im_end|>"]);
        weigh(&mut weighted, 4, false);
        assert_eq!(trained(&weighted, kind, "completion"), [] as [&str; 0]);
        weigh(&mut weighted, 2, true);
        assert_eq!(trained(&weighted, kind, "completion"), ["Bonjour !<|im_end|>"]);
        let all = trained(&weighted, kind, "all");
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].ends_with("<|im_start|>assistant\n") && all[1] == "\n", "{all:?}");
    }
}

#[test]
fn the_system_prompt_of_the_config_shifts_message_indices() {
    let tokenizer = tiny("bytelevel");
    let mut row = row(Example::Messages(vec![
        Message::new("user", "a"),
        Message::new("assistant", "b"),
        Message::new("user", "c"),
        Message::new("assistant", "d"),
    ]));
    weigh(&mut row, 1, false);
    let settings = config("a.jsonl", &["data.train_on=\"assistant\"", "data.system=\"Be brief.\""]);
    let encoded = first_side(&row, &tokenizer, &chatml(), &settings).unwrap();
    assert!(encoded.text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"), "{}", encoded.text);
    assert_eq!(trained_text(&encoded), ["d<|im_end|>"]);
    assert_eq!(conversation(&row, &chatml(), &settings).unwrap().len(), 5);
}

#[test]
fn pairs_and_preferences_are_conversations() {
    let tokenizer = tiny("bytelevel");
    let settings = config("a.jsonl", &[]);
    let pair = row(Example::PromptCompletion { prompt: "2+2?".to_owned(), completion: "4".to_owned() });
    let preference = row(Example::Preference {
        prompt: vec![Message::new("user", "2+2?")],
        chosen: Message::new("assistant", "4"),
        rejected: Message::new("assistant", "5"),
    });
    for row in [pair, preference] {
        let encoded = first_side(&row, &tokenizer, &chatml(), &settings).unwrap();
        assert_eq!(encoded.text, "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n");
        assert_eq!(trained_text(&encoded), ["4<|im_end|>"]);
    }
}

#[test]
fn without_a_template_a_pair_is_joined_and_ends() {
    let settings = config("a.jsonl", &[]);
    let none = Template::none();
    let pair = row(Example::PromptCompletion { prompt: "2+2=".to_owned(), completion: "4".to_owned() });
    for (name, text) in [
        ("bytelevel", "2+2=4<|end_of_text|>"),
        ("bytelevel-bos", "<|begin_of_text|>2+2=4<|end_of_text|>"),
        ("metaspace", "<s>2+2=4</s>"),
    ] {
        let tokenizer = tiny(name);
        let encoded = first_side(&pair, &tokenizer, &none, &settings).unwrap();
        assert_eq!(encoded.text, text);
        assert_eq!(trained_text(&encoded).concat(), text.rsplit('=').next().unwrap(), "{name}");
        let prompt = none
            .prompt_ids(&[Message::new("user", "2+2=")], &Extras::default(), &tokenizer, &settings)
            .unwrap();
        assert!(encoded.ids.starts_with(&prompt), "{name}");
    }
    let talk = row(Example::Messages(vec![Message::new("user", "x")]));
    let refused = first_side(&talk, &tiny("bytelevel"), &none, &settings).unwrap_err();
    assert!(
        refused.message.contains("needs a chat template") && refused.message.contains("chatml"),
        "{refused}"
    );
}

fn preference(prompt: &[Message], chosen: &str, rejected: &str) -> Row {
    let [chosen, rejected] = [chosen, rejected].map(|text| Message::new("assistant", text));
    row(Example::Preference { prompt: prompt.to_vec(), chosen, rejected })
}

#[test]
fn both_sides_of_a_pair_train_their_answer_after_the_same_prompt() {
    let tokenizer = tiny("bytelevel");
    let settings = config("a.jsonl", &["data.system=\"Be brief.\"", "data.train_on=\"all\""]);
    let asked = [Message::new("user", "a"), Message::new("assistant", "b"), Message::new("user", "2+2?")];
    let sides = encode(&preference(&asked, "four", "five!"), &tokenizer, &chatml(), &settings).unwrap();
    let [chosen, rejected] = &sides[..] else { panic!("{sides:?}") };
    assert!(chosen.text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"), "{}", chosen.text);
    assert_eq!(trained_text(chosen), ["four<|im_end|>"]);
    assert_eq!(trained_text(rejected), ["five!<|im_end|>"]);
    let prompt = |side: &Encoded| {
        let end = side.trained.iter().position(|&trained| trained).unwrap();
        side.ids[..end].to_vec()
    };
    assert_eq!(prompt(chosen), prompt(rejected));
    assert_eq!((chosen.label, rejected.label), (Some(true), Some(false)));
    let kept = EncodedRow::new(7, sides.clone());
    assert_eq!((kept.row, kept.tokens()), (7, chosen.ids.len() + rejected.ids.len()));
    assert_eq!(
        kept.trained_tokens(),
        [&chosen.trained, &rejected.trained]
            .map(|side| side.iter().filter(|&&on| on).count())
            .iter()
            .sum::<usize>()
    );
}

/// The pairs of `training/llama/dpo`: TRL tokenised them, with the prompt as plain text.
#[test]
fn pairs_without_a_template_are_tokenised_as_by_trl() {
    let known = reference_json("training/llama/dpo/dpo.json");
    let batch = |name| reference_integers("training/llama/dpo/batch.safetensors", name);
    let (ids, attended, answered) = (batch("input_ids"), batch("attention_mask"), batch("completion_mask"));
    let texts = |name: &str| -> Vec<String> { serde_json::from_value(known[name].clone()).unwrap() };
    let tokenizer = Tokenizer::open(&ModelFiles::open(&reference("tiny/llama")).unwrap()).unwrap();
    let settings = config("a.jsonl", &[]);
    let expected = |side: usize| -> Vec<(i64, i64)> {
        let row = ids[side].iter().copied().zip(answered[side].iter().copied());
        row.zip(&attended[side]).filter(|(_, seen)| **seen == 1).map(|(token, _)| token).collect()
    };
    let found = |side: &Encoded| -> Vec<(i64, i64)> {
        side.ids.iter().zip(&side.trained).map(|(&id, &trained)| (id.into(), trained.into())).collect()
    };
    let (prompts, chosen, rejected) = (texts("prompts"), texts("chosen"), texts("rejected"));
    let pairs = prompts.len();
    for pair in 0..pairs {
        let explicit = preference(&[Message::new("user", &prompts[pair])], &chosen[pair], &rejected[pair]);
        let whole = |answer: &str| format!("{}{answer}", prompts[pair]);
        let implicit = preference(&[], &whole(&chosen[pair]), &whole(&rejected[pair]));
        for row in [explicit, implicit] {
            let sides = encode(&row, &tokenizer, &Template::none(), &settings).unwrap();
            assert_eq!(found(&sides[0]), expected(pair), "chosen {pair}");
            assert_eq!(found(&sides[1]), expected(pairs + pair), "rejected {pair}");
        }
    }
}

#[test]
fn a_pair_is_cut_or_refused_as_a_whole() {
    let tokenizer = tiny("bytelevel");
    let asked = [Message::new("user", "count")];
    let pair = preference(&asked, "one two three four five six", "no");
    let with = |overflow: &str, length: usize| {
        let settings = config(
            "a.jsonl",
            &[&format!("data.max_length={length}"), &format!("data.overflow={overflow:?}")],
        );
        encode(&pair, &tokenizer, &chatml(), &settings)
    };
    let whole = with("error", 1000).unwrap();
    let (long, short) = (whole[0].ids.len(), whole[1].ids.len());
    assert!(long > short + 4 && longest(&whole) == long);
    let cut = with("truncate", long - 2).unwrap();
    assert_eq!((cut[0].ids.len(), cut[0].truncated), (long - 2, true));
    assert_eq!((cut[1].ids.len(), cut[1].truncated), (short, false));
    assert_eq!(with("drop", long - 1).unwrap_err().kind, RowProblemKind::Dropped);
    let refused = with("error", long - 1).unwrap_err();
    assert_eq!(refused.kind, RowProblemKind::TooLong);
    assert!(refused.message.contains("tokens of a side"), "{refused}");
}

#[test]
fn texts_get_one_begin_and_one_end() {
    let settings = config("a.jsonl", &[]);
    let tokenizer = tiny("bytelevel-bos");
    for text in ["Hello", "<|begin_of_text|>Hello", "Hello<|end_of_text|>"] {
        let encoded =
            first_side(&row(Example::Text(text.to_owned())), &tokenizer, &chatml(), &settings).unwrap();
        assert_eq!(encoded.text, "<|begin_of_text|>Hello<|end_of_text|>");
        assert_eq!(encoded.ids.iter().filter(|&&id| id == 0).count(), 1);
        assert_eq!(encoded.ids.iter().filter(|&&id| id == 1).count(), 1);
        assert_eq!(encoded.trained.iter().filter(|&&trained| !trained).count(), 1);
        assert!(!encoded.trained[0]);
    }
}

#[test]
fn tokens_keep_their_labels() {
    let settings = config("a.jsonl", &[]);
    let tokenizer = tiny("bytelevel");
    let ids = tokenizer.encode("日本 ok", false).unwrap().ids;
    let mut labels: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    labels[1] = -100;
    let encoded = first_side(
        &row(Example::Tokens { input_ids: ids.clone(), labels }),
        &tokenizer,
        &chatml(),
        &settings,
    )
    .unwrap();
    assert_eq!(encoded.ids, ids);
    assert_eq!(encoded.trained[..3], [false, false, true]);
    assert_eq!(
        row_tokens(&encoded).iter().map(|piece| piece.text.as_str()).collect::<String>(),
        encoded.text
    );
}

#[test]
fn a_row_that_is_too_long_is_cut_dropped_or_refused() {
    let tokenizer = tiny("bytelevel");
    let pair = row(Example::PromptCompletion { prompt: "a".repeat(60), completion: "b".repeat(60) });
    let with =
        |overflow: &str| config("a.jsonl", &["data.max_length=32", &format!("data.overflow={overflow:?}")]);
    let encoded = first_side(&pair, &tokenizer, &chatml(), &with("truncate")).unwrap();
    assert!(encoded.truncated);
    assert_eq!((encoded.ids.len(), encoded.trained.len(), encoded.offsets.len()), (32, 32, 32));
    let refused = |overflow: &str| first_side(&pair, &tokenizer, &chatml(), &with(overflow)).unwrap_err();
    assert_eq!(refused("drop").kind, RowProblemKind::Dropped);
    assert_eq!(refused("error").kind, RowProblemKind::TooLong);
    assert!(refused("error").message.contains("data.max_length = 32"), "{}", refused("error"));
}

#[test]
fn the_search_for_a_mask_is_limited() {
    let tokenizer = tiny("bytelevel");
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let template = Template::compile("plain", source, &SpecialTokens::default()).unwrap();
    let talk = |turns: usize| {
        let turn = |_| [Message::new("user", "a"), Message::new("assistant", "b")];
        row(Example::Messages((0..turns).flat_map(turn).collect()))
    };
    let config = config("a.jsonl", &["data.train_on=assistant"]);
    assert!(first_side(&talk(3), &tokenizer, &template, &config).is_ok());
    let problem = first_side(&talk(1025), &tokenizer, &template, &config).unwrap_err();
    assert!(problem.message.contains("message 2050 (assistant) has too many replies before it"), "{problem}");
}

#[test]
fn pieces_join_to_the_text() {
    let settings = config("a.jsonl", &["data.train_on=\"all\""]);
    for name in ["bytelevel", "bytelevel-bos", "metaspace"] {
        let tokenizer = tiny(name);
        for text in ["naïve 日本語 👩\u{200d}👩\u{200d}👧 done", "  spaces  and\n\nlines\t", "é"] {
            let talk =
                row(Example::Messages(vec![Message::new("user", text), Message::new("assistant", text)]));
            for row in [talk, row(Example::Text(text.to_owned()))] {
                let encoded = first_side(&row, &tokenizer, &chatml(), &settings).unwrap();
                let joined: String = row_tokens(&encoded).iter().map(|piece| piece.text.as_str()).collect();
                assert_eq!(joined, encoded.text, "{name}");
            }
        }
    }
}

#[test]
fn the_prompt_of_a_reply_equals_that_of_training() {
    let tokenizer = tiny("bytelevel");
    let settings = config("a.jsonl", &["data.system=\"Be brief.\""]);
    let pair = row(Example::PromptCompletion { prompt: "2+2?".to_owned(), completion: "4".to_owned() });
    let encoded = first_side(&pair, &tokenizer, &chatml(), &settings).unwrap();
    let prompt = chatml()
        .prompt_ids(&[Message::new("user", "2+2?")], &Extras::default(), &tokenizer, &settings)
        .unwrap();
    let first = encoded.trained.iter().position(|&trained| trained).unwrap();
    assert_eq!(encoded.ids[..first], prompt);
}

proptest::proptest! {
    #[test]
    fn tokens_are_trained_where_they_touch_a_span(
        cuts in proptest::collection::btree_set(0..60_usize, 0..8),
        offsets in proptest::collection::vec((0..60_usize, 0..6_usize), 1..30),
    ) {
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let spans: Vec<Range<usize>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let offsets: Vec<(usize, usize)> = offsets.into_iter().map(|(start, length)| (start, start + length)).collect();
        let found = trained_tokens(&offsets, &spans);
        for (index, &(start, end)) in offsets.iter().enumerate() {
            let touches = start < end && spans.iter().any(|span| start < span.end && span.start < end);
            proptest::prop_assert_eq!(found[index], index > 0 && touches);
        }
    }
}
