//! Whole rows: what a user writes, and what is trained on of it. Most of these were reported of some tool as silent
//! failures.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::prepare::prepare_with;
use super::testing::{config, json_lines, tiny};
use super::{Encoded, Prepared, ProblemKind, Severity, Template, encode, read_dataset, row_tokens};
use crate::config::Config;
use crate::model::SpecialTokens;

/// A template that knows system messages, tools and tool calls.
const TOOLS: &str = "{% if tools %}{{ '<|im_start|>tools\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}\
                     {{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
                     {% for c in m.tool_calls %}{{ '<call>' + (c.function | tojson) + '</call>' }}{% endfor %}\
                     {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// A template that knows roles and contents only.
const PLAIN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn tool() -> Value {
    json!({"name": "stock", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}})
}

fn call(arguments: &Value) -> Value {
    json!([{"type": "function", "function": {"name": "stock", "arguments": arguments}}])
}

fn settings(more: &[&str]) -> Config {
    config("a.jsonl", &[&["data.eval=0", "data.max_length=2000"], more].concat())
}

fn project(rows: &[Value]) -> tempfile::TempDir {
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("a.jsonl"), json_lines(rows)).unwrap();
    project
}

fn compiled(template: &str) -> Template {
    Template::compile("test", template, &SpecialTokens::default()).unwrap()
}

/// The first side of each row.
fn encoded(template: &str, rows: &[Value], more: &[&str]) -> Vec<Encoded> {
    let (project, config) = (project(rows), settings(more));
    let dataset = read_dataset(&config, project.path()).unwrap();
    assert_eq!(dataset.problems, []);
    let (tokenizer, template) = (tiny("bytelevel"), compiled(template));
    let side = |row| encode(row, &tokenizer, &template, &config).unwrap().remove(0);
    dataset.rows.all().iter().map(side).collect()
}

/// The text of a side, with what is trained in brackets.
fn marked(side: &Encoded) -> String {
    let mut text = String::new();
    let mut inside = false;
    for piece in row_tokens(side) {
        if piece.trained != inside {
            text.push(if inside { '⟧' } else { '⟦' });
            inside = piece.trained;
        }
        text.push_str(&piece.text);
    }
    if inside { text + "⟧" } else { text }
}

fn texts(template: &str, rows: &[Value], more: &[&str]) -> Vec<String> {
    encoded(template, rows, more).iter().map(marked).collect()
}

fn checked(template: &str, rows: &[Value], more: &[&str]) -> Prepared {
    let (project, config) = (project(rows), settings(more));
    checked_in(project.path(), &config, template)
}

fn checked_in(project: &Path, config: &Config, template: &str) -> Prepared {
    let dataset = read_dataset(config, project).unwrap();
    let tokenizer = tiny("bytelevel");
    let stop = tokenizer.id("<|im_end|>").into_iter().collect();
    let mut go_on = |_, _| ControlFlow::Continue(());
    prepare_with(config, &dataset, &tokenizer, &compiled(template), stop, &mut go_on).unwrap()
}

fn kinds(prepared: &Prepared) -> Vec<(ProblemKind, Severity)> {
    let problems =
        prepared.checked.report.problems.iter().filter(|problem| problem.kind != ProblemKind::NoEvalRows);
    let mut kinds: Vec<_> = problems.map(|problem| (problem.kind, problem.severity)).collect();
    kinds.dedup();
    kinds
}

fn turns(replies: &[(&str, Value)]) -> Value {
    let messages = replies.iter().enumerate().flat_map(|(index, (reply, more))| {
        let mut message = json!({"role": "assistant", "content": reply});
        message.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        [json!({"role": "user", "content": format!("q{index}?")}), message]
    });
    json!({"messages": messages.collect::<Vec<_>>()})
}

#[test]
fn a_generation_block_belongs_to_the_reply_that_wrote_it() {
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' + \
                    m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\n' + \
                    m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}";
    let weighed = |weights: [Value; 3]| {
        let [one, two, three] = weights.map(|weight| json!({"weight": weight}));
        turns(&[("One.", one), ("Two.", two), ("Three.", three)])
    };
    let trained = |row: Value, train_on: &str| -> Vec<String> {
        let text = texts(template, &[row], &[&format!("data.train_on={train_on}")]).remove(0);
        text.split('⟦').skip(1).map(|part| part.split('⟧').next().unwrap().to_owned()).collect()
    };
    let block = |words: &str| format!("<|im_start|>assistant\n{words}<|im_end|>\n");
    let all = [block("One."), block("Two."), block("Three.")];
    assert_eq!(trained(weighed([Value::Null, Value::Null, Value::Null]), "assistant"), all);
    assert_eq!(trained(weighed([1.into(), 0.into(), 1.into()]), "assistant"), [&*all[0], &*all[2]]);
    assert_eq!(trained(weighed([1.into(), 1.into(), 0.into()]), "assistant"), [&*all[0], &*all[1]]);
    assert_eq!(trained(weighed([Value::Null, Value::Null, Value::Null]), "completion"), [&*all[2]]);
}

#[test]
fn weights_are_honoured_however_they_are_written() {
    for (name, value) in [
        ("train", json!(false)),
        ("training", json!(false)),
        ("loss", json!(false)),
        ("weight", json!(false)),
        ("weight", json!("0")),
        ("weight", json!(0.0)),
        ("loss", json!("false")),
    ] {
        let row = turns(&[("BAD.", json!({name: value})), ("Good.", json!({}))]);
        let text = texts(PLAIN, &[row], &["data.train_on=assistant"]).remove(0);
        assert!(text.contains("\nBAD.<") && text.contains("⟦Good.<|im_end|>⟧"), "{name}: {text}");
    }
    let row = turns(&[("One.", json!({"weight": 1})), ("Two.", json!({"weight": 0}))]);
    let text = texts(PLAIN, &[row], &[]).remove(0);
    assert!(text.contains("⟦One.<|im_end|>⟧") && text.contains("\nTwo.<"), "{text}");
    let fraction = turns(&[("One.", json!({"weight": 0.5}))]);
    let project = project(&[fraction]);
    let problem = read_dataset(&settings(&[]), project.path()).unwrap().problems.remove(0);
    assert!(problem.message.contains("\"weight\" = 0.5"), "{problem}");
}

#[test]
fn tools_and_calls_have_one_form() {
    let calling = |row: Value| {
        let mut messages = vec![json!({"role": "user", "content": "Stock of K-7?"})];
        messages.push(row);
        messages
    };
    let whole = |arguments: Value| {
        json!({"messages": calling(json!({"role": "assistant", "content": null, "tool_calls": call(&arguments)})),
               "tools": [{"type": "function", "function": tool()}]})
    };
    let value = json!({"name": "stock", "arguments": {"item": "K-7"}});
    let rows = [
        whole(json!({"item": "K-7"})),
        whole(json!("{\"item\": \"K-7\"}")),
        json!({"messages": calling(json!({"role": "assistant", "content": "", "function_call":
            {"name": "stock", "arguments": "{\"item\": \"K-7\"}"}})), "functions": [tool()]}),
        json!({"messages": calling(json!({"role": "tool_call", "content": value.to_string()})),
               "tools": json!([tool()]).to_string()}),
        json!({"conversations": [{"from": "human", "value": "Stock of K-7?"},
            {"from": "function_call", "value": value.to_string()}], "tools": [tool().to_string()]}),
        json!({"prompt": [{"role": "user", "content": "Stock of K-7?"}],
            "completion": [{"role": "assistant", "content": "", "tool_calls": [value]}], "tools": [tool()]}),
        json!({"messages": [{"role": "Human", "content": [{"type": "text", "value": "Stock of K-7?"}]},
            {"role": "MODEL", "content": [{"type": "tool_use", "id": "1", "name": "stock", "input": {"item": "K-7"}}]}],
            "tools": [tool()]}),
        json!({"messages": calling(json!({"role": "assistant", "content": [{"type": "tool_call", "value": value.to_string()}]})),
               "tools": [tool()]}),
        json!({"messages": calling(json!({"role": "assistant", "content": [
                {"type": "tool_call", "value": null, "text": null, "tool_call": value}]})), "tools": [tool()]}),
    ];
    let texts = texts(TOOLS, &rows, &[]);
    let expected = format!(
        "<|im_start|>tools\n{}\n<|im_end|>\n<|im_start|>user\nStock of K-7?<|im_end|>\n<|im_start|>assistant\n⟦<call>{}</call>\
         <|im_end|>⟧\n",
        crate::json::python_text(&json!({"type": "function", "function": tool()})),
        "{\"name\": \"stock\", \"arguments\": {\"item\": \"K-7\"}}"
    );
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(*text, expected, "{index}");
    }
}

#[test]
fn blank_tools_are_no_tools() {
    let row = |tools: Value| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": tools});
    for tools in [json!(""), json!(" "), json!("[]"), json!([]), Value::Null] {
        let text = texts(TOOLS, &[row(tools.clone())], &[]).remove(0);
        assert_eq!(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n", "{tools}");
    }
}

#[test]
fn what_the_template_leaves_out_is_said_and_an_empty_reply_blocks() {
    let row = json!({"messages": [
        {"role": "user", "content": "Stock of K-7?"},
        {"role": "assistant", "content": null, "tool_calls": call(&json!({"item": "K-7"}))},
    ], "tools": [tool()]});
    let prepared = checked(PLAIN, std::slice::from_ref(&row), &[]);
    assert_eq!(
        kinds(&prepared),
        [(ProblemKind::NothingLearned, Severity::Blocks), (ProblemKind::NotInText, Severity::Warning),]
    );
    assert_eq!(prepared.checked.report.rows_of(ProblemKind::NotInText), [0]);
    assert_eq!(kinds(&checked(TOOLS, &[row], &[])), []);
}

#[test]
fn a_rows_variable_that_the_template_does_not_read_is_named_once() {
    let row = |variables: Value| json!({"prompt": "2+3?", "completion": "Five.", "chat_template_kwargs": variables});
    let rows =
        [row(json!({"enable_thinking": false})), row(json!({"enable_thinking": true})), row(json!({}))];
    let unused = |template: &str| -> Vec<String> {
        let report = checked(template, &rows, &[]).checked.report;
        let unused = report.problems.into_iter().filter(|problem| problem.kind == ProblemKind::UnusedField);
        unused.map(|problem| problem.message).collect()
    };
    let expected = "the template test reads no variable \"enable_thinking\", which 2 rows set in chat_template_kwargs (first \
                    in a.jsonl:1)";
    assert_eq!(unused(PLAIN), [expected]);
    assert_eq!(unused(&format!("{{{{ '.' if enable_thinking else '' }}}}{PLAIN}")), [] as [&str; 0]);
}

#[test]
fn a_system_prompt_and_tools_stand_beside_a_prompt_too() {
    let rows = [
        json!({"prompt": "2+3?", "completion": "Five.", "system": "Be brief."}),
        json!({"instruction": "2+3?", "output": "Five.", "system": "Be brief."}),
        json!({"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "2+3?"},
            {"role": "assistant", "content": "Five."}]}),
        json!({"prompt": "2+3?", "chosen": "Five.", "rejected": "Six.", "system": "Be brief."}),
    ];
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n\
                    ⟦Five.<|im_end|>⟧\n";
    for row in rows {
        assert_eq!(texts(PLAIN, std::slice::from_ref(&row), &[]), [expected], "{row}");
    }
    let named = json!({"prompt": "2+3?", "completion": "Five.", "persona": "Be brief."});
    assert_eq!(texts(PLAIN, &[named], &["data.columns={ system = \"persona\" }"]), [expected]);
    let text = json!({"text": "Be brief.", "persona": "x"});
    let project = project(&[text]);
    let settings = settings(&["data.columns={ system = \"persona\" }"]);
    let problem = read_dataset(&settings, project.path()).unwrap().problems.remove(0);
    assert!(problem.message.contains("rows of format \"text\" have no system"), "{problem}");
}

#[test]
fn reasoning_has_many_names_and_one_place() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think>\n' + \
                    (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let row = |more: Value| turns(&[("Five.", more)]);
    let rows = [
        row(json!({"reasoning_content": "Two and three."})),
        row(json!({"reasoning": "Two and three."})),
        row(json!({"thinking": "Two and three."})),
        row(
            json!({"content": [{"type": "thinking", "thinking": "Two and three."}, {"type": "text", "text": "Five."}]}),
        ),
        row(
            json!({"content": [{"type": "reasoning", "value": "Two and three."}, {"type": "text", "value": "Five."}]}),
        ),
        row(
            json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Two and three."}]},
            {"type": "text", "text": "Five."}]}),
        ),
    ];
    let expected = "<|im_start|>user\nq0?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nTwo and three.\n</think>\n\nFive.<|im_end|>⟧\n";
    assert_eq!(texts(template, &rows, &[]), [expected; 6]);
    let masked = "<|im_start|>user\nq0?<|im_end|>\n<|im_start|>assistant\n<think>\nTwo and three.\n</think>⟦\n\nFive.<|im_end|>⟧\n";
    assert_eq!(texts(template, &rows[..1], &["data.reasoning=mask"]), [masked]);
    let empty = checked(template, &[row(json!({})), turns(&[("Six.", json!({}))])], &[]);
    assert_eq!(
        kinds(&empty),
        [(ProblemKind::EmptyReasoning, Severity::Warning), (ProblemKind::Contradiction, Severity::Note)]
    );
}

#[test]
fn what_the_generation_prompt_supplies_is_never_trained() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] | trim + \
                    '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";
    let rows = [
        turns(&[("Five.", json!({}))]),
        turns(&[("<think>\nwhy\n</think>\n\nSix.", json!({}))]),
        turns(&[("<tool_call>x</tool_call>", json!({}))]),
    ];
    let texts = texts(template, &rows, &[]);
    assert!(texts[0].ends_with("assistant\n⟦Five.<|im_end|>⟧\n"), "{texts:?}");
    assert!(texts[1].ends_with("assistant\n⟦Six.<|im_end|>⟧\n"), "{texts:?}");
    assert!(texts[2].ends_with("assistant\n⟦<tool_call>x</tool_call><|im_end|>⟧\n"), "{texts:?}");
    let prepared = checked(template, &rows[1..2], &[]);
    assert_eq!(kinds(&prepared), [(ProblemKind::NotInText, Severity::Warning)]);
    assert!(prepared.checked.report.problems[0].message.contains("the reasoning of message 2 (assistant)"));
}

#[test]
fn earlier_thoughts_that_are_cut_out_leave_the_mask_in_its_place() {
    let template = "{% for m in messages %}{% set last = loop.last %}{{ '<|im_start|>' + m.role + '\n' + (m.content if last else \
                    m.content.split('</think>')[-1].lstrip('\n')) + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                    {{ '<|im_start|>assistant\n' }}{% endif %}";
    let thought = |why: &str, said: &str| format!("<think>\n{why}\n</think>\n\n{said}");
    let (first, second) = (thought("Two and three.", "Yes."), thought("One more.", "Yes."));
    let row = turns(&[(&first, json!({})), (&second, json!({}))]);
    assert_eq!(
        texts(template, &[row], &["data.train_on=assistant"]),
        [
            "<|im_start|>user\nq0?<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n<|im_start|>user\nq1?<|im_end|>\n\
          <|im_start|>assistant\n⟦<think>\nOne more.\n</think>\n\nYes.<|im_end|>⟧\n"
        ]
    );
}

#[test]
fn a_system_prompt_that_is_written_only_before_the_last_question_is_missed() {
    let template = "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}{% else %}\
                    {% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}{% if loop.last and sys is \
                    defined %}{{ '[' + sys + ' ' + m.content + ']' }}{% else %}{{ '[' + m.content + ']' }}{% endif %}{% else %}\
                    {{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}";
    let row = json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Five."},
        {"role": "assistant", "content": "Five."}]});
    assert_eq!(texts(template, std::slice::from_ref(&row), &[]), ["[Five.]⟦Five.<|im_end|>⟧"]);
    let prepared = checked(template, std::slice::from_ref(&row), &[]);
    assert!(prepared.checked.report.problems[0].message.contains("the content of message 1 (system)"));
    assert_eq!(
        texts(template, &[row], &["data.system_role=merge"]),
        ["[Be brief.\n\nFive.]⟦Five.<|im_end|>⟧"]
    );
}

#[test]
fn variables_reach_the_template_from_row_and_project() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think></think>' }}\
                    {% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                    {{ '<|im_start|>assistant\n' }}{% if not thinks %}{{ '<think></think>' }}{% endif %}{% endif %}";
    let mut row = turns(&[("Five.", json!({}))]);
    row["chat_template_kwargs"] = json!({"thinks": false});
    assert!(
        texts(template, std::slice::from_ref(&row), &[])[0].ends_with("<think></think>⟦Five.<|im_end|>⟧\n")
    );
    row["chat_template_kwargs"] = json!("{\"thinks\": true}");
    assert!(texts(template, &[row], &[])[0].ends_with("⟦<think></think>Five.<|im_end|>⟧\n"));
}

#[test]
fn windows_line_ends_of_a_template_stay_out_of_the_text() {
    let source = "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let rows = [turns(&[("Five.", json!({}))])];
    assert_eq!(texts(&source.replace('\n', "\r\n"), &rows, &[]), texts(source, &rows, &[]));
}

#[test]
fn none_is_not_iterable_and_a_text_is() {
    let source = "{{ none is iterable }} {{ 'a' is iterable }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is iterable }}";
    assert_eq!(compiled(source).render(&[], false).unwrap(), "False True True True False");
}

#[test]
fn rows_with_one_prompt_stay_on_one_side_of_the_split() {
    let rows: Vec<Value> = (0..40)
        .map(|row| json!({"prompt": format!("Question {}?", row % 10), "completion": format!("Answer {row}."), "talk": row / 8}))
        .collect();
    let project = project(&rows);
    let split = |more: &[&str]| {
        let config = config("a.jsonl", &[&["data.eval=0.25"], more].concat());
        let dataset = read_dataset(&config, project.path()).unwrap();
        let held_out: Vec<usize> = dataset
            .rows
            .all()
            .iter()
            .filter(|row| row.split == super::Split::Eval)
            .map(|row| row.index)
            .collect();
        (held_out, checked_in(project.path(), &config, PLAIN))
    };
    let (held_out, prepared) = split(&[]);
    assert_eq!(held_out.len(), 8);
    let prompts =
        |rows: &[usize]| rows.iter().map(|row| row % 10).collect::<std::collections::HashSet<_>>().len();
    assert_eq!(
        (prompts(&held_out), prepared.checked.report.rows_of(ProblemKind::PromptInTrain)),
        (2, &[][..])
    );
    let (alone, prepared) = split(&["data.group_by=row"]);
    assert_eq!((alone.len(), prompts(&alone) > 2), (10, true));
    assert!(!prepared.checked.report.rows_of(ProblemKind::PromptInTrain).is_empty());
    let (talks, _) = split(&["data.group_by=talk"]);
    assert_eq!(talks.iter().map(|row| row / 8).collect::<std::collections::HashSet<_>>().len(), 1);
}

#[test]
fn a_token_across_the_boundary_is_said() {
    let rows = [
        json!({"prompt": "The capital of France: ", "completion": "it"}),
        json!({"prompt": "The capital of Norway:", "completion": " it"}),
    ];
    let (project, config) = (project(&rows), settings(&[]));
    let dataset = read_dataset(&config, project.path()).unwrap();
    let mut go_on = |_, _| ControlFlow::Continue(());
    let prepared =
        prepare_with(&config, &dataset, &tiny("bytelevel"), &Template::none(), vec![1], &mut go_on).unwrap();
    assert_eq!(
        prepared.checked.report.rows_of(ProblemKind::TokenAcross),
        [0],
        "{:?}",
        prepared.checked.report.problems
    );
}

#[test]
fn pairs_of_other_tools_are_read() {
    let rows = [
        json!({"input": {"messages": [{"role": "user", "content": "2+3?"}], "tools": [], "parallel_tool_calls": true},
            "preferred_output": [{"role": "assistant", "content": "Five."}],
            "non_preferred_output": [{"role": "assistant", "content": "Six."}]}),
        json!({"conversations": [{"from": "human", "value": "2+3?"}], "chosen": {"from": "gpt", "value": "Five."},
            "rejected": {"from": "gpt", "value": "Six."}}),
        json!({"instruction": "2+3?", "input": "", "chosen": "Five.", "rejected": "Six."}),
        json!({"question": "2+3?", "chosen": "Five.", "rejected": "Six."}),
    ];
    let expected = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n⟦Five.<|im_end|>⟧\n";
    assert_eq!(texts(PLAIN, &rows, &["train.algorithm=dpo"]), [expected; 4]);
    let nested = [
        "train.algorithm=dpo",
        "data.columns={ prompt = \"ask.messages\", chosen = \"good\", rejected = \"bad\" }",
    ];
    let row =
        json!({"ask": {"messages": [{"role": "user", "content": "2+3?"}]}, "good": "Five.", "bad": "Six."});
    assert_eq!(texts(PLAIN, &[row], &nested), [expected]);
}

#[test]
fn common_columns_are_understood_and_the_others_named() {
    let rows = [
        json!({"instruction": "2+3?", "context": "", "response": "Five."}),
        json!({"question": "2+3?", "answer": "Five."}),
        json!({"query": "2+3?", "response": "Five.", "history": []}),
        json!({"problem": "2+3?", "solution": "Five.", "level": 3}),
        json!({"conversation": [{"human": "2+3?", "assistant": "Five."}]}),
    ];
    let expected = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n⟦Five.<|im_end|>⟧\n";
    for row in &rows {
        assert_eq!(texts(PLAIN, std::slice::from_ref(row), &[]), [expected], "{row}");
    }
    let prepared = checked(PLAIN, &rows[3..4], &[]);
    let messages: Vec<&str> =
        prepared.checked.report.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(
        messages.iter().any(|message| message.contains("prompt = \"problem\", completion = \"solution\"")),
        "{messages:?}"
    );
    assert!(
        messages.iter().any(|message| message.starts_with("nothing reads the field \"level\" of 1 row")),
        "{messages:?}"
    );
}

#[test]
fn rows_that_cannot_be_meant_are_refused() {
    let refused = |row: Value| {
        let project = project(&[row]);
        read_dataset(&settings(&[]), project.path()).unwrap().problems.remove(0).message
    };
    let mut row = turns(&[("b", json!({}))]);
    row["images"] = json!(["a.png"]);
    assert!(refused(row).contains("has \"images\""));
    assert!(refused(json!({"prompt": "a", "text": "b"})).contains("completion = \"text\""));
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]});
    assert!(refused(image).contains("part of type \"image_url\""));
}

#[test]
fn a_result_that_is_an_object_reaches_the_template() {
    let row = json!({"messages": [
        {"role": "user", "content": "Stock of K-7?"},
        {"role": "assistant", "content": "", "tool_calls": call(&json!({"item": "K-7"}))},
        {"role": "tool", "content": {"units": 12}},
        {"role": "assistant", "content": "Twelve."},
    ]});
    let text = texts(TOOLS, std::slice::from_ref(&row), &[]).remove(0);
    assert!(text.contains("<|im_start|>tool\n{\"units\": 12}<|im_end|>"), "{text}");
    let as_json =
        TOOLS.replace("+ m.content }}", "+ (m.content if m.content is string else m.content | tojson) }}");
    assert_eq!(texts(&as_json, std::slice::from_ref(&row), &[]).remove(0), text);
    assert_eq!(kinds(&checked(TOOLS, &[row], &[])), [(ProblemKind::EarlierReplies, Severity::Note)]);
}

#[test]
fn a_long_text_is_learned_in_as_many_examples_as_it_fills() {
    let text = (0..400).map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ");
    let rows = [json!({"text": text})];
    let whole = checked(PLAIN, &rows, &["data.max_length=100000"]);
    let parts = checked(PLAIN, &rows, &["data.max_length=64", "data.overflow=split"]);
    assert_eq!(parts.checked.report.rows_of(ProblemKind::TextSplit), [0]);
    assert!(parts.train.len() > 10 && parts.train.iter().all(|row| row.longest() <= 64));
    assert_eq!(
        parts.checked.report.trained_tokens, whole.checked.report.trained_tokens,
        "every token is learned once"
    );
    assert!(!parts.checked.report.blocks());
}

#[test]
fn what_follows_the_end_of_a_turn_is_trained_where_asked() {
    let row = turns(&[("One.", json!({})), ("Two.", json!({}))]);
    let text = texts(PLAIN, &[row], &["data.train_after_end=true", "data.train_on=assistant"]).remove(0);
    assert!(text.contains("⟦One.<|im_end|>\n⟧") && text.ends_with("⟦Two.<|im_end|>\n⟧"), "{text}");
}

/// A template that cuts the thoughts of earlier replies, as Qwen3's does.
const CUTTING: &str = "{% for m in messages %}{% set last = loop.last %}{{ '<|im_start|>' + m.role + '\n' + (m.content if last else \
                       m.content.split('</think>')[-1].lstrip('\n')) + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                       {{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_reply_is_never_found_in_a_later_turn() {
    let thought = |said: &str| format!("<think>\n\n</think>\n\n{said}");
    let (yes, no, more) = (thought("Yes"), thought("No"), thought("Yes, it is"));
    for last in [&yes, &more] {
        let row = turns(&[(&yes, json!({})), (&no, json!({})), (last, json!({}))]);
        let text = texts(CUTTING, &[row], &["data.train_on=assistant"]).remove(0);
        let trained: Vec<&str> =
            text.split('⟦').skip(1).map(|part| part.split('⟧').next().unwrap()).collect();
        assert_eq!(trained, ["Yes<|im_end|>", "No<|im_end|>", &format!("{last}<|im_end|>")], "{text}");
    }
    let row = turns(&[(&yes, json!({"weight": 0})), (&yes, json!({}))]);
    let text = texts(CUTTING, &[row], &["data.train_on=all"]).remove(0);
    assert!(text.contains("assistant\n⟧Yes<|im_end|>⟦\n") && text.ends_with("Yes<|im_end|>\n⟧"), "{text}");
}

#[test]
fn content_that_is_dropped_beside_a_call_takes_nothing_else_into_the_mask() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}{{ '<call>' + \
                    (m.tool_calls[0].function | tojson) }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if messages | length < 2 %}{{ ' ' }}{% endif %}\
                    {% endif %}";
    let row = json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "OK", "tool_calls": call(&json!({"item": "K-7"}))},
        {"role": "user", "content": "secret words"},
        {"role": "assistant", "content": "OK"},
    ]});
    let text = texts(template, &[row], &["data.train_on=assistant"]).remove(0);
    assert!(text.contains("⟦<call>") && text.contains("user\nsecret words<|im_end|>\n"), "{text}");
    assert!(text.ends_with("⟦OK<|im_end|>⟧\n"), "{text}");
}

#[test]
fn only_the_thoughts_of_a_reply_are_masked() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content and loop.last %}\
                    {{ '[' + m.reasoning_content + ']' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let settings = ["data.reasoning=mask", "data.train_on=assistant"];
    let row =
        turns(&[("Five", json!({"reasoning": "Five"})), ("Paris is it.", json!({"reasoning": "Well"}))]);
    let text = texts(template, &[row], &settings).remove(0);
    assert!(
        text.contains("⟦Five<|im_end|>⟧") && text.ends_with("⟦[⟧Well⟦]Paris is it.<|im_end|>⟧\n"),
        "{text}"
    );
    let literal = turns(&[("Use the <think> tag. And more.", json!({}))]);
    let text = texts(PLAIN, std::slice::from_ref(&literal), &settings).remove(0);
    assert!(text.ends_with("⟦Use the <think> tag. And more.<|im_end|>⟧\n"), "{text}");
    assert_eq!(kinds(&checked(PLAIN, &[turns(&[("assistant", json!({}))])], &[])), []);
    let empty = turns(&[("Yes", json!({})), ("", json!({}))]);
    let problems = kinds(&checked(PLAIN, &[empty], &["data.train_on=assistant"]));
    assert_eq!(problems, [(ProblemKind::NothingLearned, Severity::Blocks)]);
}

#[test]
fn arguments_are_written_as_the_template_needs_them() {
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls %}{{ c.function.arguments }}\
                    {% endfor %}<|im_end|>{% endfor %}";
    let row = |arguments: Value| {
        json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": call(&arguments)}]})
    };
    for arguments in [json!({"item": null}), json!("{\"item\": null}")] {
        let text = texts(template, &[row(arguments)], &[]).remove(0);
        assert!(text.contains("{\"item\": null}"), "{text}");
    }
}

#[test]
fn values_that_would_change_on_the_way_are_refused() {
    let refused = |row: Value, algorithm: &str| {
        let project = project(&[row]);
        let settings = settings(&[&format!("train.algorithm={algorithm}")]);
        read_dataset(&settings, project.path()).unwrap().problems.remove(0).message
    };
    let listed = refused(json!({"question": "capital?", "answer": ["Paris", "paris"]}), "sft");
    assert!(listed.contains("a list of 2 texts"), "{listed}");
    let history = json!({"instruction": "i", "output": "o", "history": "User: hi"});
    assert!(refused(history, "sft").contains("\"history\" is not a list"));
    let third = json!({"instruction": "i", "output": "o", "history": [["a", "b", "c"]]});
    assert!(refused(third, "sft").contains("\"history\" is not a list"));
    let lost = json!({"type": "tool_call", "value": null, "tool_call": null, "text": "x"});
    let lost = refused(turns(&[("b", json!({"content": [lost]}))]), "sft");
    assert!(lost.contains("a part of type \"tool_call\" that calls a tool without"), "{lost}");
    let thoughts = turns(&[("b", json!({"reasoning_content": "A", "thinking": "B"}))]);
    assert!(refused(thoughts, "sft").contains("says something else"));
}

#[test]
fn padding_and_json_texts_of_tables_are_seen_through() {
    let expected = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n⟦Five.<|im_end|>⟧\n";
    let talk = json!([{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "Five."}]);
    let rows = [
        json!({"messages": talk, "prompt": null, "completion": null}),
        json!({"messages": null, "prompt": "2+3?", "completion": "Five."}),
        json!({"messages": "", "prompt": "2+3?", "completion": "Five."}),
        json!({"messages": null, "conversations": talk}),
        json!({"messages": talk.to_string(), "tools": "{}"}),
        json!({"text": " ", "question": "2+3?", "answer": "Five."}),
        json!({"Question": "2+3?", "Answer": "Five."}),
        json!({"Messages": talk}),
        json!({"prompt": "2+3?", "completion": "{\"role\": \"assistant\", \"content\": \"Five.\"}"}),
    ];
    for row in &rows {
        assert_eq!(texts(PLAIN, std::slice::from_ref(row), &[]), [expected], "{row}");
    }
    assert_eq!(texts(PLAIN, &rows[..3], &[]), [expected; 3]);
    let pair = json!({"conversations": "[{\"from\": \"human\", \"value\": \"2+3?\"}]",
        "chosen": "{\"from\": \"gpt\", \"value\": \"Five.\"}", "rejected": "{\"from\": \"gpt\", \"value\": \"Six.\"}"});
    assert_eq!(texts(PLAIN, &[pair], &["train.algorithm=dpo"]), [expected]);
}

#[test]
fn fields_of_messages_that_the_template_leaves_out_are_named() {
    let template = format!("{{{{ tools[0].function.name if tools }}}}{PLAIN}");
    let mut row = turns(&[("b", json!({"mood": "calm"}))]);
    row["messages"][0]["name"] = "Ann".into();
    let prepared = checked(&template, &[row], &[]);
    let messages: Vec<&str> =
        prepared.checked.report.problems.iter().map(|problem| problem.message.as_str()).collect();
    for field in ["name", "mood"] {
        let said = format!("does not read the field {field:?} of 1 message");
        assert!(messages.iter().any(|message| message.contains(&said)), "{messages:?}");
    }
}

#[test]
fn setting_rows_aside_moves_no_other_row_across_the_split() {
    let rows: Vec<Value> =
        (0..60).map(|row| json!({"prompt": format!("Question {row}?"), "completion": "Yes."})).collect();
    let project = project(&rows);
    let config = config("a.jsonl", &["data.eval=0.2"]);
    let splits = || {
        let dataset = read_dataset(&config, project.path()).unwrap();
        dataset.rows.all().into_iter().map(|row| (row.origin.line, row.split)).collect::<Vec<_>>()
    };
    let before = splits();
    let mut quarantine = super::Quarantine::load(project.path()).unwrap();
    for row in read_dataset(&config, project.path()).unwrap().rows.all().iter().step_by(4) {
        quarantine.insert(&row.hash());
    }
    quarantine.save().unwrap();
    let after = splits();
    assert_eq!(after.len(), 45);
    assert!(after.iter().all(|row| before.contains(row)));
}

#[test]
fn a_table_with_windows_line_ends_has_the_same_lines() {
    let lines = |text: &str| {
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join("a.csv"), text).unwrap();
        let settings = config("a.csv", &["data.eval=0"]);
        let dataset = read_dataset(&settings, project.path()).unwrap();
        dataset.rows.all().iter().map(|row| row.origin.line).collect::<Vec<_>>()
    };
    let text = "prompt,completion\na,b\n\"c\nd\",e\nf,g\n";
    assert_eq!(lines(text), [2, 3, 5]);
    assert_eq!(lines(&text.replace('\n', "\r\n")), [2, 3, 5]);
}
