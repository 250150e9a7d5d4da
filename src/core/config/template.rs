//! The commented `luthier.toml` of a new project, and the reference of all keys.

use std::fmt::Write;

use toml::Value;

use super::keys::Key;
use super::kinds::Kind;
use super::load::FILE_NAME;
use super::problems::{Problems, Source};
use super::sections::{Config, KEYS, SECTIONS};
use super::toml_text::{assignment, literal};

/// Column of the comments.
const COMMENT_COLUMN: usize = 32;
/// Longer lines get their comment above.
const WIDEST: usize = 110;

/// A `luthier.toml` with every key at its default and a comment on each, but for the model, the training
/// file, and `settings`: dotted keys with values as `--set` takes them.
pub fn template(model_path: &str, train: &str, settings: &[(&str, &str)]) -> Result<String, Problems> {
    let text = |text: &str| literal(&Value::from(text));
    let required = [("model.path", text(model_path)), ("data.train", text(train))];
    let required = required.iter().map(|(key, value)| (*key, value.as_str()));
    let given = required.chain(settings.iter().copied());
    let config = Config::parse_with(
        "",
        FILE_NAME.as_ref(),
        given.map(|(key, value)| Source::new("template", format!("{key}={value}"))),
    )?;
    Ok(commented(&config))
}

/// Every key with its value and meaning.
fn commented(config: &Config) -> String {
    let mut text = String::from(
        "# What this project trains on and how. Only model.path and data.train are needed; what is left out\n\
         # takes its default. While the workbench is open, a saved change reaches live runs wherever it can.\n",
    );
    for (section, doc) in SECTIONS {
        let _ = write!(text, "\n{}\n", beside(&format!("[{section}]"), doc));
        for key in KEYS.iter().filter(|key| key.is_in(section)) {
            let line = assignment(&key.path[section.len() + 1..], &literal(&(key.write)(config)));
            let comment = comment(key);
            let both = beside(&line, &comment);
            if both.chars().count() <= WIDEST {
                let _ = writeln!(text, "{both}");
            } else {
                let _ = write!(text, "# {comment}\n{line}\n");
            }
        }
    }
    text
}

fn beside(line: &str, comment: &str) -> String {
    format!("{line:<width$} # {comment}", width = COMMENT_COLUMN - 1)
}

fn comment(key: &Key) -> String {
    match key.kind {
        Kind::Choice(choices) => {
            let names: Vec<_> = choices.iter().map(|choice| choice.name).collect();
            format!("{}: {}", key.doc, names.join(" | "))
        }
        _ => key.doc.to_owned(),
    }
}

/// Every key with what it accepts, its default, its meaning and when a change of it counts: a Markdown
/// page.
pub fn reference() -> String {
    let mut page = format!(
        "# Keys of `{FILE_NAME}`\n\n\
         Every key but `model.path` and `data.train` has a default. The last column says when a changed\n\
         value reaches a live run.\n"
    );
    for (section, doc) in SECTIONS {
        let _ = write!(page, "\n## `[{section}]`\n\n{}.\n\n", capitalised(doc));
        page.push_str("| key | default | accepts | meaning | a change counts |\n|---|---|---|---|---|\n");
        let keys: Vec<_> = KEYS.iter().filter(|key| key.is_in(section)).collect();
        for key in &keys {
            let default = if key.required { "required".to_owned() } else { format!("`{}`", key.default()) };
            let cells = [
                format!("`{}`", &key.path[section.len() + 1..]),
                default,
                key.kind.to_string(),
                key.doc.to_owned(),
                key.change.to_string(),
            ];
            let _ = writeln!(page, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
        for key in keys {
            if let Kind::Choice(choices) = key.kind {
                let _ = write!(page, "\n`{}`: {}\n\n", key.path, key.doc);
                for choice in choices {
                    let _ = writeln!(page, "- `{}`: {}", choice.name, choice.doc);
                }
            }
        }
    }
    page
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn a_template_reads_back_to_the_defaults() {
        let text = template("models/m.gguf", "train.jsonl", &[]).expect("valid");
        let mut expected = Config::default();
        expected.model.path = "models/m.gguf".to_owned();
        expected.data.train = vec!["train.jsonl".into()];
        assert_eq!(Config::parse(&text, Path::new("luthier.toml"), &[]), Ok(expected));
    }

    #[test]
    fn settings_stand_in_their_place() {
        let settings =
            [("objective.kind", "json"), ("objective.schema", "schema.json"), ("train.epochs", "2")];
        let text = template("a \"b\"", "t", &settings).expect("valid");
        let config = Config::parse(&text, Path::new("luthier.toml"), &[]).expect("valid");
        assert_eq!(config.model.path, "a \"b\"");
        assert_eq!(config.objective.schema.as_deref(), Some(Path::new("schema.json")));
        assert_eq!(config.get_text("train.epochs").as_deref(), Some("2.0"));
        let problems = template("m", "t", &[("train.epoch", "2")]).expect_err("unknown").to_string();
        assert!(problems.contains("did you mean `epochs`?"), "{problems}");
    }

    #[test]
    fn every_key_is_explained() {
        let text = template("m", "t", &[]).expect("valid");
        for key in KEYS {
            assert!(text.contains(key.doc), "{}", key.path);
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDEST), "{text}");
        assert!(
            text.contains("dtype = \"auto\"                  # number format: auto | f32 | bf16\n"),
            "{text}"
        );
        assert!(text.contains("early_stop = { patience = 0 } "), "{text}");
    }

    #[test]
    fn the_reference_names_every_key_and_choice() {
        let page = reference();
        for key in KEYS {
            assert!(page.contains(key.doc.replace('|', "\\|").as_str()), "{}", key.path);
            if let Kind::Choice(choices) = key.kind {
                assert!(choices.iter().all(|choice| page.contains(&format!("- `{}`: ", choice.name))));
            }
        }
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(page.lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == 6), "{page}");
    }
}
