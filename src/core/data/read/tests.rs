use std::fs;

use pretty_assertions::assert_eq;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::data::example::shared_beginning;
use crate::data::{Example, Extras, Message};
use crate::testing::{damage, damaged};

struct Project {
    folder: tempfile::TempDir,
    config: Config,
}

impl Project {
    fn new(files: &[(&str, &[u8])], settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let config = crate::data::testing::config(files[0].0, settings);
        Project { folder, config }
    }

    fn read(&self) -> Dataset {
        read_dataset(&self.config, self.folder.path()).unwrap()
    }

    fn error(&self) -> String {
        read_dataset(&self.config, self.folder.path())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }
}

fn examples(name: &str, content: &[u8], settings: &[&str]) -> Vec<Example> {
    let dataset = Project::new(&[(name, content)], settings).read();
    assert_eq!(dataset.problems, []);
    dataset.rows.all().into_iter().map(|row| row.example).collect()
}

fn pair(prompt: &str, completion: &str) -> Example {
    Example::PromptCompletion { prompt: prompt.to_owned(), completion: completion.to_owned() }
}

fn only(value: &Value) -> (Example, Extras) {
    let dataset = Project::new(&[("a.jsonl", value.to_string().as_bytes())], &["data.eval=0"]).read();
    assert_eq!(dataset.problems, []);
    let row = dataset.rows.all().into_iter().next().unwrap();
    (row.example, row.extras)
}

fn refused(value: &Value) -> String {
    let dataset = Project::new(&[("a.jsonl", value.to_string().as_bytes())], &["data.eval=0"]).read();
    assert_eq!(dataset.rows.all(), []);
    dataset.problems[0].to_string()
}

#[test]
fn a_bad_label_is_kept() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let turns = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]);
    let bad = [
        json!({"prompt": "a", "completion": "b", "label": false}),
        json!({"prompt": "a", "completion": "b", "label": "False"}),
        json!({"prompt": [messages[0]], "completion": [messages[1]], "label": false}),
        json!({"messages": messages, "label": false}),
        json!({"conversations": turns, "label": false}),
        json!({"instruction": "a", "output": "b", "label": false}),
        json!({"instruction": "a", "output": "b", "label": null, "kto_tag": false}),
    ];
    for row in bad {
        assert_eq!(only(&row).1.label, Some(false), "{row}");
    }
    for label in [json!(true), json!("True"), json!("false friends"), json!(0), json!(null)] {
        let row = json!({"prompt": "a", "completion": "b", "label": label});
        assert_eq!(only(&row), (pair("a", "b"), Extras::default()), "{row}");
    }
    // For a text, a label does not mark an answer.
    let text = only(&json!({"text": "a", "label": false}));
    assert_eq!(text, (Example::Text("a".to_owned()), Extras::default()));
}

#[test]
fn labels_of_a_table_are_words() {
    let file = b"prompt,completion,label\na,b,True\nc,d,False\n";
    let dataset = Project::new(&[("a.csv", file)], &["data.eval=0"]).read();
    let labels: Vec<_> = dataset.rows.all().iter().map(|row| row.extras.label).collect();
    assert_eq!(labels, [None, Some(false)]);
}

#[test]
fn json_lines_may_have_bom_crlf_blank_lines_and_no_last_newline() {
    let file = b"\xef\xbb\xbf{\"text\": \"one\"}\r\n\r\n   \n{\"text\": \"two\"}\n{\"text\": \"three\"}";
    let dataset = Project::new(&[("a.jsonl", file)], &["data.eval=0"]).read();
    let places: Vec<(usize, usize)> =
        dataset.rows.all().iter().map(|row| (row.index, row.origin.line)).collect();
    assert_eq!(places, [(0, 1), (1, 4), (2, 5)]);
    assert_eq!(dataset.rows.all()[2].example, Example::Text("three".to_owned()));
}

#[test]
fn broken_rows_are_reported_and_the_rest_is_read() {
    let file =
        b"{\"text\": \"one\"}\n{\"text\": \xff}\n[1]\n{\"text\": true}\n{\"txt\": \"x\"}\n{\"text\": \"two\"}\n";
    let project = Project::new(&[("a.jsonl", file)], &["data.eval=0"]);
    let dataset = project.read();
    assert_eq!(dataset.rows.len(), 2);
    assert_eq!((dataset.unreadable, dataset.problems.len()), (4, 4));
    let messages: Vec<String> = dataset.problems.iter().map(ToString::to_string).collect();
    assert!(messages[0].starts_with("a.jsonl:2: not JSON"), "{messages:?}");
    assert_eq!(messages[1], "a.jsonl:3: a list where an object is expected");
    assert_eq!(messages[2], "a.jsonl:4: \"text\" is true or false where text is expected");
    assert!(messages[3].contains("data.columns = { text = "), "{messages:?}");
    let error = read_rows(&project.config, project.folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("4 rows cannot be used\n  a.jsonl:2:"), "{error}");
}

#[test]
fn a_line_without_end_does_not_fill_memory() {
    let mut file = b"{\"text\": \"one\"}\n{\"text\": \"".to_vec();
    file.resize(MAX_ROW_BYTES + 100, b'x');
    file.extend_from_slice(b"\n{\"text\": \"two\"}\n");
    let dataset = Project::new(&[("a.jsonl", &file)], &["data.eval=0"]).read();
    assert_eq!(dataset.rows.len(), 2);
    assert_eq!(dataset.problems[0].to_string(), "a.jsonl:2: longer than 64 MiB");
    let quote = [b"text\n\"".as_slice(), &vec![b'x'; MAX_ROW_BYTES + 3_000_000]].concat();
    let error = Project::new(&[("a.csv", &quote)], &["data.eval=0"]).error();
    assert!(error.contains("is a quote not closed?"), "{error}");
}

#[test]
fn json_files_have_rows_in_three_layouts() {
    let rows = [pair("a", "b"), pair("c", "d")];
    let array = b"\xef\xbb\xbf[\n {\"prompt\": \"a\", \"completion\": \"b\"},\n {\"prompt\": \"c\", \"completion\": \"d\"}\n]\n";
    let dataset = Project::new(&[("a.json", array)], &["data.eval=0"]).read();
    assert_eq!(dataset.rows.all().iter().map(|row| row.origin.line).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(dataset.rows.all().into_iter().map(|row| row.example).collect::<Vec<_>>(), rows);
    let objects = b"{\"prompt\": \"a\", \"completion\": \"b\"} {\"prompt\": \"c\",\n\"completion\": \"d\"}";
    assert_eq!(examples("a.json", objects, &["data.eval=0"]), rows);
    let wrapped = b"{\"version\": 1, \"data\": [{\"prompt\": \"a\", \"completion\": \"b\"}, {\"prompt\": \"c\", \"completion\": \"d\"}]}";
    assert_eq!(examples("a.json", wrapped, &["data.eval=0"]), rows);
    let one = br#"{"messages": [{"role": "user", "content": "x"}]}"#;
    assert_eq!(
        examples("a.json", one, &["data.eval=0"]),
        [Example::Messages(vec![Message::new("user", "x")])]
    );
    assert_eq!(examples("a.json", b" [ ] ", &["data.eval=0"]), []);
    assert_eq!(examples("a.json", b"", &["data.eval=0"]), []);
    let error = Project::new(&[("a.json", b"[{\"text\": \"x\"},\n {\"text\": }]")], &[]).error();
    assert!(error.contains("not JSON from line 2 on"), "{error}");
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    assert!(Project::new(&[("a.json", &deep)], &[]).error().contains("recursion limit"));
}

#[test]
fn tables_are_read_by_their_header() {
    let csv = b"\xef\xbb\xbfprompt,completion,note\n\"a, \"\"quoted\"\"\",\"two\nlines\",\nc,d,x\nonly one\n\xff,b,c\n";
    let dataset = Project::new(&[("a.csv", csv)], &["data.eval=0"]).read();
    let read: Vec<Example> = dataset.rows.all().into_iter().map(|row| row.example).collect();
    assert_eq!(read, [pair("a, \"quoted\"", "two\nlines"), pair("c", "d")]);
    assert_eq!(dataset.rows.all()[1].origin.line, 4);
    let messages: Vec<String> = dataset.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "a.csv:5: 1 fields, but the header has 3",
            "a.csv:6: column \"prompt\" is not UTF-8 at byte 1; if the file is Latin-1, convert it with iconv -f latin1 -t utf-8"
        ]
    );
    let tsv = b"q\ta\nWhat?\tThat, of course\n";
    let mapped = ["data.eval=0", "data.columns={ prompt = \"q\", completion = \"a\" }"];
    assert_eq!(examples("a.tsv", tsv, &mapped), [pair("What?", "That, of course")]);
    let json = b"messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"x\"\"}]\"\n";
    assert_eq!(
        examples("a.csv", json, &["data.eval=0"]),
        [Example::Messages(vec![Message::new("user", "x")])]
    );
}

#[test]
fn text_files_have_one_text_per_line() {
    let texts = examples("a.txt", "eins\n\nzwei \ndrei".as_bytes(), &["data.eval=0"]);
    assert_eq!(texts, ["eins", "zwei ", "drei"].map(|text| Example::Text(text.to_owned())));
    assert!(Project::new(&[("a.txt", b"\xff\xfea\0")], &[]).error().contains("UTF-16"));
}

/// Two conversations as Parquet.
fn parquet_file() -> Vec<u8> {
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    let schema = "message row {
        required group messages (LIST) { repeated group list { required group element {
            required binary role (UTF8); required binary content (UTF8); } } }
    }";
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for texts in [["user", "assistant", "user"], ["2+2?", "4", "überall"]] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = texts.map(|text| ByteArray::from(text.as_bytes().to_vec()));
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1, 1, 1]), Some(&[0, 1, 0])).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_is_read_with_its_lists() {
    let whole = parquet_file();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.parquet"), &whole).unwrap();
    let config = crate::data::testing::config("a.parquet", &["data.eval=0"]);
    let rows = read_rows(&config, folder.path()).unwrap().all();
    assert_eq!(
        rows.iter().map(|row| row.example.clone()).collect::<Vec<_>>(),
        [
            Example::Messages(vec![Message::new("user", "2+2?"), Message::new("assistant", "4")]),
            Example::Messages(vec![Message::new("user", "überall")]),
        ]
    );
    assert_eq!(rows[1].origin.line, 2);
    for length in [0, 4, 11, whole.len() / 2, whole.len() - 9] {
        let mut torn = whole[..length].to_vec();
        torn.extend_from_slice(&whole[whole.len() - 8.min(length)..]);
        let error = Project::new(&[("a.parquet", &torn)], &[]).error();
        assert!(error.contains("not readable as Parquet"), "{error}");
    }
}

#[test]
fn conversations_are_read_in_all_common_formats() {
    let (example, extras) = only(&json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "assistant", "content": null, "refusal": null,
             "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        ],
        "tools": [{"type": "function"}],
        "parallel_tool_calls": false,
    }));
    let expected = [("user", "ab"), ("assistant", "no"), ("assistant", "")];
    let Example::Messages(messages) = &example else { panic!("{example:?}") };
    let said: Vec<_> =
        messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    assert_eq!(said, expected);
    assert_eq!(messages[0].fields["name"], "Ann");
    assert_eq!(messages[1].trained, Some(false));
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "1"});
    assert_eq!((messages[2].tool_calls.as_slice(), messages[2].fields.len()), (&[call][..], 0));
    assert_eq!(extras.tools, Some(json!([{"type": "function"}])));

    let (example, extras) = only(&json!({
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "observation", "value": "c"}],
    }));
    let expected = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("tool", "c")];
    assert_eq!(
        example,
        Example::Messages(expected.map(|(role, content)| Message::new(role, content)).to_vec())
    );
    assert_eq!(extras, Extras::default());

    assert_eq!(only(&json!({"instruction": "a", "input": "b", "output": "c"})).0, pair("a\n\nb", "c"));
    assert_eq!(only(&json!({"instruction": "a", "input": "", "output": "c"})).0, pair("a", "c"));
    let (example, _) =
        only(&json!({"instruction": "a", "output": "c", "system": "s", "history": [["x", "y"]]}));
    assert_eq!(example.messages().unwrap().len(), 5);
    let (example, _) = only(&json!({
        "prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}],
    }));
    assert_eq!(example.messages().unwrap(), pair("a", "b").messages().unwrap());
    assert_eq!(only(&json!({"prompt": "[1, 2", "completion": "[3]"})).0, pair("[1, 2", "[3]"));
}

#[test]
fn preferences_and_tokens() {
    let expected = Example::Preference {
        prompt: vec![Message::new("user", "a")],
        chosen: Message::new("assistant", "b"),
        rejected: Message::new("assistant", "c"),
    };
    assert_eq!(only(&json!({"prompt": "a", "chosen": "b", "rejected": "c"})).0, expected);
    let talk =
        |reply: &str| json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": reply}]);
    let reply = |text: &str| json!([{"role": "assistant", "content": text}]);
    let asked = json!([{"role": "user", "content": "a"}]);
    for row in [
        json!({"chosen": talk("b"), "rejected": talk("c")}),
        json!({"prompt": asked, "chosen": reply("b"), "rejected": reply("c")}),
        json!({"prompt": asked, "chosen": talk("b"), "rejected": talk("c")}),
        json!({"prompt": "a", "chosen": reply("b"), "rejected": "c"}),
        json!({"chosen_messages": talk("b"), "rejected_messages": talk("c")}),
        json!({"instruction": "a", "chosen_response": "b", "rejected_response": "c"}),
        json!({"prompt": "shown to people", "chosen": talk("b"), "rejected": talk("c"), "score": 0.5}),
    ] {
        assert_eq!(only(&row).0, expected, "{row}");
    }
    assert!(refused(&json!({"chosen": "b", "rejected": "c"})).contains("no \"prompt\""));
    let longer = json!([{"role": "system", "content": "s"}]);
    let (example, _) = only(&json!({"prompt": longer, "chosen": talk("b"), "rejected": talk("c")}));
    assert_eq!(example.messages().unwrap().len(), 3);
    let two = json!([{"role": "assistant", "content": "b"}, {"role": "user", "content": "d"}]);
    assert!(
        refused(&json!({"prompt": "a", "chosen": two, "rejected": "c"}))
            .contains("exactly one assistant message")
    );

    let tokens = |row: Value| only(&row).0;
    let expected = Example::Tokens { input_ids: vec![1, 2, 3], labels: vec![-100, 2, 3] };
    assert_eq!(tokens(json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})), expected);
    assert_eq!(
        tokens(
            json!({"input_ids": [1, 2, 3, 0], "labels": [-100, 2, 3, -100], "attention_mask": [1, 1, 1, 0]})
        ),
        expected
    );
    assert!(
        refused(&json!({"input_ids": [1, 2], "labels": [2, -100]})).contains("neither -100 nor the id 1")
    );
    assert!(refused(&json!({"input_ids": [1, 2], "labels": [1]})).contains("2 input_ids, but 1 labels"));
    assert!(refused(&json!({"input_ids": [-1], "labels": [1]})).contains("not a token id"));
}

#[test]
fn a_field_that_stands_twice_is_not_read_as_its_last_value() {
    let twice = r#"{"prompt": "a", "completion": "b", "completion": "c"}"#;
    for (name, content) in [
        ("a.jsonl", format!("{twice}\n{{\"text\": \"x\"}}\n")),
        ("a.json", format!("[{twice}, {{\"text\": \"x\"}}]")),
        ("a.json", format!("{twice}\n{{\"text\": \"x\"}}\n")),
    ] {
        let dataset = Project::new(&[(name, content.as_bytes())], &["data.eval=0"]).read();
        assert_eq!(dataset.rows.len(), 1, "{content}");
        let problem = dataset.problems[0].to_string();
        assert!(problem.contains("one object has the name \"completion\" twice"), "{problem}");
    }
}

#[test]
fn a_conversation_may_have_another_reply_beside_it() {
    let talk = |replies: &[&str]| -> Vec<Value> {
        let turn = |reply: &&str| {
            [json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": reply})]
        };
        replies.iter().flat_map(turn).collect()
    };
    for row in [
        json!({"messages": talk(&["x", "b"]), "rejected_response": "c"}),
        json!({"messages": talk(&["x", "b"]), "rejected_messages": talk(&["x", "c"])}),
        json!({"messages": talk(&["x", "b"]), "rejected_messages": [{"role": "assistant", "content": "c"}]}),
    ] {
        let settings = ["train.algorithm=dpo", "data.eval=0"];
        let rows = examples("a.jsonl", row.to_string().as_bytes(), &settings);
        let Example::Preference { prompt, chosen, rejected } = &rows[0] else { panic!("{rows:?}") };
        assert_eq!((prompt.len(), chosen.content.as_str(), rejected.content.as_str()), (3, "b", "c"));
    }
    let unknown = refused(&json!({"text_better": "b", "text_worse": "c"}));
    assert!(unknown.contains("chosen = \"text_better\", rejected = \"text_worse\""), "{unknown}");
}

#[test]
fn the_prompt_of_two_texts_is_their_common_beginning() {
    let texts = |chosen: &str, rejected: &str| only(&json!({"chosen": chosen, "rejected": rejected})).0;
    let example = texts("The sky is blue.", "The sky is green.");
    let Example::Preference { prompt, chosen, rejected } = &example else { panic!("{example:?}") };
    assert_eq!(
        (prompt.as_slice(), shared_beginning(&chosen.content, &rejected.content)),
        (&[][..], "The sky is".len())
    );
    assert_eq!(example.messages(), None);
    for (chosen, rejected, shared) in [
        ("caféa", "caféb", "café"),
        ("same", "same", "sam"),
        ("abc", "abcdef", "ab"),
        ("a b", "a c", "a"),
        ("x", "y", ""),
        ("", "y", ""),
    ] {
        assert_eq!(&chosen[..shared_beginning(chosen, rejected)], shared, "{chosen} {rejected}");
    }
}

#[test]
fn pairs_keep_tools_and_message_fields_of_their_prompt() {
    let row = |reply: Value| {
        json!({
            "prompt": [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "no", "weight": 0},
                       {"role": "user", "content": "b"}],
            "chosen": [reply], "rejected": [{"role": "assistant", "content": "c"}], "tools": [{"type": "function"}],
        })
    };
    let (example, extras) = only(&row(json!({"role": "assistant", "content": "d"})));
    let messages = example.messages().unwrap();
    assert_eq!(messages.len(), 4);
    assert_eq!((&messages[0].fields["name"], messages[1].trained), (&json!("Ann"), Some(false)));
    assert_eq!(extras.tools, Some(json!([{"type": "function"}])));
    let calls = json!([{"name": "f", "arguments": {}}]);
    let (calling, _) = only(&row(json!({"role": "assistant", "content": null, "tool_calls": calls})));
    let Example::Preference { chosen, rejected, .. } = &calling else { panic!("{calling:?}") };
    assert_eq!((chosen.tool_calls.len(), rejected.content.as_str()), (1, "c"));
}

#[test]
fn a_dataset_with_two_formats_is_read_as_the_algorithm_needs() {
    let talk =
        |reply: &str| json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": reply}]);
    let row = json!({"prompt": "a", "chosen": talk("b"), "rejected": talk("c"), "messages": talk("b")});
    let read = |settings: &[&str]| examples("a.jsonl", row.to_string().as_bytes(), settings).remove(0);
    assert!(matches!(read(&["data.eval=0"]), Example::Messages(_)));
    assert!(read(&["data.eval=0", "train.algorithm=dpo"]).is_pair());
    let columns = json!({"question": "a", "better": "b", "worse": "c"});
    let settings =
        ["data.eval=0", "data.columns={ prompt = \"question\", chosen = \"better\", rejected = \"worse\" }"];
    assert_eq!(
        examples("a.jsonl", columns.to_string().as_bytes(), &settings)[0].messages(),
        pair("a", "b").messages()
    );
}

#[test]
fn malformed_conversations_are_refused_with_their_place() {
    let message = |value: Value| refused(&json!({"messages": value}));
    assert!(message(json!([])).contains("is empty"));
    assert!(message(json!("x")).contains("text where a list of messages"));
    assert!(
        message(json!([{"role": "user", "content": "x"}, {"content": "y"}]))
            .contains("messages[1] has no \"role\"")
    );
    assert!(message(json!([{"role": "user"}])).contains("messages[0] has no \"content\""));
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    assert!(message(image).contains("only text can be trained on"));
    assert!(
        refused(&json!({"first": "x", "second": "y"}))
            .contains("data.columns = { prompt = \"first\", completion = \"second\" }")
    );
    assert!(
        refused(&json!({"conversations": [{"from": "nobody", "value": "x"}]}))
            .contains("not a known speaker")
    );
}

#[test]
fn columns_are_checked_and_renamed() {
    let file = br#"{"q": "a", "completion": "b", "prompt": "shadowed"}"#;
    assert_eq!(
        examples("a.jsonl", file, &["data.eval=0", "data.columns={ prompt = \"q\" }"]),
        [pair("a", "b")]
    );
    let swapped = br#"{"prompt": "b", "completion": "a"}"#;
    let settings = ["data.eval=0", "data.columns={ prompt = \"completion\", completion = \"prompt\" }"];
    assert_eq!(examples("a.jsonl", swapped, &settings), [pair("a", "b")]);
    let missing = Project::new(&[("a.jsonl", file)], &["data.columns={ prompt = \"question\" }"]).read();
    assert!(missing.problems[0].message.contains("no column \"question\""), "{:?}", missing.problems);
}

#[test]
fn columns_can_name_fields_of_messages() {
    let file = br#"{"talk": [{"speaker": "user", "says": "a"}, {"speaker": "assistant", "says": "b"}]}"#;
    let settings =
        ["data.eval=0", "data.columns={ messages = \"talk\", role = \"speaker\", content = \"says\" }"];
    assert_eq!(examples("a.jsonl", file, &settings), [Example::Messages(pair("a", "b").messages().unwrap())]);
    let file = br#"{"conversations": [{"who": "human", "value": "a"}, {"who": "gpt", "value": "b"}]}"#;
    let settings = ["data.eval=0", "data.columns={ from = \"who\" }"];
    assert_eq!(examples("a.jsonl", file, &settings), [Example::Messages(pair("a", "b").messages().unwrap())]);
}

#[test]
fn unusable_files_are_reported() {
    let unknown = Project::new(&[("a.xlsx", b"x")], &[]);
    assert!(unknown.error().starts_with("a.xlsx: not a known kind of dataset"), "{}", unknown.error());
    let mut project = Project::new(&[("a.jsonl", b"{}")], &[]);
    project.config.data.train = vec!["missing.jsonl".into()];
    assert!(project.error().starts_with("cannot read missing.jsonl:"), "{}", project.error());
    project.config.data.train = vec!["/dev/zero".into()];
    assert!(project.error().contains("/dev/zero: it is a pipe, socket or device"), "{}", project.error());
}

fn numbered(count: usize) -> Vec<u8> {
    let rows: Vec<Value> = (0..count).map(|number| json!({"text": format!("row {number}")})).collect();
    format!("{}\n", crate::data::testing::json_lines(&rows)).into_bytes()
}

fn held_out(dataset: &Dataset) -> Vec<String> {
    dataset
        .rows
        .all()
        .iter()
        .filter(|row| row.split == Split::Eval)
        .map(|row| row.example.plain_text())
        .collect()
}

#[test]
fn the_split_depends_only_on_seed_and_content() {
    let project = Project::new(&[("a.jsonl", &numbered(100))], &["data.eval=0.1"]);
    let first = held_out(&project.read());
    assert_eq!(first.len(), 10);
    assert_eq!(first, held_out(&project.read()));
    let other = Project::new(&[("a.jsonl", &numbered(100))], &["data.eval=0.1", "train.seed=7"]);
    assert_ne!(first, held_out(&other.read()));
    let longer = Project::new(&[("a.jsonl", &numbered(104))], &["data.eval=0.1"]);
    let kept = held_out(&longer.read()).iter().filter(|text| first.contains(text)).count();
    assert!(kept >= 8, "{kept}");
    let two = Project::new(&[("a.jsonl", &numbered(2))], &["data.eval=0.01"]);
    assert_eq!(held_out(&two.read()).len(), 1);
    let one = Project::new(&[("a.jsonl", &numbered(1))], &["data.eval=0.5"]);
    assert_eq!(held_out(&one.read()).len(), 0);
}

#[test]
fn equal_rows_are_in_one_part() {
    let file = [numbered(50), numbered(50)].concat();
    let dataset = Project::new(&[("a.jsonl", &file)], &["data.eval=0.2"]).read();
    let out = held_out(&dataset);
    assert_eq!(out.len(), 20);
    assert!(out.iter().all(|text| out.iter().filter(|other| *other == text).count() == 2));
}

#[test]
fn evaluation_files_and_quarantine() {
    let files: [(&str, &[u8]); 2] = [("a.jsonl", &numbered(5)), ("b.jsonl", b"{\"text\": \"other\"}\n")];
    let project = Project::new(&files, &["data.eval=\"b.jsonl\""]);
    let dataset = project.read();
    assert_eq!(held_out(&dataset), ["other"]);
    assert_eq!(dataset.rows.all().iter().map(|row| row.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);

    let mut quarantine = Quarantine::load(project.folder.path()).unwrap();
    quarantine.insert(&dataset.rows.all()[2].hash());
    quarantine.save().unwrap();
    let after = project.read();
    assert_eq!(after.quarantined.len(), 1);
    assert_eq!(after.quarantined.all()[0].example, dataset.rows.all()[2].example);
    assert_eq!(after.rows.all().iter().map(|row| row.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(after.rows.all().iter().all(|row| row.example != dataset.rows.all()[2].example));
}

#[test]
fn copies_in_quarantine_leave_the_first_row() {
    let file = b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"a\"}\n";
    let files: [(&str, &[u8]); 2] = [("a.jsonl", file), ("b.jsonl", b"{\"text\": \"a\"}\n")];
    let project = Project::new(&files, &["data.eval=\"b.jsonl\""]);
    let dataset = project.read();
    let mut quarantine = Quarantine::load(project.folder.path()).unwrap();
    quarantine.insert_copies(&dataset.rows.all()[0].hash());
    let without = read_dataset_without(&project.config, project.folder.path(), &quarantine).unwrap();
    assert_eq!(without.rows.all(), dataset.rows.all()[..2]);
    let places: Vec<String> = without.quarantined.all().iter().map(|row| row.origin.to_string()).collect();
    assert_eq!(places, ["a.jsonl:3", "b.jsonl:1"]);
    assert_eq!(project.read().rows.heads(), dataset.rows.heads(), "nothing was saved");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_file_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "[\\[\\]{}\",:a-z0-9 \n\r\t\\\\é]{0,80}",
    ) {
        for content in [bytes.as_slice(), text.as_bytes()] {
            for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt"] {
                let project = Project::new(&[(name, content)], &[]);
                let _ = read_dataset(&project.config, project.folder.path());
            }
        }
    }

    #[test]
    fn a_damaged_file_is_refused_or_read(damage in damage()) {
        let jsonl: &[u8] = br#"{"messages": [{"role": "user", "content": "a\u00e9"}, {"role": "assistant", "content": "b"}]}
{"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]}
{"chosen": [{"role": "user", "content": "a"}], "rejected": "[{\"from\": \"gpt\"}]", "prompt": null}"#;
        let csv: &[u8] = b"prompt,completion\n\"a \"\"b\"\",c\n\"[{\"\"role\"\": \"\"user\"\"}]\",d\n";
        let parquet = parquet_file();
        for (name, content) in [
            ("a.jsonl", jsonl),
            ("a.json", jsonl),
            ("a.csv", csv),
            ("a.tsv", csv),
            ("a.parquet", &parquet),
            ("a.txt", csv),
        ] {
            let project = Project::new(&[(name, &damaged(content, &damage))], &[]);
            if let Ok(dataset) = read_dataset(&project.config, project.folder.path()) {
                prop_assert!(dataset.rows.all().iter().enumerate().all(|(index, row)| row.index == index));
            }
        }
    }

    #[test]
    fn written_rows_read_back_equal(texts in prop::collection::vec(("\\PC{1,20}", "[a\"',;\t\r\né{}\\[\\]]{1,20}"), 1..8)) {
        let rows: Vec<Value> =
            texts.iter().map(|(prompt, completion)| json!({"prompt": prompt, "completion": completion})).collect();
        let wanted: Vec<Example> =
            texts.iter().map(|(prompt, completion)| pair(prompt, completion)).collect();
        let jsonl = crate::data::testing::json_lines(&rows).into_bytes();
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(["prompt", "completion"]).unwrap();
        for (prompt, completion) in &texts {
            table.write_record([prompt, completion]).unwrap();
        }
        let table = table.into_inner().unwrap();
        let array = Value::from(rows).to_string().into_bytes();
        for (name, content) in [("a.jsonl", &jsonl), ("a.csv", &table), ("a.json", &array)] {
            prop_assert_eq!(&examples(name, content, &["data.eval=0"]), &wanted, "{}", name);
        }
    }
}

#[test]
fn whole_numbers_that_lose_digits_are_told() {
    let row = "{\"prompt\": \"a\", \"completion\": \"b\", \"id\": 123456789012345678901234567890}";
    let said =
        "1 row has a whole number of more than 64 bits, whose last digits are lost; write it as a text";
    let lines = Project::new(&[("a.jsonl", format!("{row}\n{{\"text\": \"c\"}}").as_bytes())], &[]).read();
    assert!(lines.notices.contains(&format!("a.jsonl: {said}")), "{:?}", lines.notices);
    let whole = Project::new(&[("a.json", format!("[{row}]").as_bytes())], &[]).read();
    assert!(whole.notices.iter().any(|notice| notice.starts_with("a.json: a row has a whole number")));
}
