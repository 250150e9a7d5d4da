//! Changing one key of a file that somebody wrote, with everything else left as it is.

use std::path::Path;

use toml::Value;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike};

use super::load::{ConfigError, read};
use super::problems::{Problem, Problems, Source};
use super::sections::Config;
use super::toml_text::literal;
use crate::files;

/// The name that problems with the new value are reported under.
const EDIT: &str = "edit";
/// How often to try again when the file changes meanwhile.
const ATTEMPTS: usize = 5;

/// Sets one dotted key of a configuration file, as `--set` would: `value` is TOML, or a text without its
/// quotes.
///
/// Comments and layout stay. The file is replaced atomically, and only by one that is valid as a whole.
pub fn write_key(file: &Path, key: &str, value: &str) -> Result<(), ConfigError> {
    for _ in 0..ATTEMPTS {
        let text = read(file)?;
        let changed = set_key(&text, file, key, value)?;
        if changed == text {
            return Ok(());
        }
        let replaced = files::replace_if(file, text.as_bytes(), changed.as_bytes())
            .map_err(|error| ConfigError::Write { file: file.to_owned(), reason: error.to_string() })?;
        if replaced {
            return Ok(());
        }
    }
    let reason = "something else keeps changing it; try again".to_owned();
    Err(ConfigError::Write { file: file.to_owned(), reason })
}

/// The text with one key set.
fn set_key(text: &str, file: &Path, key: &str, value: &str) -> Result<String, Problems> {
    let edit = Source::new(EDIT, format!("{key}={value}"));
    let wanted = Config::parse_with(text, file, [edit.clone()])?;
    let written = wanted.get_text(key).unwrap_or_else(|| literal(&Value::from(value.trim())));
    // The form in which it was given is kept where it means the same: 1e-4 stays 1e-4.
    for form in [value.trim(), &written] {
        let changed =
            put(text, key, form).filter(|text| Config::parse(text, file, &[]).as_ref() == Ok(&wanted));
        if let Some(changed) = changed {
            return Ok(changed);
        }
    }
    let problem = Problem::new(&edit, 0..edit.text().len(), "cannot be placed in the file")
        .key(key)
        .help(format!("write {key} = {written} into {} yourself", file.display()));
    Err(problem.into())
}

fn put(text: &str, key: &str, form: &str) -> Option<String> {
    let value: toml_edit::Value = form.parse().ok()?;
    let mut document: DocumentMut = text.parse().ok()?;
    let segments: Vec<_> = key.split('.').map(str::trim).collect();
    put_below(document.as_table_mut(), &segments, value, true)?;
    Some(document.to_string())
}

fn put_below(
    table: &mut dyn TableLike,
    segments: &[&str],
    mut value: toml_edit::Value,
    is_top: bool,
) -> Option<()> {
    let (first, rest) = segments.split_first()?;
    if rest.is_empty() {
        if let Some(Item::Value(old)) = table.get(first) {
            *value.decor_mut() = old.decor().clone();
        }
        match table.get_mut(first) {
            Some(item) => *item = Item::Value(value),
            None => drop(table.insert(first, Item::Value(value))),
        }
        return Some(());
    }
    if table.get(first).is_none() {
        let empty = if is_top { Item::Table(Table::new()) } else { Item::Value(InlineTable::new().into()) };
        table.insert(first, empty);
    }
    put_below(table.get_mut(first)?.as_table_like_mut()?, rest, value, false)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use pretty_assertions::assert_eq;

    use super::*;

    const FILE: &str = "\
# my project
[model]
path = \"m\"   # the small one

[data]
train = \"t.jsonl\"

# how it learns
[train]
learning_rate = 2e-4   # found by sweep 3
early_stop = { patience = 0 } # off

[ui]
theme = \"luthier\"
";

    fn project(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("luthier.toml");
        fs::write(&file, text).expect("write");
        (folder, file)
    }

    fn after(text: &str, key: &str, value: &str) -> String {
        let (_folder, file) = project(text);
        write_key(&file, key, value).unwrap_or_else(|error| panic!("{error}"));
        fs::read_to_string(&file).expect("read")
    }

    #[test]
    fn only_the_value_changes() {
        assert_eq!(
            after(FILE, "train.learning_rate", "1.80e-4"),
            FILE.replace("learning_rate = 2e-4 ", "learning_rate = 1.80e-4 ")
        );
        assert_eq!(
            after(FILE, "train.early_stop.patience", "3"),
            FILE.replace("patience = 0", "patience = 3")
        );
        assert_eq!(after(FILE, "ui.theme", "paper"), FILE.replace("\"luthier\"", "\"paper\""));
        assert_eq!(after(FILE, "ui.theme", "\"paper\""), FILE.replace("\"luthier\"", "\"paper\""));
    }

    #[test]
    fn keys_that_were_not_there_join_their_section() {
        assert_eq!(after(FILE, "train.epochs", "5"), FILE.replace("} # off\n", "} # off\nepochs = 5\n"));
        assert_eq!(
            after(FILE, "review.suite", "prompts.jsonl"),
            format!("{FILE}\n[review]\nsuite = \"prompts.jsonl\"\n")
        );
        let bare = FILE.replace("early_stop = { patience = 0 } # off\n", "");
        assert_eq!(
            after(&bare, "train.early_stop.patience", "3"),
            bare.replace("sweep 3\n", "sweep 3\nearly_stop = { patience = 3 }\n")
        );
        assert_eq!(
            after(FILE, "data.columns.prompt", "question"),
            FILE.replace("\"t.jsonl\"\n", "\"t.jsonl\"\ncolumns = { prompt = \"question\" }\n")
        );
    }

    #[test]
    fn every_way_to_write_a_table_can_be_edited() {
        for text in [
            "[train.early_stop]\npatience = 1 # x\n",
            "[train]\nearly_stop.patience = 1 # x\n",
            "train = { early_stop = { patience = 1 } } # x\n",
        ] {
            let text = format!("{text}[model]\npath = \"m\"\n[data]\ntrain = \"t\"\n");
            assert_eq!(
                after(&text, "train.early_stop.patience", "2"),
                text.replace("patience = 1", "patience = 2")
            );
        }
    }

    #[test]
    fn every_key_can_be_written() {
        let other = include_str!("../../../tests/configs/valid/full.toml");
        let other = Config::parse(other, Path::new("full.toml"), &[]).expect("valid");
        for key in super::super::KEYS {
            let mut document: DocumentMut = other.to_toml().parse().expect("valid");
            let mut names = key.path.split('.');
            let section = document[names.next().expect("a section")].as_table_like_mut().expect("a table");
            assert!(section.remove(names.next().expect("a name")).is_some(), "{}", key.path);
            let (_folder, file) = project(&document.to_string());
            let value = other.get_text(key.path).expect("a key");
            write_key(&file, key.path, &value).unwrap_or_else(|error| panic!("{}: {error}", key.path));
            assert_eq!(Config::load_file(&file, &[]).as_ref().expect("valid"), &other, "{}", key.path);
        }
    }

    #[test]
    fn a_wrong_value_changes_nothing() {
        let (folder, file) = project(FILE);
        for (key, value, expected) in [
            ("train.learning_rate", "-1", "edit:1:21"),
            ("train.learning_rat", "1", "did you mean `learning_rate`?"),
            ("train.min_learning_rate", "0.5", "above `train.learning_rate`"),
            ("train", "1", "is a section"),
            ("train.optimizer", "adamw", "AdamW is the only optimizer"),
            ("", "", "unknown key"),
        ] {
            let error = write_key(&file, key, value).expect_err(key).to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).expect("read"), FILE);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let broken = FILE.replace("[ui]", "[ui");
        let (_folder, file) = project(&broken);
        let error = write_key(&file, "train.epochs", "5").expect_err("broken").to_string();
        assert!(error.contains("unclosed table"), "{error}");
        assert_eq!(fs::read_to_string(&file).expect("read"), broken);
    }

    #[test]
    fn links_and_permissions_stay() {
        let (folder, file) = project(FILE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        write_key(&link, "train.epochs", "5").expect("written");
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        assert_eq!(fs::metadata(&file).expect("file").permissions().mode() & 0o777, 0o640);
        assert!(fs::read_to_string(&file).expect("read").contains("epochs = 5"));
    }

    #[test]
    fn what_cannot_be_written_says_so() {
        let (folder, file) = project(FILE);
        fs::remove_file(&file).expect("remove");
        let error = write_key(&file, "train.epochs", "5").expect_err("missing");
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
        assert!(write_key(folder.path(), "train.epochs", "5").is_err());
    }
}
