//! What `luthier-engine bench` prints.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::process::{Command, Output};

use luthier_tests::{Project, engine, reference};
use serde_json::{Value, json};

fn bench(arguments: &[&str]) -> Output {
    let model = reference("tiny/gpt2");
    let mut command = Command::new(engine());
    command.arg("bench").arg(model).args(["--device", "cpu", "--dtype", "f32", "--json"]).args(arguments);
    command.output().unwrap()
}

/// The exit status and the lines of a plan.
fn planned(plan: &Value) -> (Option<i32>, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    std::fs::write(&path, plan.to_string()).unwrap();
    let output = bench(&["--plan", path.to_str().unwrap()]);
    let lines = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn is_above(value: &Value, least: f64) -> bool {
    value.as_f64().is_some_and(|value| value > least)
}

#[test]
fn every_work_of_a_plan_is_a_line() {
    let plan = json!({"works": [
        {"name": "equal", "train": {"rows": {"equal": {"batch": 2, "length": 16}}, "steps": 3, "warm_up": 1}},
        {"name": "quantised", "method": "qlora", "rank": 4,
         "train": {"rows": {"equal": {"batch": 1, "length": 16}}, "steps": 1, "recompute": true}},
        // The model has 128 positions.
        {"name": "too long", "train": {"rows": {"equal": {"batch": 1, "length": 200}}}},
        {"name": "packed", "train": {"rows": {"lognormal": {"tokens": 120, "median": 20, "deviation": 0.8}}, "steps": 4}},
        {"name": "tokens", "generate": {"rows": 2, "new_tokens": 8, "prompt": 5, "answers": "tuned", "temperature": 1.0}},
        {"name": "pair", "generate": {"new_tokens": 8, "answers": "pair"}},
        {"name": "profile", "train": {"rows": {"lengths": [9, 30, 4]}, "steps": 2, "profile": true}},
    ]});
    let (status, lines) = planned(&plan);
    assert_eq!(status, Some(1), "one has failed: {lines:?}");
    let names: Vec<&str> = lines.iter().map(|line| line["name"].as_str().unwrap()).collect();
    // Those over the same weights come together.
    assert_eq!(names, ["equal", "too long", "packed", "tokens", "pair", "profile", "quantised"]);
    let of = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap();

    assert!(of("too long")["error"].as_str().unwrap().contains("128"), "{}", of("too long"));
    for name in ["equal", "packed", "profile", "quantised"] {
        let train = &of(name)["train"];
        assert!(
            is_above(&train["tokens_per_second"], 0.0) && of(name).get("error").is_none(),
            "{name}: {train}"
        );
        assert!(train["losses"].as_array().unwrap().iter().all(Value::is_number), "{name}: {train}");
        let forecast = &train["forecast"];
        assert!(is_above(&forecast["total"], forecast["weights"].as_f64().unwrap()), "{name}: {forecast}");
        assert!(
            is_above(&train["peak_memory_bytes"], 0.0) && of(name)["decode"].is_null(),
            "{name}: {train}"
        );
    }
    let equal = &of("equal")["train"];
    assert_eq!(
        (equal["tokens"].clone(), equal["losses"].as_array().unwrap().len()),
        (json!([32, 32, 32]), 4)
    );
    assert_eq!(of("profile")["train"]["tokens"], json!([43, 43]));
    let packed = of("packed")["train"]["tokens"].as_array().unwrap();
    assert!(packed.iter().all(|tokens| (1..=120).contains(&tokens.as_u64().unwrap())), "{packed:?}");
    assert!(is_above(&of("equal")["weight_bytes"], of("quantised")["weight_bytes"].as_f64().unwrap()));

    let tokens = &of("tokens")["decode"];
    assert!(tokens["rows"] == 2 && is_above(&tokens["tokens_per_second"], 0.0), "{tokens}");
    assert!(tokens["alone"].is_null() && of("tokens")["train"].is_null());
    let pair = &of("pair")["decode"];
    assert_eq!((&pair["rows"], &pair["alone"]["rows"]), (&json!(2), &json!(1)));
    assert!(is_above(&pair["alone"]["seconds"], 0.0) && is_above(&pair["seconds"], 0.0), "{pair}");

    let profile = &of("profile")["train"]["profile"];
    let found = profile["lines"].as_array().unwrap();
    assert!(is_above(&profile["launches_per_step"], 10.0) && found.len() <= 40, "{profile}");
    let times: Vec<f64> = found.iter().map(|line| line["microseconds"].as_f64().unwrap()).collect();
    assert!(times.len() > 5 && times.is_sorted_by(|a, b| a >= b), "{times:?}");
    assert!(
        found.iter().any(|line| line["name"] == "aten::_fused_adamw_" && line["calls"] == 2),
        "{found:?}"
    );
    assert!(of("packed")["train"]["profile"].is_null());
}

#[test]
fn one_work_is_one_document() {
    let output = bench(&["--steps", "2", "--batch", "2", "--length", "12", "--new-tokens", "4"]);
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["device"], &found["dtype"]), (&json!("cpu"), &json!("Float")));
    assert_eq!(found["train"]["tokens"], json!([24, 24]));
    assert!(found["decode"]["rows"] == 1 && found.get("name").is_none(), "{found}");
    assert_eq!(found["slower"], json!([]), "a processor has no kernels of ours to do without");
    let peak = found["peak_memory_bytes"].as_f64().unwrap();
    assert!(!is_above(&found["train"]["peak_memory_bytes"], peak), "{found}");

    let failed = bench(&["--length", "200", "--new-tokens", "0"]);
    assert_eq!((failed.status.code(), failed.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8(failed.stderr).unwrap().contains("luthier-engine: "));
}

#[test]
fn a_wrong_plan_is_refused_before_anything_is_measured() {
    let (status, lines) = planned(&json!({"works": [{"name": "a", "generate": {"new_token": 8}}]}));
    assert_eq!((status, lines.len()), (Some(1), 0));
    for wrong in [["--plan", "nowhere.json"].as_slice(), &["--plan", "p.json", "--steps", "3"]] {
        assert!(!bench(wrong).status.success(), "{wrong:?}");
    }
}

#[test]
fn a_project_brings_its_own_rows_and_settings() {
    let project = Project::tiny();
    let rows = project.path().join("rows.json");
    let mut command = Command::new(engine());
    command.args(["bench", "--json", "--device", "cpu", "--steps", "1", "--new-tokens", "0", "--project"]);
    let output = command.arg(project.path()).arg("--rows-to").arg(&rows).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written: Value = serde_json::from_slice(&std::fs::read(&rows).unwrap()).unwrap();
    let steps = written.as_array().unwrap();
    let tokens = |step: &Value| -> usize {
        let rows = step.as_array().unwrap().iter().flat_map(|batch| batch.as_array().unwrap());
        rows.map(|row| row["ids"].as_array().unwrap().len()).sum()
    };
    assert_eq!((steps.len(), &found["train"]["tokens"]), (3, &json!([tokens(&steps[2])])));
    assert!(tokens(&steps[2]) > 0 && steps[2][0][0]["trained"].as_array().unwrap().contains(&json!(false)));
}
