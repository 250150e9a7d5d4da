//! What holds for the configuration as a whole.

use std::path::Path;

use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::*;

const SMALL: &str = "[model]\npath = \"m\"\n[data]\ntrain = \"t.jsonl\"\n";

fn parse(text: &str, set: &[&str]) -> Result<Config, Problems> {
    let set: Vec<_> = set.iter().map(ToString::to_string).collect();
    Config::parse(text, Path::new("luthier.toml"), &set)
}

fn problems(text: &str, set: &[&str]) -> Vec<String> {
    match parse(text, set) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(Problem::one_line).collect(),
    }
}

/// The problems of one line in a section of an otherwise sound file.
fn problems_of(section: &str, line: &str) -> Vec<String> {
    let text = match section {
        "model" => format!("[model]\n{line}\n[data]\ntrain = \"t.jsonl\"\n"),
        "data" => format!("[data]\n{line}\n[model]\npath = \"m\"\n"),
        _ => format!("[{section}]\n{line}\n{SMALL}"),
    };
    problems(&text, &[])
}

#[test]
fn a_small_file_gets_every_default() {
    let config = parse(SMALL, &[]).expect("valid");
    let expected = Config {
        model: ModelSection { path: "m".to_owned(), ..Config::default().model },
        data: DataSection { train: vec!["t.jsonl".into()], ..Config::default().data },
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.train.learning_rate, 2e-4);
    assert_eq!(config.train.betas, [0.9, 0.999]);
}
