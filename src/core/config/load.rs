//! Reading a configuration from disk or text, and writing it out.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use toml::Value;

use super::keys::key;
use super::problems::{Problem, Problems, Source};
use super::resolve::resolve;
use super::sections::{Config, KEYS, SECTIONS};
use super::toml_text::{assignment, literal};
use crate::files;

/// The file that makes a folder a project.
pub const FILE_NAME: &str = "luthier.toml";
/// The name that problems with overrides are reported under.
const OVERRIDE: &str = "--set";
/// Larger files are no configuration.
const LARGEST: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{} cannot be read: {reason}", clean(file))]
    Read {
        /// The file.
        file: PathBuf,
        /// What happened, and what to do.
        reason: String,
    },
    /// The file could not be replaced; it is as it was.
    #[error("{} cannot be written: {reason}", clean(file))]
    Write {
        /// The file.
        file: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The file, or what was set over it, is wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

fn clean(file: &Path) -> String {
    crate::text::clean_line(&file.display().to_string()).into_owned()
}

impl Config {
    /// Reads `luthier.toml` of a project folder, with each of `set`, such as
    /// `train.learning_rate=1e-4`, over it.
    pub fn load(project: &Path, set: &[String]) -> Result<Self, ConfigError> {
        Self::load_file(&project.join(FILE_NAME), set)
    }

    /// As [`Config::load`], from a file of any name, such as a run's `config.toml`.
    pub fn load_file(file: &Path, set: &[String]) -> Result<Self, ConfigError> {
        Ok(Self::parse(&read(file)?, file, set)?)
    }

    /// As [`Config::load`], from text; `file` is the name in problems.
    ///
    /// Values of `set` are TOML; what is not, is a text. All problems come at once.
    pub fn parse(text: &str, file: &Path, set: &[String]) -> Result<Self, Problems> {
        Self::parse_with(text, file, set.iter().map(|set| Source::new(OVERRIDE, set)))
    }

    /// As [`Config::parse`], with overrides that are reported under names of their own.
    pub(super) fn parse_with(
        text: &str,
        file: &Path,
        overrides: impl IntoIterator<Item = Source>,
    ) -> Result<Self, Problems> {
        let mut sources = vec![Source::new(file, text)];
        sources.extend(overrides);
        resolve(sources)
    }

    /// This configuration with each of `set` over it.
    pub fn with(&self, set: &[String]) -> Result<Self, Problems> {
        Self::parse(&self.to_toml(), Path::new(FILE_NAME), set)
    }

    /// Every key written out, defaults too; reads back equal.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (section, _) in SECTIONS {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}[{section}]");
            for key in KEYS.iter().filter(|key| key.is_in(section)) {
                let _ = writeln!(
                    text,
                    "{}",
                    assignment(&key.path[section.len() + 1..], &literal(&(key.write)(self)))
                );
            }
        }
        text
    }

    /// The value of a dotted key; `None` when there is no such key.
    pub fn get(&self, path: &str) -> Option<Value> {
        key(path).map(|key| (key.write)(self))
    }

    /// The value of a dotted key as it is written in the file.
    pub fn get_text(&self, path: &str) -> Option<String> {
        self.get(path).map(|value| literal(&value))
    }
}

/// Reads a configuration file, which is small and UTF-8.
pub(super) fn read(file: &Path) -> Result<String, ConfigError> {
    let fail = |reason: String| ConfigError::Read { file: file.to_owned(), reason };
    let bytes = read_bytes(file).map_err(|error| fail(reason(file, &error)))?;
    if bytes.len() as u64 > LARGEST {
        return Err(fail("it is larger than 1 MiB, so it is no configuration".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let problem = Problem::new(&Source::new(file, text), valid..valid + 1, "is not UTF-8 text")
            .help("save the file with the encoding UTF-8");
        ConfigError::Problems(problem.into())
    })
}

/// The file's bytes, no more than one past what a configuration may have.
pub(super) fn read_bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files::open(file)?.0.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn reason(file: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if file.ends_with(FILE_NAME) => {
            "there is no such file; `luthier new DIR` starts a project, -C names another folder".to_owned()
        }
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
        _ => error.to_string(),
    }
}
