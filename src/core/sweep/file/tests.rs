use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::*;
use crate::runs::testing::config;
use crate::testing::{damage, damaged};

fn parse(text: &str) -> Result<SweepFile, Problems> {
    SweepFile::parse(text, Path::new("sweeps/rates.toml"), &config(&[]))
}

fn problems(text: &str) -> Vec<(usize, String)> {
    let found = parse(text).unwrap_err();
    found.0.into_iter().map(|problem| (problem.line, problem.message)).collect()
}

#[test]
fn keys_may_use_every_notation_of_toml() {
    let sweep = parse(
        r#"
        sampler = "grid"
        seed = 17
        goal = { metric = "eval.passed" }
        [space]
        "train.learning_rate" = { choice = [1e-4, 2e-4] }
        method.rank = { choice = [8, 16] }
        train.schedule = "linear"
        [space.train.early_stop]
        patience = { int = [0, 2] }
        "#,
    )
    .unwrap();
    assert_eq!(
        (sweep.name.as_str(), sweep.sampler, sweep.seed, sweep.trials),
        ("rates", Sampler::Grid, 17, None)
    );
    assert_eq!(sweep.goal, Goal { metric: "eval.passed".parse().unwrap(), direction: Direction::Max });
    let space: Vec<_> = sweep.space.into_iter().collect();
    let expected = [
        ("train.learning_rate", Distribution::Choice(vec!["1e-4".to_owned(), "2e-4".to_owned()])),
        ("train.schedule", Distribution::Fixed("\"linear\"".to_owned())),
        ("train.early_stop.patience", Distribution::Int(0, 2)),
        ("method.rank", Distribution::Choice(vec!["8".to_owned(), "16".to_owned()])),
    ];
    for (key, distribution) in expected {
        assert!(space.contains(&(key.to_owned(), distribution.clone())), "{key}: {space:?}");
    }
    assert_eq!(space.len(), 4);
}

#[test]
fn bounds_are_read_as_numbers() {
    let sweep = parse(
        r#"
        name = "wide"
        trials = 5
        [space]
        "train.learning_rate" = { log_uniform = [1e-5, 1e-3] }
        "train.weight_decay" = { uniform = [0, 1] }
        "train.accumulate" = { int = [1, 4] }
        "#,
    )
    .unwrap();
    assert_eq!(sweep.sampler, Sampler::Random);
    assert_eq!(sweep.space["train.learning_rate"], Distribution::LogUniform(1e-5, 1e-3));
    assert_eq!(sweep.space["train.weight_decay"], Distribution::Uniform(0.0, 1.0));
    assert_eq!(sweep.space["train.accumulate"], Distribution::Int(1, 4));
}

#[test]
fn all_mistakes_are_reported_with_their_places() {
    let found = problems(
        r#"smapler = "grid"
sampler = "tpe"
pruner = "asha"
trials = 0
seed = -1
name = ""
goal = { metric = "loss", direction = "down", by = 1 }
[space]
"train.learning_rat" = { choice = [1e-4] }
"train.learning_rate" = { choice = [1e-4, "fast", -1] }
"method.rank" = { int = [0, 8] }
"train.weight_decay" = { log_uniform = [0.0, 1.0] }
"train.epochs" = { uniform = [3, 1] }
"train.accumulate" = { range = [1, 2] }
"method.kind" = { choice = ["lora", "dora"] }
"ui.theme" = "dark"
"train.seed" = { choice = [] }
"method.alpha" = { uniform = [1] }
"#,
    );
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 7, 7, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17, 18], "{found:#?}");
    assert!(found[1].1.contains("not available in this version"), "{:?}", found[1]);
}

#[test]
fn a_problem_points_with_a_caret_and_names_the_nearest() {
    let text = "trials = 3\n[space]\n\"train.learning_rat\" = { choice = [1e-4] }\n";
    let shown = parse(text).unwrap_err().to_string();
    assert!(shown.contains("sweeps/rates.toml:3:1") && shown.contains('^'), "{shown}");
    assert!(shown.contains("did you mean `train.learning_rate`?"), "{shown}");
    let broken = parse("trials = \n").unwrap_err().to_string();
    assert!(broken.contains("sweeps/rates.toml:1"), "{broken}");
}

#[test]
fn problems_of_several_keys_are_reported() {
    let space = "[space]\n\"train.learning_rate\" = { uniform = [0.1, 0.2] }\n";
    for (text, word) in [
        (String::new(), "no [space]"),
        (space.to_owned(), "needs `trials`"),
        (format!("sampler = \"grid\"\n{space}"), "cannot try all values of train.learning_rate"),
        (
            "sampler = \"grid\"\n[space]\n\"train.seed\" = { int = [1, 20000] }\n".to_owned(),
            "more than 10000 points",
        ),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].1.contains(word), "{word}: {found:?}");
    }
}

#[test]
fn a_missing_or_binary_file_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    assert!(SweepFile::load(&path, &config(&[])).unwrap_err().to_string().contains("a.toml"));
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(SweepFile::load(&path, &config(&[])).unwrap_err().to_string().contains("a.toml"));
}

proptest! {
    #[test]
    fn a_damaged_file_is_refused_or_read(damage in damage()) {
        let text = br#"name = "a"
sampler = "grid"
trials = 6
seed = 17
goal = { metric = "eval.loss", direction = "min" }
[space]
"train.learning_rate" = { choice = [1e-4, 2e-4] }
method.rank = { int = [8, 16] }
train.weight_decay = { log_uniform = [1e-4, 2e-3] }
"#;
        let text = damaged(text, &damage);
        if let Err(problems) = parse(&String::from_utf8_lossy(&text)) {
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}
