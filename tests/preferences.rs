//! Preference pairs, from their file to a trained run.

use std::fs;

use luthier_tests::{Project, reference};
use serde_json::{Value, json};

/// The tiny project with pairs instead of conversations: the chosen answers name a colour, the rejected ones do not.
fn project() -> Project {
    let project = Project::tiny();
    let pair = |index: usize| {
        let colour = ["red", "blue", "green"][index % 3];
        json!({
            "prompt": format!("item {index} is {colour}"),
            "chosen": format!("{{\"colour\": \"{colour}\"}}"),
            "rejected": format!("I cannot tell {index}."),
        })
    };
    project.write_rows("train.jsonl", &(0..24).map(pair).collect::<Vec<_>>());
    project.write_rows("held-out.jsonl", &(24..30).map(pair).collect::<Vec<_>>());
    let settings = Project::tiny_settings().replace("[train]\n", "[train]\nalgorithm = \"dpo\"\n");
    project.write("luthier.toml", settings);
    project
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("{key} of {event}"))
}

#[test]
fn a_run_learns_to_prefer_the_chosen_answers() {
    let project = project();
    let told = project.luthier(["train", "--json"]).run().expect(0);
    let events = told.json_lines();
    assert_eq!(of_kind(&events, "state").last().unwrap()["state"], "finished");
    let steps = of_kind(&events, "step");
    assert_eq!(steps.len(), 12);
    for step in &steps {
        let margin = number(step, "reward_chosen") - number(step, "reward_rejected");
        assert!((margin - number(step, "reward_margin")).abs() < 1e-9, "{step}");
        assert!((0.0..=1.0).contains(&number(step, "reward_accuracy")), "{step}");
    }
    assert!(number(steps[0], "reward_margin").abs() < 1e-6, "{told}");
    assert!((number(steps[0], "loss") - std::f64::consts::LN_2).abs() < 1e-6, "{told}");
    assert!(number(steps[11], "reward_margin") > 1.0 && number(steps[11], "reward_accuracy") > 0.9, "{told}");

    let evaluations = of_kind(&events, "eval");
    let (first, last) = (evaluations[0], evaluations.last().unwrap());
    assert!(number(last, "reward_margin") > number(first, "reward_margin") + 1.0, "{told}");
    assert!(number(last, "loss") < number(first, "loss") && number(last, "reward_accuracy") > 0.9, "{told}");
    assert!(last.get("perplexity").is_none() && last.get("token_accuracy").is_none(), "{last}");

    let written = fs::read_to_string(project.run().join("config.toml")).unwrap();
    for setting in ["algorithm = \"dpo\"", "dpo_beta = 0.1", "dpo_label_smoothing = 0.0"] {
        assert!(written.contains(setting), "{written}");
    }
    let compared = project.luthier(["eval", "latest", "--json"]).run().expect(0).json();
    assert!((number(&compared["base"], "loss") - std::f64::consts::LN_2).abs() < 1e-6, "{compared}");
    assert!(number(&compared["tuned"], "reward_margin") > 1.0, "{compared}");
    let words = project.luthier(["eval", "latest", "--limit", "2"]).run().expect(0);
    assert!(words.stdout.contains("preferred ") && !words.stdout.contains("perplexity"), "{words}");
}

#[test]
fn every_method_learns_from_pairs() {
    for (kind, learning_rate) in
        [("full", "1e-3"), ("qlora", "1e-2"), ("ia3", "3e-1"), ("prefix", "3e-2"), ("prompt", "3e-1")]
    {
        let project = project();
        let set = [
            format!("method.kind={kind}"),
            format!("train.learning_rate={learning_rate}"),
            "train.max_steps=16".to_owned(),
        ];
        let arguments = set.iter().flat_map(|setting| ["--set", setting]);
        let told = project.luthier(["train", "--json"].into_iter().chain(arguments)).run().expect(0);
        let events = told.json_lines();
        assert_eq!(of_kind(&events, "state").last().unwrap()["state"], "finished", "{kind}: {told}");
        let steps = of_kind(&events, "step");
        assert!(number(steps.last().unwrap(), "reward_margin") > 0.02, "{kind}: {told}");
        if ["full", "ia3"].contains(&kind) {
            // The trained model starts equal to the base.
            assert!((number(steps[0], "loss") - std::f64::consts::LN_2).abs() < 1e-4, "{kind}: {told}");
        }
        let compared = project.luthier(["eval", "latest", "--json"]).run().expect(0).json();
        assert!(
            (number(&compared["base"], "loss") - std::f64::consts::LN_2).abs() < 1e-6,
            "{kind}: {compared}"
        );
        let last = of_kind(&events, "eval").last().map(|event| number(event, "loss")).unwrap();
        assert!((number(&compared["tuned"], "loss") - last).abs() < 1e-3, "{kind}: {last} {compared}");
    }
}

#[test]
fn every_method_learns_from_labelled_answers() {
    for (kind, learning_rate) in
        [("lora", "1e-2"), ("qlora", "1e-2"), ("ia3", "3e-1"), ("prefix", "3e-2"), ("prompt", "3e-1")]
    {
        let project = project();
        let row = |index: usize| {
            let colour = ["red", "blue", "green"][index / 2 % 3];
            let good = index.is_multiple_of(2);
            let answer = if good {
                format!("{{\"colour\": \"{colour}\"}}")
            } else {
                format!("I cannot tell {index}.")
            };
            json!({"prompt": format!("item {index} is {colour}"), "completion": answer, "label": good})
        };
        project.write_rows("train.jsonl", &(0..24).map(row).collect::<Vec<_>>());
        project.write_rows("held-out.jsonl", &(24..30).map(row).collect::<Vec<_>>());
        let set = [
            "train.algorithm=kto".to_owned(),
            format!("method.kind={kind}"),
            format!("train.learning_rate={learning_rate}"),
            "train.max_steps=16".to_owned(),
        ];
        let arguments = set.iter().flat_map(|setting| ["--set", setting]);
        let told = project.luthier(["train", "--json"].into_iter().chain(arguments)).run().expect(0);
        let events = told.json_lines();
        assert_eq!(of_kind(&events, "state").last().unwrap()["state"], "finished", "{kind}: {told}");
        let last = of_kind(&events, "eval").pop().unwrap().clone();
        assert!(number(&last, "reward_margin") > 0.02 && number(&last, "kl") >= 0.0, "{kind}: {last}");
        let compared = project.luthier(["eval", "latest", "--json"]).run().expect(0).json();
        // The base model's loss is 1 - sigmoid(0).
        assert!((number(&compared["base"], "loss") - 0.5).abs() < 1e-6, "{kind}: {compared}");
        assert!(
            (number(&compared["tuned"], "loss") - number(&last, "loss")).abs() < 1e-3,
            "{kind}: {compared}"
        );
        let words = project.luthier(["eval", "latest", "--limit", "3"]).run().expect(0);
        assert!(words.stdout.contains("KL to base"), "{words}");
    }
}

#[test]
fn a_foreground_run_reports_preferences() {
    let project = project();
    let told = project.luthier(["train"]).run().expect(0);
    assert!(told.stderr.contains("held-out loss") && told.stderr.contains("preferred 100"), "{told}");
}

#[test]
fn both_sides_of_a_pair_are_checked_counted_and_shown() {
    let project = project();
    let report = project.luthier(["data", "check", "--json"]).run().expect(0).json();
    assert_eq!(report["rows"], 30, "{report}");
    // The chosen replies of these rows are all longer, and the rows much alike: worth a word, and no more.
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| problem["kind"] == "longer_chosen"), "{report}");
    assert!(problems.iter().all(|problem| problem["severity"] == "warning"), "{report}");
    let row = project.luthier(["data", "show", "1", "--json"]).run().expect(0).json();
    let learned = |tokens: &Value| -> String {
        let trained = tokens.as_array().unwrap().iter().filter(|token| token["trained"] == true);
        trained.map(|token| token["text"].as_str().unwrap()).collect()
    };
    assert_eq!(learned(&row["tokens"]), "{\"colour\": \"blue\"}<|im_end|>");
    assert_eq!(learned(&row["rejected"]["tokens"]), "I cannot tell 1.<|im_end|>");
    assert_eq!(row["rejected"]["reply"], "I cannot tell 1.");
    let words = project.luthier(["data", "show", "1"]).run().expect(0);
    assert!(
        words.stdout.contains("rejected: I cannot tell 1.") && words.stdout.contains("▐I cannot"),
        "{words}"
    );
    let statistics = project.luthier(["data", "stats", "--json"]).run().expect(0).json();
    assert_eq!(statistics["tokens"], report["tokens"]);
    let plan = project.luthier(["plan", "--json"]).run().expect(0).json();
    assert_eq!(plan["steps"], 12);

    project
        .luthier(["train", "--set", "train.algorithm=sft"])
        .run()
        .expect(3)
        .complains(&["train.algorithm = \"dpo\""]);
    assert!(!project.path().join("runs").exists());
}

/// Losses, gradient norms and margins of TRL on the same pairs, through the command line: see
/// `tests/references/training/llama/dpo`.
#[test]
fn ten_steps_equal_trl() {
    let project = Project::tiny();
    let known = reference("training/llama/dpo");
    let dpo: Value = serde_json::from_str(&fs::read_to_string(known.join("dpo.json")).unwrap()).unwrap();
    let texts = |name: &str| dpo[name].as_array().unwrap().clone();
    let pairs = texts("prompts").into_iter().zip(texts("chosen")).zip(texts("rejected"));
    let rows: Vec<Value> = pairs
        .map(|((prompt, chosen), rejected)| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
        .collect();
    project.write_rows("train.jsonl", &rows);
    let init = format!("method.init={}", known.join("adapter-init").display());
    let set = [
        "train.algorithm=dpo",
        "data.format=preference",
        "data.template=none",
        "data.eval=0.0",
        "data.shuffle=false",
        "train.max_steps=10",
        "train.eval_every=0",
        "train.learning_rate=1e-3",
        "train.schedule=constant",
        "train.max_grad_norm=0",
        "train.weight_decay=0.01",
        &init,
    ];
    let set = set.iter().flat_map(|setting| ["--set", *setting]);
    let told = project.luthier(["train", "--json"].into_iter().chain(set)).run().expect(0);
    let events = told.json_lines();
    let steps = of_kind(&events, "step");
    let log = dpo["log"].as_array().unwrap();
    assert_eq!(steps.len(), log.len());
    for (step, expected) in steps.iter().zip(log) {
        for (key, known) in [("loss", "loss"), ("grad_norm", "grad_norm"), ("reward_margin", "reward_margin")]
        {
            let (ours, expected) = (number(step, key), number(expected, known));
            assert!((ours - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{key}: {ours} {expected}");
        }
        assert_eq!(step["reward_accuracy"], expected["accuracy"]);
    }
}
