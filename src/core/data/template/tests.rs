use pretty_assertions::assert_eq;
use serde_json::Value as Json;

use super::*;
use crate::data::testing::{config, reference, reference_json, tiny};
use crate::model::SpecialToken;

fn special(template: &Json) -> SpecialTokens {
    let token =
        |key: &str| template[key].as_str().map(|text| SpecialToken { id: None, text: Some(text.to_owned()) });
    SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token").into_iter().collect(),
        ..SpecialTokens::default()
    }
}

fn messages(conversation: &Json) -> Vec<Message> {
    serde_json::from_value(conversation["messages"].clone()).unwrap()
}

fn compile(source: &str) -> Template {
    Template::compile("test", source, &SpecialTokens::default()).unwrap()
}

fn failure(source: &str, messages: &[Message]) -> String {
    match Template::compile("test", source, &SpecialTokens::default()) {
        Ok(template) => template.render(messages, false).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn reference_conversations_render_as_in_transformers() {
    let reference = reference_json("chat/chat.json");
    let conversations = reference["conversations"].as_array().unwrap();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 220);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = &reference["templates"][name];
        let conversation = conversations.iter().find(|found| found["id"] == case["conv"]).unwrap();
        let extras = Extras {
            tools: Some(conversation["tools"].clone()).filter(|tools| !tools.is_null()),
            ..Extras::default()
        };
        let rendered = Template::compile(name, template["template"].as_str().unwrap(), &special(template))
            .unwrap()
            .render_marked(
                &messages(conversation),
                &extras,
                case["add_generation_prompt"].as_bool().unwrap(),
            );
        let place = format!("{name} / {}", case["conv"]);
        if let Some(text) = case["text"].as_str() {
            assert_eq!(rendered.unwrap().text, text, "{place}");
        } else {
            let raised = case["error"].as_str().unwrap().trim_start_matches("TemplateError: ");
            let error = rendered.unwrap_err().to_string();
            assert!(error.ends_with(raised), "{place}: {error}");
        }
    }
}

#[test]
fn generation_blocks_mark_the_spans_of_transformers() {
    let reference = reference_json("chat/chat.json");
    let conversations = reference["conversations"].as_array().unwrap();
    let masks = reference_json("chat/masks.json");
    let cases = masks["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 74);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = &reference["templates"][name];
        let conversation = conversations.iter().find(|found| found["id"] == case["conv"]).unwrap();
        let extras = Extras {
            tools: Some(conversation["tools"].clone()).filter(|tools| !tools.is_null()),
            ..Extras::default()
        };
        let rendered =
            Template::compile(name, template["generation_template"].as_str().unwrap(), &special(template))
                .unwrap()
                .render_marked(&messages(conversation), &extras, false)
                .unwrap();
        let place = format!("{name} / {}", case["conv"]);
        assert_eq!(rendered.text, case["text"].as_str().unwrap(), "{place}");
        let written: Vec<&str> =
            rendered.generation.iter().map(|span| &rendered.text[span.clone()]).collect();
        let expected: Vec<&str> = case["assistant_substrings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap())
            .collect();
        assert_eq!(written, expected, "{place}");
        let characters = |at: usize| rendered.text[..at].chars().count() as u64;
        let spans: Vec<Json> = rendered
            .generation
            .iter()
            .map(|span| serde_json::json!([characters(span.start), characters(span.end)]))
            .collect();
        assert_eq!(Json::from(spans), case["assistant_char_spans"], "{place}");
    }
}

#[test]
fn built_in_templates_equal_the_published_ones() {
    let reference = reference_json("chat/chat.json");
    let conversations = reference["conversations"].as_array().unwrap();
    let mut compared = 0;
    for case in reference["cases"].as_array().unwrap() {
        let published = case["template"].as_str().unwrap();
        let ours = match published {
            "mistral-v0.3" => "mistral",
            other => other,
        };
        let Some((_, source)) = BUILT_IN.iter().find(|(name, _)| *name == ours && *name != "phi3") else {
            continue;
        };
        let conversation = conversations.iter().find(|found| found["id"] == case["conv"]).unwrap();
        if !conversation["tools"].is_null() || case["conv"] == "whitespace" && ours == "mistral" {
            continue;
        }
        let template = Template::compile(ours, source, &special(&reference["templates"][published])).unwrap();
        assert!(template.marks_generation(&Extras::default()));
        let rendered =
            template.render(&messages(conversation), case["add_generation_prompt"].as_bool().unwrap());
        match case["text"].as_str() {
            // Published Mistral templates put the system prompt into the last turn, which does not work for a
            // growing conversation; ours puts it into the first.
            Some(_) if ours == "mistral" && conversation["messages"][0]["role"] == "system" => {
                assert!(rendered.is_ok());
            }
            Some(text) => assert_eq!(rendered.unwrap(), text, "{ours} / {}", case["conv"]),
            None => assert!(rendered.is_err(), "{ours} / {}", case["conv"]),
        }
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn every_built_in_template_marks_only_replies() {
    let special = SpecialTokens {
        bos: Some(SpecialToken { id: None, text: Some("<s>".to_owned()) }),
        eos: vec![SpecialToken { id: None, text: Some("</s>".to_owned()) }],
        ..SpecialTokens::default()
    };
    let talk = [
        Message::new("user", "one"),
        Message::new("assistant", "two"),
        Message::new("user", "three"),
        Message::new("assistant", "four"),
    ];
    for (name, source) in BUILT_IN {
        let template = Template::compile(name, source, &special).unwrap();
        let whole = template.render_marked(&talk, &Extras::default(), false).unwrap();
        let marked: Vec<&str> = whole.generation.iter().map(|span| &whole.text[span.clone()]).collect();
        assert_eq!(marked.len(), 2, "{name}");
        assert!(
            marked[0].trim_start().starts_with("two") && marked[0].len() > "two".len(),
            "{name}: {marked:?}"
        );
        let prompt = template.render(&talk[..3], true).unwrap();
        assert_eq!(prompt.len(), whole.generation[1].start, "{name}");
        assert!(whole.text.starts_with(&prompt), "{name}");
    }
}

#[test]
fn limits_hold() {
    let hello = [Message::new("user", "hello")];
    for hostile in [
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 300000000 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ [1] * 1000000000 }}",
        "{% for i in range(99999) %}{{ 'twelve bytes twelve bytes twelve bytes twelve bytes' }}{% endfor %}",
        "{{ strftime_now('%Y' * 1000) }}",
        "{% set s = 'x' * 1000000 %}{{ ([s] * 5000) | tojson | length }}",
        "{% set s = 'x' * 1000000 %}{{ ([0] * 5000) | tojson(separators=(s, s)) | length }}",
        "{% set s = 'x' * 1000000 %}{{ ([0] * 5000) | tojson(indent=s) | length }}",
        "{% include '/etc/passwd' %}",
        "{{ messages | pprint }}",
        "{{ debug() }}",
    ] {
        let message = failure(hostile, &hello);
        assert!(message.starts_with("chat template test:"), "{message}");
    }
    assert!(failure(&format!("{{{{ {} }}}}", "(".repeat(3000)), &hello).contains("syntax error"));
}

#[test]
fn values_nested_as_deep_as_fuel_allows_do_no_harm() {
    let hello = [Message::new("user", "hello")];
    for (open, close) in [("[", "]"), ("{'x': ", "}"), ("namespace(x=", ")")] {
        for (levels, used) in [
            (9_000, ""),
            (9_000, "{{ ns.a }}"),
            (9_000, "{{ ns.a | string | length }}"),
            (4_500, "{{ ns.a == ns.b }}"),
            (4_500, "{{ [ns.a, ns.b] | sort | length }}"),
            (4_500, "{{ [ns.a, ns.b] | unique | list | length }}"),
        ] {
            let second =
                if levels < 9_000 { format!("{{% set ns.b = {open}ns.b{close} %}}") } else { String::new() };
            let source = format!(
                "{{% set ns = namespace(a=0, b=0) %}}{{% for i in range({levels}) %}}{{% set ns.a = {open}ns.a{close} %}}\
                 {second}{{% endfor %}}{used}"
            );
            // Whether it succeeds does not matter; the process must not end.
            let _ = compile(&source).render(&hello, true);
        }
    }
    let deep = format!("{}messages{}", "[".repeat(20), "]".repeat(20));
    let source = format!(
        "{{% set ns = namespace(a=0) %}}{{% for i in range(100000) %}}{{% set ns.a = {} %}}{{% endfor %}}",
        deep.replace("messages", "ns.a")
    );
    let said = failure(&source, &hello);
    assert!(said.contains("does more work than allowed"), "{said}");
}

#[test]
fn failures_say_where_and_why() {
    assert!(failure("{% if %}", &[]).contains("line 1"));
    assert!(failure("\n{{ messages[7].content }}", &[]).contains("line 2"));
    assert_eq!(
        failure("{{ raise_exception('no \u{1b}[31msystem') }}", &[]),
        "chat template test: no [31msystem"
    );
    let too_long = "x".repeat(MAX_SOURCE_BYTES + 1);
    assert!(failure(&too_long, &[]).contains("larger than"));
    assert!(
        failure("{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}", &[])
            .contains("nested")
    );
    let marked = [Message::new("user", "\u{fdd0}")];
    assert!(
        failure("{% generation %}{{ messages[0].content }}{% endgeneration %}", &marked).contains("U+FDD0")
    );
}

#[test]
fn the_dialect_has_what_templates_use() {
    let hello = [Message::new("user", " hello ")];
    let render = |source: &str| compile(source).render(&hello, true).unwrap();
    assert_eq!(
        render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}"),
        ""
    );
    assert_eq!(render("{{ tools is none and documents is none and bos_token is undefined }}"), "True");
    assert_eq!(render("{{ messages[0].content.strip().upper().replace('L', 'l') }}"), "HEllO");
    assert_eq!(render("{{ messages[0]['content'] | trim }}{{ add_generation_prompt }}"), "helloTrue");
    assert_eq!(render("{{ [none, true, 1.0, 'a'] }}"), "[None, True, 1.0, 'a']");
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(render("{{ strftime_now('%Y') | int > 2000 }}"), "True");
    assert_eq!(render("{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}"), "False");
}

#[test]
fn templates_get_message_fields_and_tools() {
    let template = compile("{{ messages[0].tool_calls[0].function | tojson }} {{ tools | length }}");
    let call =
        serde_json::json!({"function": {"name": "f", "n": 1.5, "big": 18_446_744_073_709_551_615_u64}});
    let extras = Extras { tools: Some(serde_json::json!([{"type": "function"}])), ..Extras::default() };
    let message = Message { tool_calls: vec![call], ..Message::new("assistant", "") };
    let rendered = template.render_marked(&[message], &extras, false).unwrap();
    assert_eq!(rendered.text, r#"{"name": "f", "n": 1.5, "big": 18446744073709551615} 1"#);
}

#[test]
fn the_end_of_turn_is_found_by_rendering() {
    let tokenizer = tiny("bytelevel");
    let (_, chatml) = BUILT_IN.iter().find(|(name, _)| *name == "chatml").unwrap();
    assert_eq!(compile(chatml).end_of_turn(&tokenizer), tokenizer.id("<|im_end|>"));
    assert_eq!(compile("{% for m in messages %}{{ m.content }}\n{% endfor %}").end_of_turn(&tokenizer), None);
    assert_eq!(Template::none().end_of_turn(&tokenizer), None);
}

#[test]
fn the_system_prompt_is_added_if_there_is_none() {
    let hello = [Message::new("user", "hello")];
    assert_eq!(with_system(&hello, ""), hello);
    assert_eq!(with_system(&hello, "Be brief.")[0], Message::new("system", "Be brief."));
    let own = [Message::new("system", "Own."), Message::new("user", "hello")];
    assert_eq!(with_system(&own, "Be brief."), own);
}

#[test]
fn the_config_chooses_the_template() {
    let files = ModelFiles::open(&reference("tiny/llama")).unwrap();
    let project = tempfile::tempdir().unwrap();
    let resolve = |name: &str| {
        let settings = config("a.jsonl", &[&format!("data.template={name:?}")]);
        Template::resolve(&settings, project.path(), &files)
    };
    assert_eq!(resolve("auto").unwrap().name, "model");
    assert_eq!(resolve("zephyr").unwrap().name, "zephyr");
    assert_eq!(resolve("none").unwrap().fingerprint, "none");
    std::fs::write(project.path().join("own.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}")
        .unwrap();
    let own = resolve("own.jinja").unwrap();
    assert_eq!((own.name.as_str(), own.fingerprint.len()), ("own.jinja", 16));
    assert_eq!(own.render(&[Message::new("user", "hello")], true).unwrap(), "hello");
    assert!(resolve("chatmi").unwrap_err().to_string().contains("one of alpaca, chatml, gemma"));
    assert!(resolve("missing.jinja").unwrap_err().to_string().starts_with("cannot read"));
    let without = ModelFiles { chat_template: None, ..files.clone() };
    let settings = config("a.jsonl", &[]);
    assert!(Template::resolve(&settings, project.path(), &without).unwrap().is_none());
}

proptest::proptest! {
    #[test]
    fn no_source_and_no_message_panics(
        parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "{%", "%}", "{{", "}}", "{#", "#}", "-", "+", " generation ", " endgeneration ", " for m in messages ",
                " endfor ", " if ", " else ", " endif ", " raw ", " endraw ", " set x = ", "messages", "[0]", "[-1:]",
                ".content", "'", "\"", "\\", "|", "tojson", "length", "\n", "é", "1", "/", "0", "(", ")",
            ]),
            0..24,
        ),
        content in "\\PC*",
    ) {
        let source = parts.concat();
        if let Ok(template) = Template::compile("test", &source, &SpecialTokens::default()) {
            let _ = template.render(&[Message::new("user", content)], true);
        }
    }
}
