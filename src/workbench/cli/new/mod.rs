//! `luthier new`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use luthier_core::config::{FILE_NAME, template};
use luthier_core::hub::HubModel;

use crate::cli::failure::{Failure, Outcome};
use crate::cli::{output, sample};

/// Start a project: a commented luthier.toml, and a little data to replace with your own
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  luthier new tickets\n  luthier new tickets --model ~/models/tinyllama")]
pub struct Arguments {
    /// Folder of the project; made where it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The base model: a folder with config.json and safetensors files, a .gguf file, or hf:org/name[@revision]
    /// [default: the sample model that `make setup` has fetched]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
}

/// Where the model may be put when none is known.
const MODEL_TO_COME: &str = "models/base";

/// Settings of the starter data that differ from the defaults.
const SETTINGS: &[(&str, &str)] = &[
    ("data.eval", "0.2"),
    (
        "data.system",
        "Turn the note into a shopping list: JSON with items, each with name and amount or null.",
    ),
    ("data.max_length", "256"),
    ("train.epochs", "8"),
    ("train.batch_size", "2"),
    ("train.accumulate", "1"),
    ("train.eval_every", "6"),
    ("train.sample_every", "0"),
    ("train.checkpoint_every", "12"),
    ("objective.kind", "json"),
    ("objective.schema", "answer.schema.json"),
    ("review.suite", "prompts.jsonl"),
    ("review.temperature", "0.0"),
];

/// The starter data: file and content.
const DATA: [(&str, &str); 3] = [
    ("train.jsonl", include_str!("starter/train.jsonl")),
    ("prompts.jsonl", include_str!("starter/prompts.jsonl")),
    ("answer.schema.json", include_str!("starter/answer.schema.json")),
];

pub fn run(arguments: &Arguments) -> Outcome {
    let folder = &arguments.folder;
    let model = match &arguments.model {
        Some(given) if is_of_the_hub(given) => Some(given.clone()),
        Some(given) => Some(absolute(given)?),
        None => sample::cached_model(),
    };
    let written = settings(model.as_deref())?;
    fs::create_dir_all(folder).map_err(|error| not_made(folder, &error))?;
    let files: Vec<(&str, &str)> = std::iter::once((FILE_NAME, written.as_str())).chain(DATA).collect();
    if let Some((name, _)) = files.iter().find(|(name, _)| folder.join(name).symlink_metadata().is_ok()) {
        return Err(Failure::usage(format!(
            "`{}` already has a {name}; nothing was written. Name another folder, or move it away",
            folder.display()
        )));
    }
    write_all(folder, &files)?;
    output::line(&described(folder, &files, model.as_deref()))
}

fn is_of_the_hub(path: &Path) -> bool {
    path.to_str().is_some_and(HubModel::is_meant_by)
}

fn absolute(path: &Path) -> Outcome<PathBuf> {
    path.canonicalize()
        .map_err(|error| Failure::usage(format!("the model `{}` cannot be found: {error}", path.display())))
}

fn settings(model: Option<&Path>) -> Outcome<String> {
    let model = match model {
        Some(model) => model
            .to_str()
            .ok_or_else(|| Failure::usage(format!("`{}` is not UTF-8; rename it", model.display())))?,
        None => MODEL_TO_COME,
    };
    template(model, "train.jsonl", SETTINGS).map_err(|problems| Failure::work(problems.to_string()))
}

/// Writes all files or none; never over one that is there.
fn write_all(folder: &Path, files: &[(&str, &str)]) -> Outcome {
    let mut made = Vec::new();
    for (name, content) in files {
        let path = folder.join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            made.push(path.clone());
            file.write_all(content.as_bytes())?;
            file.sync_all()
        });
        if let Err(error) = written {
            for path in &made {
                // The next attempt reports a file that cannot be removed.
                let _ = fs::remove_file(path);
            }
            return Err(not_made(&path, &error));
        }
    }
    Ok(())
}

fn not_made(path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name a folder that you may write to"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "; a file is in the way",
        _ => "",
    };
    Failure::work(format!("`{}` cannot be created: {error}{remedy}", path.display()))
}

fn described(folder: &Path, files: &[(&str, &str)], model: Option<&Path>) -> String {
    let shown = folder.display();
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let model = match model {
        Some(model) => format!("base model: {}", model.display()),
        None => format!("next: set model.path in {shown}/{FILE_NAME} to a base model"),
    };
    format!(
        "{shown}: {}\n{model}\nnext: put your own rows into train.jsonl, then\n  \
         luthier data check -C {shown}\n  luthier {shown}",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use luthier_core::config::{Config, KEYS, reference};
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::testing::{assert_generated, repository_file};

    #[test]
    fn the_starter_is_a_valid_project() {
        let text = settings(Some(Path::new("/models/a b"))).unwrap();
        let config = Config::parse(&text, Path::new(FILE_NAME), &[]).unwrap();
        assert_eq!(config.model.path, "/models/a b");
        for (_, content) in DATA {
            for line in content.lines().filter(|_| !content.starts_with("{\n")) {
                serde_json::from_str::<serde_json::Value>(line).unwrap();
            }
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "mine").unwrap();
        let failure = write_all(folder.path(), &[("a", "1"), ("b", "2")]).unwrap_err();
        assert!(format!("{failure:?}").contains("cannot be created"));
        assert!(!folder.path().join("a").exists());
        assert_eq!(fs::read_to_string(folder.path().join("b")).unwrap(), "mine");
    }

    /// The sample project's settings may be tuned, but the file keeps the form of a new project's.
    #[test]
    fn the_sample_project_is_written_as_a_new_one() {
        let path = repository_file("sample-data/tickets/luthier.toml");
        let config = Config::parse(&fs::read_to_string(&path).unwrap(), &path, &[]).unwrap();
        let defaults = Config::default();
        let differing: Vec<(&str, String)> = KEYS
            .iter()
            .filter(|key| !key.required && config.get(key.path) != defaults.get(key.path))
            .filter_map(|key| Some((key.path, config.get_text(key.path)?)))
            .collect();
        let differing: Vec<(&str, &str)> =
            differing.iter().map(|(key, value)| (*key, value.as_str())).collect();
        assert_generated(&path, &template(&config.model.path, "train.jsonl", &differing).unwrap());
    }

    #[test]
    fn the_reference_of_settings_is_current() {
        assert_generated(&repository_file("docs/settings.md"), &reference());
    }
}
