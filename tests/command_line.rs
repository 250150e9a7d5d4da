//! Output and exit status of commands that start no run.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use luthier_tests::{Finished, Project, json_lines, luthier, reference, tiny_rows};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use serde_json::{Value, json};

/// Runs `luthier` in the tiny project with one setting overridden.
fn with(project: &Project, command: &[&str], set: &str) -> Finished {
    project.luthier(command.iter().copied().chain(["--set", set])).run()
}

/// Copies the tiny model into the project, so that a test can break it.
fn copied_model(project: &Project) {
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        project.write(&format!("model/{name}"), fs::read(reference("tiny/llama").join(name)).unwrap());
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn problems(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| (text(&problem["kind"]), text(&problem["severity"])))
        .collect()
}

#[test]
fn help_and_completions_work_everywhere() {
    let project = Project::empty();
    let help = project.luthier(["--help"]).run().expect(0);
    for command in [
        "new", "doctor", "model", "data", "plan", "train", "runs", "run", "sweep", "queue", "eval", "chat",
        "review",
    ] {
        assert!(help.stdout.contains(&format!("  {command} ")), "{help}");
        let own = project.luthier([command, "--help"]).run().expect(0);
        assert!(own.stdout.contains("Usage: luthier"), "{own}");
    }
    let completions = project.luthier(["completions", "bash"]).run().expect(0);
    assert!(completions.stdout.contains("_luthier"), "{completions}");
    let version = project.luthier(["--version"]).run().expect(0);
    assert!(version.stdout.starts_with("luthier "), "{version}");
}

#[test]
fn bad_usage_and_failed_work_have_different_statuses() {
    let project = Project::empty();
    project.luthier(["plan", "--no-such-flag"]).run().expect(2).complains(&["--no-such-flag"]);
    project.luthier(["trian"]).run().expect(2).complains(&["did you mean `luthier train`"]);
    project.luthier(["plan", "-C", "nowhere"]).run().expect(2).complains(&["nowhere", "luthier new"]);
    project.luthier(["plan"]).run().expect(2).complains(&["luthier.toml", "luthier new"]);
    project.luthier(["run", "show", "latest"]).run().expect(2).complains(&["no runs yet", "luthier train"]);
}

#[test]
fn usage_errors_quote_arguments_without_what_steers_a_terminal() {
    const HOSTILE: &str = "x\u{1b}]52;c;aGk=\u{7}\u{9b}31m\u{202e}ab\u{2066}\u{e0041}\r\u{8}y";
    let project = Project::empty();
    for command in [
        &["completions", HOSTILE][..],
        &["runs", "--json", HOSTILE],
        &["run", HOSTILE],
        &["run", "stop", "x", "--when", HOSTILE],
        &["queue", "move", "1", HOSTILE],
        &["eval", "x", "--limit", HOSTILE],
        &[HOSTILE],
    ] {
        let told = project.luthier(command.iter().copied()).run().expect(2).complains(&["x"]);
        let bad = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}\u{e0041}".contains(c));
        assert!(!told.stderr.contains(bad) && told.stdout.is_empty(), "{told}");
    }
}

#[test]
fn the_workbench_needs_a_terminal() {
    let project = Project::tiny();
    let told = project.luthier(["."]).variable("TERM", "xterm-256color").run().expect(2);
    let told = told.complains(&["standard output is not", "luthier train"]);
    assert_eq!(told.stdout, "", "nothing is drawn into a pipe");
}

#[test]
fn the_workbench_needs_more_than_a_dumb_terminal() {
    let project = Project::tiny();
    let terminal = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new(luthier());
    command.args([project.path()]);
    command.env("TERM", "dumb");
    let mut child = terminal.slave.spawn_command(command).unwrap();
    drop(terminal.slave);
    let mut shown = String::new();
    // Reading from a pseudo-terminal whose other side is closed is an error.
    let _ = terminal.master.try_clone_reader().unwrap().read_to_string(&mut shown);
    assert_eq!(child.wait().unwrap().exit_code(), 2, "{shown}");
    assert!(shown.contains("TERM"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_new_project_is_commented_valid_and_not_overwritten() {
    let project = Project::empty();
    // The tiny model with as many positions as a real one.
    for entry in fs::read_dir(reference("tiny/llama")).unwrap().map(Result::unwrap) {
        let name = format!("model/{}", entry.file_name().to_str().unwrap());
        project.write(&name, fs::read(entry.path()).unwrap());
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(reference("tiny/llama/config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(2048);
    project.write("model/config.json", config.to_string());
    let model = project.path().join("model");
    project.luthier(["new", "fresh", "--model", model.to_str().unwrap()]).run().expect(0);
    let settings = fs::read_to_string(project.path().join("fresh/luthier.toml")).unwrap();
    assert!(settings.lines().filter(|line| line.contains('#')).count() > 40, "{settings}");
    let report = project
        .luthier(["data", "check", "--json", "-C", "fresh", "--set", "data.template=chatml"])
        .run()
        .expect(0);
    assert_eq!(problems(&report.json()), [], "{report}");

    fs::write(project.path().join("fresh/luthier.toml"), "mine").unwrap();
    project.luthier(["new", "fresh"]).run().expect(2).complains(&["luthier.toml", "already"]);
    assert_eq!(fs::read_to_string(project.path().join("fresh/luthier.toml")).unwrap(), "mine");
}

#[test]
fn all_mistakes_of_a_file_are_shown_with_carets() {
    let project = Project::tiny();
    let settings = Project::tiny_settings()
        .replace("max_length = 96", "max_lenght = 96")
        .replace("rank = 8", "rank = \"eight\"")
        .replace("[review]", "[review]\nbaseline = 1");
    project.write("luthier.toml", settings);
    let told = project.luthier(["plan"]).run().expect(2).complains(&[
        "max_lenght",
        "max_length",
        "rank",
        "baseline_system",
    ]);
    assert_eq!(told.stderr.matches("luthier.toml:").count(), 3, "{told}");
    assert!(told.stderr.matches('^').count() >= 3, "{told}");

    let overriden = with(&Project::tiny(), &["plan"], "train.learning_rat=1");
    overriden.expect(2).complains(&["--set", "learning_rate"]);
}

#[test]
fn a_model_can_be_inspected() {
    let project = Project::empty();
    let model = reference("tiny/llama");
    let told =
        project.luthier(["model", "inspect", model.to_str().unwrap(), "--json"]).run().expect(0).json();
    assert_eq!(told["family"], "llama");
    assert_eq!(
        (&told["layers"], &told["heads"], &told["key_value_heads"]),
        (&json!(3), &json!(4), &json!(2))
    );
    assert_eq!((&told["vocabulary"], &told["context"]), (&json!(512), &json!(128)));
    assert_eq!(told["memory"]["f32"].as_u64(), told["parameters"].as_u64().map(|count| count * 4));
    assert!(told["memory"]["nf4"].as_u64() < told["memory"]["bf16"].as_u64(), "{told}");
    assert_eq!((&told["dtype"], &told["quantisation"]), (&json!("F32"), &json!(null)));
    assert_eq!(told["template"]["fingerprint"].as_str().map(str::len), Some(16));
    let words = project.luthier(["model", "inspect", model.to_str().unwrap()]).run().expect(0);
    assert!(words.stdout.contains("llama") && words.stdout.contains("128 tokens"), "{words}");
}

#[test]
fn other_families_and_quantised_models_can_be_inspected() {
    let project = Project::empty();
    let inspect = |path: &str| {
        let path = reference(path);
        project.luthier(["model", "inspect", path.to_str().unwrap(), "--json"]).run().expect(0).json()
    };
    let told = inspect("tiny/falcon-40b");
    assert_eq!((&told["family"], &told["kind"]), (&json!("falcon"), &json!("huggingface")));
    assert_eq!((&told["key_value_heads"], &told["tied_head"]), (&json!(2), &json!(true)));
    let told = inspect("gguf/qwen3.gguf");
    assert_eq!((&told["family"], &told["kind"]), (&json!("qwen3"), &json!("gguf")));
    assert_eq!((&told["dtype"], &told["quantisation"]), (&json!("Q8_0"), &json!("Q8_0")));
    assert_eq!((&told["head_size"], &told["template"]), (&json!(24), &json!(null)));
    assert!(told["storage"]["Q8_0"]["bytes"].as_u64() < told["memory"]["bf16"].as_u64(), "{told}");
    assert!(told["memory"]["as_stored"].as_u64() < told["memory"]["bf16"].as_u64(), "{told}");
}

#[test]
fn rows_beyond_the_models_positions_are_found_before_a_run() {
    for (model, status, words) in [("gpt2", 3, "has positions for"), ("llama", 0, "was made for")] {
        let project = Project::empty();
        let row = json!({ "input_ids": vec![7; 150], "labels": vec![7; 150] });
        project.write_rows("train.jsonl", &vec![row; 3]);
        project.write(
            "luthier.toml",
            format!(
                "[model]\npath = \"{}\"\n[data]\ntrain = \"train.jsonl\"\neval = 0\nformat = \"tokens\"\nmax_length = 256\n",
                reference(&format!("tiny/{model}")).display()
            ),
        );
        let told = project.luthier(["data", "check"]).run().expect(status);
        let said = format!("{}{}", told.stdout, told.stderr);
        assert!(said.contains("3 rows are longer than the 128 tokens that the model"), "{told}");
        assert!(said.contains(words) && said.contains("data.max_length = 128"), "{told}");
    }
}

#[test]
fn an_unusable_model_is_an_error_with_its_reason() {
    let project = Project::tiny();
    with(&project, &["plan"], "model.path=nowhere").expect(2).complains(&[
        "nowhere",
        "does not exist",
        "model.path",
    ]);

    copied_model(&project);
    let weights = fs::read(reference("tiny/llama/model.safetensors")).unwrap();
    project.write("model/model.safetensors", &weights[..weights.len() / 2]);
    with(&project, &["plan"], "model.path=model").expect(1).complains(&["model.safetensors", "damaged"]);

    project.write("model/model.safetensors", &weights);
    fs::remove_file(project.path().join("model/tokenizer.json")).unwrap();
    with(&project, &["plan"], "model.path=model").expect(1).complains(&["tokenizer.json"]);

    copied_model(&project);
    let settings = fs::read_to_string(reference("tiny/llama/config.json")).unwrap();
    project.write("model/config.json", settings.replace("\"llama\"", "\"theorbo\""));
    with(&project, &["plan"], "model.path=model").expect(2).complains(&["theorbo", "llama"]);

    project.write("model.gguf", b"GGML and then some more bytes");
    with(&project, &["plan"], "model.path=model.gguf").expect(1).complains(&["model.gguf", "no GGUF file"]);

    project.write("pickled/config.json", &settings);
    project.write("pickled/pytorch_model.bin", "\u{80}");
    with(&project, &["plan"], "model.path=pickled").expect(2).complains(&["pickle", "safetensors"]);
}

#[test]
fn the_plan_has_its_documented_keys() {
    let project = Project::tiny();
    let plan = project.luthier(["plan", "--json"]).run().expect(0).json();
    for key in ["parameters", "memory", "steps", "tokens", "checkpoint_bytes"] {
        assert!(keys(&plan).contains(&key), "{plan}");
    }
    assert_eq!(plan["steps"], 12);
    for key in ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "total"] {
        assert!(plan["memory"][key].as_u64().is_some_and(|bytes| bytes > 0), "{key}: {plan}");
    }
    assert!(plan["parameters"]["trainable"].as_u64() < plan["parameters"]["total"].as_u64());
    let words = project.luthier(["plan"]).run().expect(0);
    assert!(words.stdout.contains("activations"), "{words}");
}

#[test]
fn a_run_that_does_not_fit_is_refused_before_anything_is_written() {
    let project = Project::tiny();
    // Adapters of this rank keep megabytes for each of two hundred thousand tokens.
    project.write_rows("train.jsonl", &tiny_rows(5000));
    let large = ["--set", "method.rank=65536", "--set", "train.batch_size=5000"];
    let told = project.luthier(["train"].into_iter().chain(large)).run().expect(2);
    let told = told.complains(&["memory", "train.batch_size"]);
    // No disk has room for a thousand million checkpoints.
    let checkpoints = ["train.max_steps=1000000000", "train.checkpoint_every=1", "train.keep_checkpoints=0"];
    let set = checkpoints.iter().flat_map(|set| ["--set", set]);
    project
        .luthier(["train"].into_iter().chain(set))
        .run()
        .expect(1)
        .complains(&["disk", "keep_checkpoints"]);
    assert!(!project.path().join("runs").exists(), "{told}");
}

#[test]
fn the_check_of_good_data_has_its_documented_keys() {
    let project = Project::tiny();
    let report = project.luthier(["data", "check", "--json"]).run().expect(0).json();
    assert_eq!(report["rows"], 30);
    assert!(report["trained_tokens"].as_u64().unwrap() < report["tokens"].as_u64().unwrap());
    assert!(report["problems"].is_array());
    let statistics = project.luthier(["data", "stats", "--json"]).run().expect(0).json();
    assert_eq!(statistics["tokens"], report["tokens"]);
    let words = project.luthier(["data", "stats"]).run().expect(0);
    assert!(words.stdout.contains("tokens per row"), "{words}");
}

#[test]
fn a_row_is_shown_with_its_loss_mask() {
    let project = Project::tiny();
    let row = project.luthier(["data", "show", "1", "--json"]).run().expect(0).json();
    assert_eq!(row["row"], 1);
    assert_eq!(row["messages"][1]["role"], "assistant");
    let tokens = row["tokens"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(text, row["text"].as_str().unwrap());
    let trained = tokens.iter().filter(|token| token["trained"] == true);
    let learned: String = trained.map(|token| token["text"].as_str().unwrap()).collect();
    assert!(learned.starts_with("{\"colour\": \"blue\"}") && learned.contains("<|im_end|>"), "{learned}");
    assert!(tokens.iter().all(|token| token["id"].is_u64()));

    let words = project.luthier(["data", "show", "1"]).run().expect(0);
    assert!(words.stdout.contains("▐{\"colour\": \"blue\"}"), "{words}");
    project.luthier(["data", "show", "999"]).run().expect(2).complains(&["0 to 29"]);
}

#[test]
fn text_of_the_data_cannot_control_the_terminal() {
    let project = Project::tiny();
    let evil = "red\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}2J\u{202e}gnp.\u{200b}";
    project.write_rows(
        "train.jsonl",
        &[json!({"messages": [
            {"role": "user", "content": evil}, {"role": "assistant", "content": evil},
        ]})],
    );
    let settings = ["--set", "data.max_length=128"];
    let words = project.luthier(["data", "show", "0"].into_iter().chain(settings)).run().expect(0);
    let document =
        project.luthier(["data", "show", "0", "--json"].into_iter().chain(settings)).run().expect(0);
    for text in [&words.stdout, &document.stdout] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}', '\u{200b}']), "{text:?}");
    }
    assert_eq!(document.json()["messages"][0]["content"], evil);
}

#[test]
fn broken_data_blocks_a_run() {
    let no_json = "{\"messages\": [{\"role\"\n".to_owned();
    let no_reply = json!({"messages": [{"role": "user", "content": "anyone there?"}]}).to_string() + "\n";
    let sound = json_lines(&tiny_rows(3));
    let cases = [
        ("row that is no JSON", format!("{sound}{no_json}"), "", "train.jsonl:4"),
        ("row without a reply", format!("{sound}{no_reply}"), "", "train.jsonl:4"),
        ("empty dataset", String::new(), "", "train"),
        ("all rows too long", sound.clone(), "data.max_length=8", "max_length"),
    ];
    for (case, rows, set, said) in cases {
        let project = Project::tiny();
        project.write("train.jsonl", rows);
        let set = if set.is_empty() { vec![] } else { vec!["--set", set, "--set", "data.overflow=drop"] };
        let check = project
            .luthier(["data", "check", "--json"].into_iter().chain(set.iter().copied()))
            .run()
            .expect(3);
        let found = problems(&check.json());
        assert!(found.iter().any(|(_, severity)| severity == "blocks"), "{case}: {check}");
        let train = project.luthier(["train"].into_iter().chain(set)).run().expect(3).complains(&[said]);
        assert!(!project.path().join("runs").exists(), "{case}: {train}");
    }
}

#[test]
fn a_missing_data_file_is_reported() {
    let project = Project::tiny();
    with(&project, &["data", "check"], "data.train=gone.jsonl")
        .expect(2)
        .complains(&["gone.jsonl", "data.train"]);
}

#[test]
fn a_read_only_project_is_not_changed() {
    let project = Project::tiny();
    project.write("runs", "a file where the folder of runs should be");
    project.luthier(["train"]).run().expect(1).complains(&["runs"]);
    assert!(project.path().join("runs").is_file());

    let closed = Project::tiny();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not restrict root.
    if fs::write(closed.path().join("probe"), "").is_err() {
        closed.luthier(["train"]).run().expect(1).complains(&["runs", "permission"]);
    }
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn without_an_engine_nothing_is_started() {
    let project = Project::tiny();
    let told = project.luthier(["train"]).variable("LUTHIER_ENGINE", "/nowhere/engine").run().expect(1);
    let told = told.complains(&["LUTHIER_ENGINE", "/nowhere/engine", "make build"]);
    assert!(!project.path().join("runs").exists(), "{told}");
    let doctor =
        project.luthier(["doctor", "--json"]).variable("LUTHIER_ENGINE", "/nowhere/engine").run().expect(3);
    let findings = doctor.json();
    assert_eq!(findings["pass"], false);
    let engine = findings["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["subject"] == "engine")
        .unwrap();
    assert_eq!(engine["standing"], "missing");
    assert!(engine["remedy"].as_str().unwrap().contains("make build"), "{engine}");
}

#[test]
fn the_doctor_finds_the_engine() {
    let project = Project::tiny();
    let told = project.luthier(["doctor", "--json"]).run().expect(0).json();
    assert_eq!(told["pass"], true);
    let subjects: Vec<_> =
        told["findings"].as_array().unwrap().iter().map(|finding| &finding["subject"]).collect();
    for subject in ["engine", "libtorch", "memory", "gpu", "disk", "terminal", "cache"] {
        assert!(subjects.iter().any(|found| *found == subject), "{subject}: {told}");
    }
    let findings = told["findings"].as_array().unwrap();
    for finding in findings.iter().filter(|finding| finding["standing"] != "good") {
        assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{finding}");
    }
}

#[test]
fn the_doctor_tells_what_a_gpu_does_without() {
    let project = Project::tiny();
    let engine = project.beside("engine");
    let reason = "the kernels norm are not available: nvrtcVersion is not loaded";
    let slower = json!([{ "what": reason, "remedy": "install torch: `make setup` does" }]);
    let report =
        json!({ "version": "0.1.0", "libtorch": "2.11.0", "devices": ["cpu", "cuda:0"], "slower": slower });
    fs::write(&engine, format!("#!/bin/sh\necho '{report}'\n")).unwrap();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).unwrap();
    let told = project.luthier(["doctor", "--json"]).variable("LUTHIER_ENGINE", &engine).run().json();
    let findings = told["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["found"].as_str().unwrap().contains(reason));
    let found = found.unwrap_or_else(|| panic!("{told}"));
    assert_eq!((&found["subject"], &found["standing"]), (&json!("device"), &json!("warning")));
    assert!(found["remedy"].as_str().unwrap().contains("make setup"), "{found}");
}

#[test]
fn a_project_may_be_reached_through_a_link() {
    let project = Project::tiny();
    symlink(project.path(), project.beside("link")).unwrap();
    let linked = project.beside("link");
    project.luthier(["plan", "-C", linked.to_str().unwrap()]).run().expect(0);
}

/// A run directory of a run that failed before its first checkpoint.
fn failed_run(project: &Project) {
    project.write("runs/20260102-150405-lora/config.toml", Project::tiny_settings());
    let message = "error: unknown key `wurmup`\n --> config.toml:9:1\n  |\n9 | wurmup = 1\n  | ^^^^^^";
    let status = json!({
        "state": "failed",
        "failure": { "class": "config", "message": message, "remedy": "correct config.toml" },
    });
    project.write("runs/20260102-150405-lora/status.json", status.to_string());
}

#[test]
fn multi_line_problems_keep_their_lines() {
    let project = Project::tiny();
    failed_run(&project);
    let told = project.luthier(["run", "show", "latest"]).run().expect(0);
    assert!(!told.stdout.contains('⏎'), "{told}");
    let column = |wanted: &str| told.stdout.lines().find_map(|line| line.find(wanted));
    assert_eq!(column("wurmup = 1"), column("^^^^^^"), "{told}");
    for setting in ["train.learning_rte=1", "train.learning_rate=fast"] {
        let told = project.luthier(["run", "edit", "latest", setting]).run().expect(2);
        let told = told.complains(&["learning_rate", "\n1 | train", "^^^^"]);
        assert!(!told.stderr.contains('⏎'), "{told}");
    }
    project
        .luthier(["run", "edit", "latest", "train.learning_rate=1e-3"])
        .run()
        .expect(1)
        .complains(&["it failed"]);
}

#[test]
fn a_warm_up_longer_than_the_run_is_refused() {
    let project = Project::tiny();
    let settings = Project::tiny_settings().replace("max_steps = 12", "epochs = 3");
    project.write("luthier.toml", settings);
    let packed = project.luthier(["plan", "--json"]).run().expect(0).json()["steps"].as_u64().unwrap();
    with(&project, &["plan"], &format!("train.warmup={packed}")).expect(0);
    for command in [&["plan"][..], &["train"], &["data", "check"]] {
        with(&project, command, "train.warmup=500").expect(2).complains(&[
            "train.warmup = 500 steps",
            &format!("ends after {packed} "),
            "train.epochs = 3 over 24 rows",
            "a share of the run",
        ]);
    }
    assert!(!project.path().join("runs").exists());
}

#[test]
fn an_unknown_theme_is_reported_and_does_not_stop_the_command() {
    let project = Project::tiny();
    fs::create_dir_all(project.beside("config").join("luthier/themes")).unwrap();
    fs::write(project.beside("config").join("luthier/themes/mine.toml"), "inherits = \"luthier\"\n").unwrap();
    for command in [&["plan"][..], &["data", "check"]] {
        with(&project, command, "ui.theme=solarised").expect(0).complains(&[
            "ui.theme",
            "no theme solarised",
            "high-contrast",
            "mine",
        ]);
        assert_eq!(with(&project, command, "ui.theme=mine").expect(0).stderr, "");
    }
}

#[test]
fn a_run_without_a_checkpoint_has_nothing_to_evaluate() {
    let project = Project::tiny();
    failed_run(&project);
    for checkpoint in [&[][..], &["--checkpoint", "4"]] {
        project
            .luthier(["eval", "latest"].into_iter().chain(checkpoint.iter().copied()))
            .run()
            .expect(1)
            .complains(&[
                "failed before its first checkpoint",
                "wurmup",
                "correct config.toml",
                "run resume",
            ]);
    }
}

#[test]
fn the_reference_of_a_comparison_must_exist() {
    let project = Project::tiny();
    let model = reference("tiny/llama");
    let verify = |reference: &str, device: &str| {
        let model = model.to_str().unwrap();
        project.luthier(["model", "verify", model, "--reference", reference, "--device", device]).run()
    };
    verify("nowhere", "cpu").expect(2).complains(&["no folder `nowhere`", "ref.safetensors", "--help"]);
    verify(".", "cpu").expect(2).complains(&["has no ref.safetensors", "--help"]);
    verify(".", "gpu").expect(2).complains(&["auto, cpu or cuda:N"]);
    project.write("ref.safetensors", "");
    verify(".", "cuda:1023").expect(2).complains(&[
        "cuda:1023 is asked for",
        "luthier doctor",
        "--device cpu",
    ]);
}

#[test]
fn one_problem_of_many_rows_is_reported_once() {
    let project = Project::tiny();
    let row = |number: usize| {
        let asked = json!({ "role": "user", "content": format!("item {number} is white") });
        json!({ "messages": [asked, { "role": "assistant", "content": "" }] })
    };
    let rows: Vec<_> = tiny_rows(3).into_iter().chain((3..23).map(row)).collect();
    project.write_rows("train.jsonl", &rows);
    let told = project.luthier(["data", "check"]).run().expect(3);
    assert_eq!(told.stdout.matches("only the end-of-turn token is trained").count(), 1, "{told}");
    assert!(told.stdout.contains("empty reply learned: 20 rows, 69 %"), "{told}");
    assert!(told.stdout.contains("rows 3 (train.jsonl:4), 4 (train.jsonl:5)"), "{told}");
    let document = project.luthier(["data", "check", "--json"]).run().expect(3).json();
    let empty = problems(&document).into_iter().filter(|(kind, _)| kind == "nothing_learned").count();
    assert_eq!(empty, 20);
}

#[test]
fn the_lengths_start_with_the_shortest_rows() {
    let project = Project::tiny();
    let told = project.luthier(["data", "stats"]).run().expect(0);
    let bars: Vec<&str> = told.stdout.lines().filter(|line| line.contains('–')).collect();
    assert!(bars.first().is_some_and(|bar| bar.contains('▪')), "{told}");
}
