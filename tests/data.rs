//! Data on the command line: what a check lists, rows set aside, and rows in other forms.

use std::fs;

use luthier_tests::{Project, json_lines, tiny_rows};
use serde_json::{Value, json};

#[test]
fn a_check_lists_each_kind_of_finding_once() {
    let project = Project::tiny();
    let rows = tiny_rows(4);
    project.write_rows("train.jsonl", &[rows.clone(), rows.clone(), rows].concat());
    let told = project.luthier(["data", "check"]).run().expect(0);
    assert_eq!(told.stdout.matches("says the same as row").count(), 1, "{told}");
    for said in [
        "duplicate: 8 rows, 44 %",
        "such as: says the same as row 0 (train.jsonl:1)",
        "rows 4 (train.jsonl:5), 5 (train.jsonl:6), 6 (train.jsonl:7) and 5 more",
        "held-out also in train: 4 rows, 22 %",
        "luthier data quarantine --kind KIND",
        "eval_in_train",
        "\nsize:\n",
    ] {
        assert!(told.stdout.contains(said), "no `{said}`: {told}");
    }
    assert!(!told.stdout.contains("data.allow"), "{told}");

    project.write("train.jsonl", format!("{}{{\"messages\"\n", json_lines(&tiny_rows(4))));
    let told = project.luthier(["data", "check"]).run().expect(3);
    assert!(told.stdout.contains("data.allow = [\"unreadable_row\"]"), "{told}");
}

#[test]
fn rows_are_set_aside_by_their_findings_and_brought_back() {
    let project = Project::tiny();
    let quarantine = |words: &[&str]| {
        project.luthier(["data", "quarantine"].into_iter().chain(words.iter().copied())).run()
    };
    let told = quarantine(&["--kind", "eval_in_train", "--dry-run"]).expect(0);
    assert_eq!(
        told.stdout,
        "6 rows would be set aside, 0 in quarantine before\n  held-out.jsonl:1, held-out.jsonl:2, held-out.jsonl:3, \
         held-out.jsonl:4, held-out.jsonl:5, 1 more\n24 rows left to train on, 0 held out\n"
    );
    assert!(!project.path().join("quarantine.json").exists());
    let mut done = quarantine(&["--kind", "eval_in_train", "--json"]).expect(0).json();
    let rows = done["rows"].take();
    assert_eq!((rows.as_array().map(Vec::len), &rows[5]["line"]), (Some(6), &json!(6)));
    done.as_object_mut().unwrap().remove("rows");
    let expected = json!({"before": 0, "quarantined": 6, "train_rows": 24, "eval_rows": 0, "written": true});
    assert_eq!(done, expected);
    let report = project.luthier(["data", "check", "--json"]).run().expect(0).json();
    assert_eq!((&report["quarantined"], &report["train_rows"]), (&json!(6), &json!(24)));

    let listed = quarantine(&["--list", "--json"]).expect(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(6));
    assert_eq!((&listed[0]["origin"]["file"], &listed[0]["rows"]), (&json!("held-out.jsonl"), &json!(1)));
    let hash = listed[0]["hash"].as_str().unwrap();
    let words = quarantine(&["--list"]).expect(0);
    assert!(words.stdout.contains(hash) && words.stdout.contains("held-out.jsonl:1"), "{words}");
    let back = quarantine(&["--restore", hash]).expect(0);
    assert!(back.stdout.starts_with("1 row brought back, 5 in quarantine\n"), "{back}");
    quarantine(&["--restore", hash]).expect(2).complains(&["is not in quarantine", "--list"]);
    quarantine(&["--restore", "all"]).expect(0);
    assert_eq!(quarantine(&["--list"]).expect(0).stdout, "nothing is in quarantine\n");

    let one = quarantine(&["--row", "2"]).expect(0);
    assert!(one.stdout.starts_with("2 rows set aside"), "its copy is held out: {one}");
    quarantine(&["--row", "999"]).expect(2).complains(&["no row 999", "0 to 27"]);
    quarantine(&["--kind", "duplikate"]).expect(2).complains(&["duplikate", "duplicate"]);
    quarantine(&[]).expect(2).complains(&["--kind", "--restore"]);
    let help = quarantine(&["--help"]).expect(0);
    assert!(help.stdout.contains("empty_reply"), "{help}");
}

#[test]
fn rows_are_converted_there_and_back() {
    let project = Project::tiny();
    let convert =
        |words: &[&str]| project.luthier(["data", "convert"].into_iter().chain(words.iter().copied())).run();
    let told = convert(&["chats.jsonl", "--to", "sharegpt", "--split", "train"]).expect(0);
    assert_eq!(told.stdout, "chats.jsonl: 24 rows written as sharegpt\n");
    let chats = fs::read_to_string(project.path().join("chats.jsonl")).unwrap();
    let first: Value = serde_json::from_str(chats.lines().next().unwrap()).unwrap();
    assert_eq!(first["conversations"][0], json!({"from": "human", "value": "item 0 is red"}));
    let back =
        convert(&["-", "--to", "messages", "--split", "train", "--set", "data.train=chats.jsonl"]).expect(0);
    assert_eq!(back.json_lines(), tiny_rows(24));
    assert!(back.stderr.contains("24 rows written as messages"), "{back}");

    convert(&["chats.jsonl", "--to", "messages"]).expect(2).complains(&["chats.jsonl", "--force"]);
    assert_eq!(fs::read_to_string(project.path().join("chats.jsonl")).unwrap(), chats);
    convert(&["chats.csv", "--to", "messages"]).expect(2).complains(&["chats.csv", ".jsonl"]);
    convert(&["chats.jsonl", "--to", "xml"]).expect(2).complains(&["xml", "alpaca"]);
    convert(&["none.jsonl", "--to", "preference"]).expect(3).complains(&["no rejected reply (30 rows)"]);
    assert!(!project.path().join("none.jsonl").exists());
}

#[test]
fn rows_that_a_form_cannot_hold_are_left_out_and_counted() {
    let project = Project::tiny();
    let asked = json!({"messages": [{"role": "user", "content": "anyone there?"}]});
    let rows: Vec<Value> = tiny_rows(3).into_iter().chain([asked]).collect();
    project.write_rows("train.jsonl", &rows);
    let convert = |words: &[&str]| {
        let always = ["data", "convert", "out.jsonl", "--to", "alpaca", "--split", "train", "--force"];
        project.luthier(always.into_iter().chain(words.iter().copied())).run()
    };
    let told = convert(&[]).expect(3).complains(&["1 row was left out", "--lossy"]);
    assert!(told.stdout.contains("3 rows written as alpaca") && told.stdout.contains("(1 row)"), "{told}");
    assert_eq!(fs::read_to_string(project.path().join("out.jsonl")).unwrap().lines().count(), 3);
    convert(&["--lossy"]).expect(0);
}

#[test]
fn a_row_is_edited_beside_its_file() {
    let project = Project::tiny();
    let file = project.path().join("train.jsonl");
    let before = fs::read_to_string(&file).unwrap();
    let row = || {
        let row = project.luthier(["data", "show", "3", "--json"]).run().expect(0).json();
        row["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
    };
    let first = row();
    let edit = |words: &[&str]| {
        project.luthier(["data", "edit", "3"].into_iter().chain(words.iter().copied())).run()
    };
    project.write("fixed.json", json!({"prompt": "a", "completion": "a better answer"}).to_string());
    let fixed = project.path().join("fixed.json");
    let told = edit(&["--from", fixed.to_str().unwrap()]).expect(0);
    assert!(told.stdout.contains("row 3 is edited") && told.stdout.contains("--undo"), "{told}");
    assert_eq!(row(), "a better answer");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let report = project.luthier(["data", "check"]).run().expect(0);
    assert!(report.stdout.contains(" edited (edits.jsonl)"), "{report}");

    // The editor gets what the row says now, and a broken row is refused.
    let editor = |script: &str| {
        let command = format!("sh -c '{script}'");
        project.luthier(["data", "edit", "3"]).variable("VISUAL", command).run()
    };
    let told = editor("sed -i s/better/worse/ \"$0\"").expect(0);
    assert!(told.stdout.contains("row 3 is edited"), "{told}");
    assert_eq!(row(), "a worse answer");
    let told = editor("true").expect(0);
    assert!(told.stdout.contains("row 3 is as before"), "{told}");
    let told = editor("echo { > \"$0\"").expect(2);
    assert!(told.stderr.contains("the row stays as it is: not JSON"), "{told}");
    assert_eq!(row(), "a worse answer");

    edit(&["--undo"]).expect(0);
    assert_eq!(row(), first);
    assert!(edit(&["--undo"]).expect(2).stderr.contains("it is not edited"));
}

#[test]
fn a_check_is_kept_until_something_changes() {
    let project = Project::tiny();
    let checks = project.beside("cache/luthier/checks");
    let kept = || fs::read_dir(&checks).map_or(0, Iterator::count);
    let check = || project.luthier(["data", "check", "--json"]).run().expect(0).json();
    let first = check();
    assert_eq!(kept(), 1);
    assert_eq!((check(), kept()), (first.clone(), 1));
    let rows = json_lines(&[tiny_rows(4), tiny_rows(1)].concat());
    project.write("train.jsonl", rows);
    assert_ne!(check(), first);
    assert_eq!(kept(), 2);
    assert!(first["roles"].as_array().is_some_and(|roles| !roles.is_empty()), "{first}");
}
