//! Sweeps, evaluations, chats and verdicts.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::fs;
use std::path::Path;

use luthier_tests::{Project, is_alive, wait_for};
use serde_json::{Value, json};

/// A project with a finished run of a few steps.
fn trained() -> Project {
    let project = Project::tiny();
    project.luthier(["train", "--json", "--set", "train.eval_every=0"]).run().expect(0);
    project
}

fn trials(project: &Project) -> Vec<Value> {
    let queue = project.luthier(["queue", "list", "--json"]).run().expect(0).json();
    queue["trials"].as_array().unwrap().clone()
}

fn wait_for_trials(project: &Project, state: &str) -> Vec<Value> {
    wait_for(&format!("all trials to be {state}"), || {
        let trials = trials(project);
        let all = trials.iter().all(|trial| trial["state"] == state);
        if all { Ok(trials) } else { Err(format!("{trials:?}")) }
    })
}

/// The process that holds a lock file, according to the file.
fn holder(lock: &Path) -> Option<u32> {
    let text = fs::read_to_string(lock).ok()?;
    text.split_whitespace().find_map(|word| word.parse().ok())
}

#[test]
fn a_sweep_runs_its_trials_one_after_another() {
    let project = Project::tiny();
    project.write(
        "rates.toml",
        "name = \"rates\"\nsampler = \"grid\"\n[goal]\nmetric = \"eval.loss\"\n[space]\n\
         \"train.learning_rate\" = { choice = [1e-4, 1e-2] }\n\"train.max_steps\" = 6\n",
    );
    let started = project.luthier(["sweep", "start", "rates.toml", "--json"]).run().expect(0).json();
    assert_eq!(started["trials"].as_array().unwrap().len(), 2);
    let trials = wait_for_trials(&project, "finished");
    let losses: Vec<f64> = trials.iter().map(|trial| trial["result"].as_f64().unwrap()).collect();
    assert!(losses[1] < losses[0], "the higher rate learns more in six steps: {losses:?}");
    assert_eq!(trials[1]["settings"]["train.learning_rate"].as_str().unwrap().parse(), Ok(1e-2));
    let runs = project.runs();
    let named: Vec<_> = trials.iter().map(|trial| trial["run"].as_str().unwrap()).collect();
    assert_eq!(named, runs.iter().map(|run| run.file_name().unwrap().to_str().unwrap()).collect::<Vec<_>>());
    let words = project.luthier(["queue", "list"]).run().expect(0);
    assert!(words.stdout.contains("rates") && words.stdout.contains("learning_rate="), "{words}");
    wait_for("the scheduler to end", || match holder(&project.path().join("runs/scheduler.lock")) {
        Some(pid) if is_alive(pid) => Err(format!("process {pid} is alive")),
        _ => Ok(()),
    });
}

#[test]
fn the_queue_can_be_changed_while_trials_run() {
    let project = Project::tiny();
    let long = ["queue", "add", "--set", "train.max_steps=100000", "--set", "train.eval_every=0"];
    project.luthier(long).run().expect(0);
    wait_for("the first trial to run", || match trials(&project).first() {
        Some(trial) if trial["state"] == "running" && trial["run"].is_string() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for _ in 0..2 {
        project.luthier(["queue", "add", "--set", "train.max_steps=2"]).run().expect(0);
    }
    let number = |index: usize| trials(&project)[index]["id"].to_string();
    let (first, second, third) = (number(0), number(1), number(2));
    project.luthier(["queue", "move", &third, "top"]).run().expect(0);
    project.luthier(["queue", "pause", &second]).run().expect(0);
    let state = |id: &str| {
        trials(&project).iter().find(|trial| trial["id"] == id.parse::<i64>().unwrap()).unwrap()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!((state(&second), state(&third)), ("held".to_owned(), "queued".to_owned()));
    project.luthier(["queue", "cancel", &first]).run().expect(0);
    let wait = |id: &str, wanted: &str| {
        wait_for(&format!("trial {id} to be {wanted}"), || {
            let found = state(id);
            if found == wanted { Ok(()) } else { Err(found) }
        });
    };
    wait(&first, "cancelled");
    wait(&third, "finished");
    assert_eq!(state(&second), "held");
    project.luthier(["queue", "resume", &second]).run().expect(0);
    wait(&second, "finished");
    project.luthier(["queue", "retry", &second]).run().expect(1).complains(&["finished"]);
    project.luthier(["queue", "cancel", "99"]).run().expect(2).complains(&["no trial 99"]);
}

#[test]
fn mistakes_of_a_sweep_file_are_shown_with_carets() {
    let project = Project::tiny();
    project.write("bad.toml", "sampler = \"grid\"\n[space]\n\"train.learning_rat\" = { choice = [1] }\n\"method.rank\" = { choice = [\"many\"] }\n");
    let told = project.luthier(["sweep", "start", "bad.toml"]).run().expect(2);
    let told = told.complains(&["bad.toml:3", "bad.toml:4", "learning_rate", "^"]);
    assert!(!project.path().join("runs").exists(), "{told}");
    project.luthier(["sweep", "start", "none.toml"]).run().expect(2).complains(&["none.toml"]);
}

#[test]
fn an_evaluation_compares_base_and_tuned() {
    let project = trained();
    let settings = "baseline_system = \"Say the colour.\"\n";
    let config = project.run().join("config.toml");
    let text = fs::read_to_string(&config).unwrap().replace("baseline_system = \"\"\n", settings);
    fs::write(&config, text).unwrap();
    let scores = project.luthier(["eval", "latest", "--json"]).run().expect(0).json();
    let loss = |side: &str| scores[side]["loss"].as_f64().unwrap();
    assert!(loss("tuned") < loss("base") - 0.2, "{scores}");
    for side in ["base", "tuned", "baseline"] {
        assert!(scores[side]["scores"].is_object(), "{scores}");
    }
    let words = project.luthier(["eval", "latest"]).run().expect(0);
    assert!(words.stdout.contains("tuned") && words.stdout.contains("held-out loss"), "{words}");
    assert!(words.stdout.contains("6 held-out rows"), "{words}");
}

#[test]
fn a_chat_answers_each_line_and_compares_base_and_tuned() {
    let project = trained();
    let alone =
        project.luthier(["chat", "latest"]).input("item 3 is white\nitem 4 is black\n").run().expect(0);
    assert!(alone.stdout.lines().count() >= 2, "{alone}");
    let both = project.luthier(["chat", "latest", "--ab"]).input("item 3 is white").run().expect(0);
    let names: Vec<_> = both.stdout.lines().filter(|line| ["base:", "tuned:"].contains(line)).collect();
    assert_eq!(names, ["base:", "tuned:"], "{both}");
    assert!(both.stdout.contains('{'), "the tuned model begins an object: {both}");
    let again = project.luthier(["chat", "latest", "--ab"]).input("item 3 is white").run().expect(0);
    assert_eq!(again.stdout, both.stdout, "temperature 0 says the same again");
}

#[test]
fn a_chat_needs_a_run_with_a_result() {
    let project = Project::tiny();
    project.luthier(["chat", "latest"]).run().expect(2).complains(&["no runs yet"]);
    project.luthier(["eval", "latest"]).run().expect(2).complains(&["no runs yet"]);
}

#[test]
fn verdicts_are_counted_and_become_pairs() {
    let project = Project::tiny();
    let none = project.luthier(["review"]).run().expect(0);
    assert!(none.stdout.contains("no verdicts yet"), "{none}");
    let verdict = |choice: &str| {
        json!({
            "time": "2026-01-02T03:04:05.678Z", "run": "20260102-030405-lora-r8",
            "prompt": [{"role": "user", "content": "item 1 is red"}],
            "left": {"who": "tuned", "reply": "{\"colour\": \"red\"}"},
            "right": {"who": "base", "reply": "What a lovely\u{1b}[31m item!"},
            "choice": choice, "blind": true, "note": "", "scores": {},
        })
    };
    project.write_rows("verdicts.jsonl", &["left", "left", "right", "tie"].map(verdict));
    let tally = project.luthier(["review", "--json"]).run().expect(0).json();
    assert_eq!(tally["base"]["tuned"], 2, "{tally}");
    assert_eq!((&tally["base"]["base"], &tally["base"]["tie"]), (&json!(1), &json!(1)));
    let words = project.luthier(["review"]).run().expect(0);
    assert!(words.stdout.contains("67 %"), "{words}");

    project.luthier(["review", "export", "pairs.jsonl"]).run().expect(0);
    let pairs = fs::read_to_string(project.path().join("pairs.jsonl")).unwrap();
    let first: Value = serde_json::from_str(pairs.lines().next().unwrap()).unwrap();
    assert_eq!(first["chosen"], "{\"colour\": \"red\"}");
    project.luthier(["review", "export", "pairs.jsonl"]).run().expect(2).complains(&["already"]);
    assert_eq!(fs::read_to_string(project.path().join("pairs.jsonl")).unwrap(), pairs);
}
