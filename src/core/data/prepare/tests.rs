use std::collections::BTreeSet;
use std::fs;

use pretty_assertions::assert_eq;
use serde_json::json;

use super::*;
use crate::data::testing::{config, json_lines, reference_json, sample_model, tiny};
use crate::data::{DataProblem, StepOrder};
use crate::model::SpecialTokens;

fn chatml() -> Template {
    let reference = reference_json("chat/chat.json");
    let source = reference["templates"]["chatml"]["template"].as_str().unwrap().to_owned();
    Template::compile("chatml", &source, &SpecialTokens::default()).unwrap()
}

fn prepared(rows: &[Value], settings: &[&str]) -> Prepared {
    prepared_with(rows, settings, &chatml())
}

fn prepared_with(rows: &[Value], settings: &[&str], template: &Template) -> Prepared {
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("a.jsonl"), json_lines(rows)).unwrap();
    let config = config("a.jsonl", settings);
    let dataset = read_dataset(&config, project.path()).unwrap();
    let tokenizer = tiny("bytelevel-bos");
    let stop = tokenizer.id("<|im_end|>").into_iter().collect();
    prepare_with(&config, &dataset, &tokenizer, template, stop, &mut |_, _| ControlFlow::Continue(()))
        .unwrap()
}

fn pair(prompt: &str, completion: &str) -> Value {
    json!({"prompt": prompt, "completion": completion})
}

fn found(prepared: &Prepared, kind: ProblemKind) -> Vec<&DataProblem> {
    prepared.checked.report.problems.iter().filter(|problem| problem.kind == kind).collect()
}

#[test]
fn a_sound_dataset_is_counted_and_passes() {
    let rows: Vec<_> =
        (0..100).map(|number| pair(&format!("{number} + 1?"), &format!("{}", number + 1))).collect();
    let prepared = prepared(&rows, &["data.eval=0.1"]);
    let report = &prepared.checked.report;
    assert_eq!(report.problems, []);
    assert!(!report.blocks());
    assert_eq!((report.rows, report.train_rows, report.eval_rows), (100, 90, 10));
    assert_eq!((prepared.train.len(), prepared.eval.len()), (90, 10));
    let tokens: usize = prepared.train.iter().chain(&prepared.eval).map(EncodedRow::tokens).sum();
    assert_eq!(report.tokens, tokens as u64);
    assert!(report.trained_share() > 0.0 && report.trained_share() < 0.5);
    let numbers: BTreeSet<usize> = prepared.train.iter().chain(&prepared.eval).map(|row| row.row).collect();
    assert_eq!(numbers, (0..100).collect());
    assert!(prepared.train.is_sorted_by_key(|row| row.row));
    let summary = prepared.checked.summary();
    assert_eq!(summary.train_tokens + summary.eval_lengths.iter().sum::<usize>() as u64, report.tokens);
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["rows"], 100);
    assert_eq!(json["lengths"]["max"], report.lengths.max);
}

#[test]
fn unusable_rows_block_a_run() {
    let rows =
        [pair("a", "b"), json!({"prompt": "x"}), json!({"messages": [{"role": "user", "content": "x"}]})];
    let prepared = prepared(&rows, &["data.eval=0"]);
    let unreadable = found(&prepared, ProblemKind::UnreadableRow);
    assert_eq!(unreadable.len(), 1);
    // A conversation among prompts and completions is read as what it is.
    assert_eq!(found(&prepared, ProblemKind::NoTrainedTokens).len(), 1);
    assert!(unreadable[0].message.starts_with("a.jsonl:2: no \"completion\""), "{unreadable:?}");
    assert!(prepared.checked.report.blocks());
    assert_eq!(prepared.checked.report.rows, 3);
    assert_eq!(serde_json::to_value(unreadable[0]).unwrap()["severity"], "blocks");
}

#[test]
fn a_row_without_a_reply_blocks() {
    let talk =
        |role: &str| json!({"messages": [{"role": "user", "content": "x"}, {"role": role, "content": "y"}]});
    let prepared = prepared(&[talk("assistant"), talk("user")], &["data.eval=0"]);
    let problems = found(&prepared, ProblemKind::NoTrainedTokens);
    assert_eq!(
        problems.iter().map(|problem| (problem.row, problem.severity)).collect::<Vec<_>>(),
        [(Some(1), Severity::Blocks)]
    );
    assert!(problems[0].message.starts_with("a.jsonl:2: nothing in it is trained on"), "{problems:?}");
}

#[test]
fn long_rows_are_reported_by_the_overflow_setting() {
    let rows = [pair("a", "b"), pair("a", &"long ".repeat(100)), pair(&"long ".repeat(100), "b")];
    let cut = prepared(&rows, &["data.eval=0", "data.max_length=60"]);
    assert_eq!((cut.checked.report.truncated, found(&cut, ProblemKind::Truncated).len()), (1, 1));
    let lost = found(&cut, ProblemKind::ReplyCutOff);
    assert_eq!((lost.len(), lost[0].row, lost[0].severity), (1, Some(2), Severity::Warning));
    assert_eq!(
        (cut.checked.report.dropped, cut.checked.report.train_rows, cut.checked.report.blocks()),
        (1, 2, false)
    );
    let strict = prepared(&rows, &["data.eval=0", "data.max_length=60", "data.cut_limit=0.3"]);
    assert!(found(&strict, ProblemKind::ReplyCutOff)[0].message.starts_with("1 of 3 rows lose"));
    assert!(strict.checked.report.blocks());
    let allowed =
        ["data.eval=0", "data.max_length=60", "data.cut_limit=0.3", "data.allow=[\"reply_cut_off\"]"];
    assert!(!prepared(&rows, &allowed).checked.report.blocks());
    let kept = prepared(&rows, &["data.eval=0", "data.max_length=60", "data.overflow=keep-end"]);
    assert_eq!((kept.checked.report.train_rows, kept.checked.report.truncated), (3, 2));
    assert!(kept.train[2].trained_tokens() > 0 && kept.train[2].longest() == 60);
    assert!(cut.checked.report.lengths.max > 60);
    assert!(cut.train.iter().all(|row| row.longest() <= 60));
    let dropped = prepared(&rows, &["data.eval=0", "data.max_length=60", "data.overflow=\"drop\""]);
    assert_eq!((dropped.checked.report.dropped, dropped.checked.report.train_rows), (2, 1));
    assert!(!dropped.checked.report.blocks());
    let refused = prepared(&rows, &["data.eval=0", "data.max_length=60", "data.overflow=\"error\""]);
    assert_eq!(found(&refused, ProblemKind::TooLong).len(), 2);
    assert!(refused.checked.report.blocks());
    let all = prepared(&rows, &["data.eval=0", "data.max_length=8", "data.overflow=\"drop\""]);
    assert_eq!(found(&all, ProblemKind::AllTooLong)[0].severity, Severity::Blocks);
}

#[test]
fn a_finding_that_is_allowed_does_not_block() {
    let rows = [pair("a", "b"), pair("a", &"long ".repeat(100))];
    let settings = ["data.eval=0", "data.max_length=60", "data.overflow=error"];
    assert!(prepared(&rows, &settings).checked.report.blocks());
    let allowed = prepared(&rows, &[&settings[..], &["data.allow=[\"too_long\"]"]].concat());
    let found = found(&allowed, ProblemKind::TooLong);
    assert_eq!((found.len(), found[0].severity), (1, Severity::Warning));
    assert!(found[0].message.ends_with("(allowed by data.allow)"), "{found:?}");
    assert_eq!((allowed.checked.report.train_rows, allowed.checked.report.blocks()), (1, false));
}

fn preference(prompt: &str, chosen: &str, rejected: &str) -> Value {
    json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
}

#[test]
fn pairs_are_counted_with_both_sides() {
    let rows: Vec<_> = (0..20)
        .map(|number| preference(&format!("{number} + 1?"), &format!("{}", number + 1), "no idea at all"))
        .collect();
    let prepared = prepared(&rows, &["data.eval=0.1", "train.algorithm=dpo"]);
    let report = &prepared.checked.report;
    assert_eq!(report.problems, []);
    assert_eq!((report.train_rows, report.eval_rows), (18, 2));
    let all = || prepared.train.iter().chain(&prepared.eval);
    assert!(all().all(|row| row.sides.len() == 2));
    let sides = all().map(|row| row.sides[0].ids.len() + row.sides[1].ids.len());
    assert_eq!(report.tokens, sides.clone().sum::<usize>() as u64);
    assert_eq!(prepared.checked.summary().train_lengths.len(), 18);
    assert_eq!(prepared.checked.summary().train_lengths, sides.take(18).collect::<Vec<_>>());
    let longest = all().map(|row| row.sides[0].ids.len().max(row.sides[1].ids.len())).max();
    assert_eq!(Some(report.lengths.max), longest);
    assert!(report.trained_tokens > 0 && report.trained_tokens < report.tokens / 2);
}

#[test]
fn pairs_and_dpo_need_each_other() {
    let pairs = [preference("a", "b", "c"), preference("d", "e", "f")];
    let sft = prepared(&pairs, &["data.eval=0"]);
    let problem = found(&sft, ProblemKind::NotForAlgorithm)[0];
    assert_eq!((problem.severity, problem.row), (Severity::Blocks, None));
    assert!(
        problem.message.starts_with("2 of 2 rows are preference pairs; set train.algorithm"),
        "{problem:?}"
    );
    let chosen = prepared(&pairs, &["data.eval=0", "data.columns={ completion = \"chosen\" }"]);
    assert!(!chosen.checked.report.blocks() && chosen.train[0].sides.len() == 1);
    let mixed = prepared(&[pair("a", "b"), pair("c", "d")], &["data.eval=0", "train.algorithm=dpo"]);
    assert!(
        found(&mixed, ProblemKind::NotForAlgorithm)[0]
            .message
            .starts_with("2 of 2 rows are not preference pairs")
    );
}

#[test]
fn a_bad_answer_is_refused_in_supervised_training() {
    let answer = |label: bool| json!({"prompt": "a", "completion": "b", "label": label});
    let sft = prepared(&[answer(true), answer(false)], &["data.eval=0"]);
    let problem = found(&sft, ProblemKind::BadAnswer)[0];
    assert_eq!((problem.severity, problem.row), (Severity::Blocks, Some(1)));
    assert!(
        problem.message.starts_with("a.jsonl:2: its \"label\" is false, which marks a bad answer"),
        "{problem:?}"
    );
    assert!(!prepared(&[answer(true)], &["data.eval=0"]).checked.report.blocks());
    // Unlike rows of another shape, it can be learned if somebody wants that.
    let allowed = prepared(&[answer(true), answer(false)], &["data.eval=0", "data.allow=[\"bad_answer\"]"]);
    assert!(!allowed.checked.report.blocks() && allowed.train.len() == 2);
    assert!(!ProblemKind::NotForAlgorithm.can_be_allowed());
}

#[test]
fn labelled_answers_and_kto_need_each_other() {
    let kto = ["data.eval=0", "train.algorithm=kto"];
    let answer = |text: &str, label: bool| json!({"prompt": "a", "completion": text, "label": label});
    let mixed = [answer("b", true), answer("c", false), answer("d", true), answer("e", false)];
    let fine = prepared(&mixed, &kto);
    assert!(
        !fine.checked.report.blocks() && found(&fine, ProblemKind::UnevenLabels).is_empty(),
        "{:?}",
        fine.checked.report
    );
    let labels: Vec<_> = fine.train.iter().map(|row| row.sides[0].label).collect();
    assert_eq!(labels, [Some(true), Some(false), Some(true), Some(false)]);
    for (rows, told) in [
        (vec![pair("a", "b"), answer("c", false)], "a.jsonl:1: has no \"label\" that is true or false"),
        (vec![preference("a", "b", "c")], "1 of 1 rows are preference pairs"),
    ] {
        let refused = prepared(&rows, &kto);
        let problem = found(&refused, ProblemKind::NotForAlgorithm)[0];
        assert!(problem.severity == Severity::Blocks && problem.message.contains(told), "{problem:?}");
    }
}

#[test]
fn unbalanced_labels_suggest_weights() {
    let answers = |good: usize, bad: usize| -> Vec<_> {
        let row =
            |place: usize| json!({"prompt": "a", "completion": format!("{place}"), "label": place < good});
        (0..good + bad).map(row).collect()
    };
    let told = |good, bad, more: &[&str]| {
        let settings = [&["data.eval=0", "train.algorithm=kto"], more].concat();
        let prepared = prepared(&answers(good, bad), &settings);
        assert!(!prepared.checked.report.blocks());
        found(&prepared, ProblemKind::UnevenLabels).first().map(|problem| problem.message.clone())
    };
    assert_eq!(told(4, 4, &[]), None);
    assert_eq!(told(4, 3, &[]), None, "up to 4/3");
    let most = told(12, 4, &[]).unwrap();
    assert!(most.contains("train.kto_desirable_weight between 0.333 and 0.444"), "{most}");
    assert!(most.contains("train.kto_undesirable_weight between 2.250 and 3.000"), "{most}");
    assert_eq!(told(12, 4, &["train.kto_undesirable_weight=2.25"]), None);
    assert_eq!(told(12, 4, &["train.kto_desirable_weight=0.34"]), None);
    assert!(told(3, 0, &[]).unwrap().contains("labelled good"));
    assert!(told(0, 3, &[]).unwrap().contains("labelled bad"));
}

#[test]
fn a_pair_without_a_difference_or_an_answer_is_reported() {
    let dpo = ["data.eval=0", "train.algorithm=dpo"];
    let rows = [preference("a", "b", "c"), preference("d", "e", "e"), preference("f", "", "g")];
    let prepared = |rows: &[Value], more: &[&str]| prepared(rows, &[&dpo[..], more].concat());
    let told = prepared(&rows, &[]);
    let same = found(&told, ProblemKind::SameSides);
    assert_eq!(
        same.iter().map(|one| (one.row, one.severity)).collect::<Vec<_>>(),
        [(Some(1), Severity::Warning)]
    );
    let empty = found(&told, ProblemKind::NothingLearned)[0];
    assert_eq!((empty.row, empty.severity), (Some(2), Severity::Warning));
    assert!(!told.checked.report.blocks());
    let all = prepared(&rows[1..2], &[]);
    assert!(all.checked.report.blocks());
    let long = "so many words ".repeat(30);
    let cut = prepared(
        &[rows[0].clone(), preference("a", &format!("{long}1"), &format!("{long}2"))],
        &["data.max_length=60"],
    );
    assert!(found(&cut, ProblemKind::SameSides)[0].message.contains("the same up to data.max_length"));
    let hidden = prepared(&[rows[0].clone(), preference(&long, "b", "c")], &["data.max_length=60"]);
    assert_eq!(found(&hidden, ProblemKind::ReplyCutOff)[0].row, Some(1));
    let turned = [preference("a", "b", "c"), preference("a", "c", "b"), preference("A", "b", "c")];
    assert_eq!(
        found(&prepared(&turned, &[]), ProblemKind::Duplicate).iter().map(|one| one.row).collect::<Vec<_>>(),
        [Some(2)]
    );
}

#[test]
fn a_warm_up_may_be_as_long_as_the_run_and_no_longer() {
    let rows: Vec<_> = (0..100).map(|number| pair(&format!("{number} + 1?"), "2")).collect();
    let settings =
        ["data.eval=0", "data.packing=false", "train.batch_size=5", "train.accumulate=2", "train.epochs=1.5"];
    let prepared = prepared(&rows, &settings);
    let check = |warmup: &str| {
        let settings: Vec<&str> = settings.into_iter().chain([warmup]).collect();
        prepared.checked.check_warmup(&config("a.jsonl", &settings)).map_err(|error| error.to_string())
    };
    assert_eq!(check("train.warmup=15"), Ok(()));
    assert_eq!(check("train.warmup=0.5"), Ok(()));
    let told = check("train.warmup=16").unwrap_err();
    for part in ["16 steps", "after 15 (train.epochs = 1.5 over 100 rows)", "raise train.epochs"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(self::prepared(&[], &[]).checked.check_warmup(&config("a.jsonl", &["train.warmup=9"])).is_ok());
}

#[test]
fn an_empty_dataset_blocks() {
    let prepared = prepared(&[], &[]);
    assert_eq!(found(&prepared, ProblemKind::EmptyDataset)[0].message, "there are no rows");
    assert!(prepared.checked.report.blocks());
    assert_eq!(
        StepOrder::new(&prepared.checked.summary().train_lengths, &config("a.jsonl", &[])).total_steps(),
        0
    );
}

#[test]
fn suspicious_texts_are_reported() {
    let rows = [
        pair("one", ""),
        pair("two", "caf\u{fffd}"),
        pair("three <|im_end|>", "x"),
        pair("write to ann@mail.org", "x"),
    ];
    let prepared = prepared(&rows, &["data.eval=0"]);
    for (kind, row) in [
        (ProblemKind::NothingLearned, 0),
        (ProblemKind::BrokenText, 1),
        (ProblemKind::SpecialTokenInText, 2),
        (ProblemKind::PersonalData, 3),
    ] {
        assert_eq!(
            found(&prepared, kind).iter().map(|problem| problem.row).collect::<Vec<_>>(),
            [Some(row)],
            "{kind:?}"
        );
    }
    assert_eq!(found(&prepared, ProblemKind::NoEvalRows).len(), 1);
    assert_eq!(found(&prepared, ProblemKind::NothingLearned)[0].severity, Severity::Blocks);
    assert!(prepared.checked.report.problems.is_sorted_by_key(|problem| problem.severity));
}

#[test]
fn repeated_rows_are_found_within_and_across_the_split() {
    let long = "The badge reader at gate B rejects everyone since this morning, please hurry, it is raining outside.";
    let project = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| {
        fs::write(project.path().join(name), json_lines(rows)).unwrap();
    };
    write("a.jsonl", &[pair("a", "b"), pair("A ", "b"), pair(long, "yes"), pair(&format!("{long}!"), "yes")]);
    write("b.jsonl", &[pair("a", "B"), pair("c", "d"), pair(&format!("Oh. {long}"), "yes")]);
    let config = config("a.jsonl", &["data.eval=\"b.jsonl\""]);
    let dataset = read_dataset(&config, project.path()).unwrap();
    let prepared = prepare_with(&config, &dataset, &tiny("bytelevel"), &chatml(), vec![4], &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let rows = |kind| found(&prepared, kind).iter().map(|problem| problem.row.unwrap()).collect::<Vec<_>>();
    assert_eq!(rows(ProblemKind::Duplicate), [1]);
    assert_eq!(rows(ProblemKind::EvalInTrain), [4]);
    assert_eq!(rows(ProblemKind::NearDuplicate), [3, 6]);
    assert_eq!(found(&prepared, ProblemKind::Duplicate)[0].other, Some(0));
    assert!(found(&prepared, ProblemKind::NearDuplicate).iter().all(|problem| problem.other < problem.row));
    assert!(found(&prepared, ProblemKind::EvalInTrain)[0].message.contains("training row 0 (a.jsonl:1)"));
    assert!(
        found(&prepared, ProblemKind::NearDuplicate)[1]
            .message
            .contains("held out, but nearly equal to training row")
    );
}

#[test]
fn a_template_that_never_ends_a_turn_is_reported_once() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let endless = Template::compile("plain", source, &SpecialTokens::default()).unwrap();
    let rows = [pair("a", "b"), pair("c", "d")];
    let prepared = prepared_with(&rows, &["data.eval=0"], &endless);
    let problems = found(&prepared, ProblemKind::EndOfTurnNotTrained);
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].row, problems[0].severity), (None, Severity::Warning));
    assert!(problems[0].message.contains("none of 2 replies"), "{problems:?}");
}

#[test]
fn two_begins_of_text_are_reported() {
    let rows = [json!({"input_ids": [0, 0, 70, 71]}), json!({"input_ids": [0, 70, 71]})];
    let prepared = prepared(&rows, &["data.eval=0"]);
    assert_eq!(
        found(&prepared, ProblemKind::DoubleBos).iter().map(|problem| problem.row).collect::<Vec<_>>(),
        [Some(0)]
    );
}

#[test]
fn the_hash_depends_on_rows_order_and_split() {
    let rows = [pair("a", "b"), pair("c", "d"), pair("e", "f")];
    let hash = |rows: &[Value], settings: &[&str]| prepared(rows, settings).checked.data_hash;
    let first = hash(&rows, &["data.eval=0"]);
    assert_eq!(first.len(), 16);
    assert_eq!(first, hash(&rows, &["data.eval=0", "train.learning_rate=1e-5"]));
    let turned = [rows[1].clone(), rows[0].clone(), rows[2].clone()];
    assert_ne!(first, hash(&turned, &["data.eval=0"]));
    assert_ne!(first, hash(&rows, &["data.eval=0.3"]));
    assert_ne!(first, hash(&rows[..2], &["data.eval=0"]));
}

#[test]
fn progress_reaches_the_end() {
    let project = tempfile::tempdir().unwrap();
    let rows: Vec<_> = (0..500).map(|number| pair(&format!("q{number}"), "a")).collect();
    fs::write(project.path().join("a.jsonl"), json_lines(&rows)).unwrap();
    let config = config("a.jsonl", &[]);
    let dataset = read_dataset(&config, project.path()).unwrap();
    let mut told = Vec::new();
    let mut progress = |done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    };
    prepare_with(&config, &dataset, &tiny("bytelevel"), &chatml(), vec![4], &mut progress).unwrap();
    assert_eq!(told.first(), Some(&(0, 500)));
    assert_eq!(told.last(), Some(&(500, 500)));
    assert!(told.is_sorted() && told.len() <= PROGRESS_STEPS + 2);
    for last in [0, 300] {
        let mut progress =
            |done, _| if done < last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        let ended = prepare_with(&config, &dataset, &tiny("bytelevel"), &chatml(), vec![4], &mut progress);
        assert!(matches!(ended, Err(DataError::Cancelled)), "{last}");
    }
}

#[test]
fn the_sample_model_prepares_a_project() {
    let project = tempfile::tempdir().unwrap();
    let rows: Vec<_> = (0..20).map(|number| pair(&format!("{number} + 1?"), "a number")).collect();
    fs::write(project.path().join("a.jsonl"), json_lines(&rows)).unwrap();
    let files = ModelFiles::open(&sample_model()).unwrap();
    let settings = config("a.jsonl", &["data.eval=0.1"]);
    let prepared = prepare(&settings, project.path(), &files, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let loud: Vec<_> = prepared
        .checked
        .report
        .problems
        .iter()
        .filter(|problem| problem.severity != Severity::Note)
        .collect();
    assert_eq!(loud, [] as [&DataProblem; 0]);
    assert_eq!(prepared.checked.report.template, "model");
    let tokenizer = Tokenizer::open(&files).unwrap();
    let template = Template::resolve(&settings, project.path(), &files).unwrap();
    assert_eq!(template.stop_tokens(&tokenizer, &files), [2]);
    let row = &prepared.train[0];
    let trained: Vec<u32> = row.sides[0]
        .ids
        .iter()
        .zip(&row.sides[0].trained)
        .filter(|(_, trained)| **trained)
        .map(|(&id, _)| id)
        .collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "a number<|im_end|>");
}

#[test]
fn what_was_decided_while_reading_is_noted_and_repeated_rows_are_meant() {
    let train = "data.train={ path = \"a.jsonl\", share = 3 }";
    let prepared = prepared(&[pair("a question", "an answer")], &["data.eval=0", train]);
    assert_eq!(prepared.train.len(), 3);
    let notes = found(&prepared, ProblemKind::Reading);
    assert_eq!(notes[0].message, "a.jsonl: 1 training row is used 3 times in all (share = 3)");
    assert_eq!((notes.len(), notes[0].severity), (1, Severity::Note));
    assert!(found(&prepared, ProblemKind::Duplicate).is_empty());
}
