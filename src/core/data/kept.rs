//! Results of the data check, kept by all that they depend on, so that the same data is checked once.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::read::{SourceFile, source_files};
use super::{Checked, DataError, Edits, ExampleSize, Quarantine, Report, Template};
use crate::config::{Config, KEYS};
use crate::files::{self, Access};
use crate::hash::hex;
use crate::model::{ModelFiles, TokenizerSource};

/// Largest result that is kept.
const MAX_BYTES: u64 = 256 << 20;
/// Most results that are kept. The oldest go first.
const MOST: usize = 64;
/// Bytes hashed between two questions whether to go on.
const CHUNK: usize = 1 << 20;

/// Settings outside of `data` that the check depends on, besides those of the algorithm.
const SETTINGS: [&str; 5] =
    ["objective.kind", "train.algorithm", "train.seed", "train.batch_size", "train.accumulate"];

/// A folder with the results of earlier checks. It may be deleted at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptChecks {
    folder: PathBuf,
}

/// The name of a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key(String);

/// A result as it is written.
#[derive(Serialize, Deserialize)]
struct Kept {
    report: Report,
    data_hash: String,
    train: SizeColumns,
    eval: SizeColumns,
}

/// [`ExampleSize`] by columns, which are a third as long.
#[derive(Serialize, Deserialize)]
struct SizeColumns {
    row: Vec<usize>,
    tokens: Vec<usize>,
    trained: Vec<usize>,
    longest: Vec<usize>,
}

impl KeptChecks {
    /// The results in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The result of that name, if there is one.
    pub(super) fn get(&self, key: &Key) -> Option<Checked> {
        let text = files::read(&self.path(key), MAX_BYTES).ok()?;
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        Some(Checked {
            report: kept.report,
            data_hash: kept.data_hash,
            train: kept.train.rows(),
            eval: kept.eval.rows(),
        })
    }

    /// Keeps a result. A folder that cannot be written costs the next check its time, and nothing else.
    pub(super) fn put(&self, key: &Key, checked: &Checked) {
        let kept = Kept {
            report: checked.report.clone(),
            data_hash: checked.data_hash.clone(),
            train: SizeColumns::of(&checked.train),
            eval: SizeColumns::of(&checked.eval),
        };
        let written = fs::create_dir_all(&self.folder)
            .and_then(|()| serde_json::to_vec(&kept).map_err(io::Error::from))
            .and_then(|text| match text.len() as u64 {
                ..=MAX_BYTES => files::replace(&self.path(key), &text, Access::Private),
                _ => Err(io::ErrorKind::FileTooLarge.into()),
            })
            .and_then(|()| self.remove_oldest());
        if let Err(error) = written {
            tracing::warn!("the result of the data check is not kept in {}: {error}", self.folder.display());
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.json", key.0))
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            found.insert((entry.metadata()?.modified()?, entry.path()));
        }
        let more = found.len().saturating_sub(MOST);
        found.into_iter().take(more).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

impl SizeColumns {
    fn of(sizes: &[ExampleSize]) -> Self {
        let column = |of: fn(&ExampleSize) -> usize| sizes.iter().map(of).collect();
        SizeColumns {
            row: column(|size| size.row),
            tokens: column(|size| size.tokens),
            trained: column(|size| size.trained),
            longest: column(|size| size.longest),
        }
    }

    fn rows(self) -> Vec<ExampleSize> {
        let rest = self.tokens.into_iter().zip(self.trained).zip(self.longest);
        let size = |(row, ((tokens, trained), longest))| ExampleSize { row, tokens, trained, longest };
        self.row.into_iter().zip(rest).map(size).collect()
    }
}

impl Key {
    /// The name of the result of checking a project: a hash of this program, of the settings that the check reads, and of
    /// the content of data, quarantine, edits, template and tokenizer. Weights do not count.
    pub(super) fn of(
        config: &Config,
        project: &Path,
        files: &ModelFiles,
        template: &Template,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, DataError> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(&program());
        let of_algorithm = config.train.algorithm.declaration().settings;
        for key in KEYS {
            let is_read =
                key.section() == "data" || SETTINGS.contains(&key.path) || of_algorithm.contains(&key.path);
            if is_read {
                part(key.path.as_bytes());
                part(config.get_text(key.path).unwrap_or_default().as_bytes());
            }
        }
        for hash in Quarantine::load(project)?.entries() {
            part(hash.as_bytes());
        }
        part(Edits::load(project)?.text().as_bytes());
        part(template.fingerprint.as_bytes());
        part(format!("{:?} {}", files.special, files.architecture.vocabulary).as_bytes());
        match &files.tokenizer {
            TokenizerSource::HuggingFace { tokenizer_json, config } => {
                part(&content(tokenizer_json, tokenizer_json, go_on)?);
                part(format!("{config:?}").as_bytes());
            }
            TokenizerSource::Gguf(vocabulary) => part(format!("{vocabulary:?}").as_bytes()),
        }
        for file in source_files(config, project)? {
            let SourceFile { path, shown, source, notice } = file;
            part(source.as_os_str().as_encoded_bytes());
            part(notice.unwrap_or_default().as_bytes());
            part(shown.as_os_str().as_encoded_bytes());
            part(&content(&path, &shown, go_on)?);
        }
        Ok(Self(hex(&hash.finalize()[..16])))
    }
}

/// What another build of this program differs in.
fn program() -> Vec<u8> {
    let mut version = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
    let built = std::env::current_exe().and_then(|path| path.metadata());
    if let Ok(built) = built {
        version.extend(built.len().to_le_bytes());
        let since = built.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        version.extend(since.unwrap_or_default().as_nanos().to_le_bytes());
    }
    version
}

/// The SHA-256 of a file.
fn content(
    path: &Path,
    shown: &Path,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<u8>, DataError> {
    let fail = |error| DataError::read(shown, error);
    let (mut file, _) = files::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk).map_err(fail)?;
        if read == 0 {
            return Ok(hash.finalize().to_vec());
        }
        hash.update(&chunk[..read]);
        if go_on().is_break() {
            return Err(DataError::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::data::testing::{config, json_lines, reference};
    use crate::data::{ProblemKind, check, check_dataset, read_dataset};

    fn go_on() -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn what_was_checked_once_is_not_checked_again() {
        let (project, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = KeptChecks::new(cache.path().join("checks"));
        let files = ModelFiles::open(&reference("tiny/llama")).unwrap();
        let data = project.path().join("a.jsonl");
        let row = |row: usize| serde_json::json!({"prompt": row.to_string(), "completion": "b"});
        let rows = json_lines(&(0..20).map(row).collect::<Vec<_>>()) + "\n";
        fs::write(&data, format!("{rows}{{\"prompt\": 7}}\n")).unwrap();
        let run = |settings: &[&str]| {
            let mut looked = 0;
            let mut progress = |done, _| {
                looked = looked.max(done);
                go_on()
            };
            let settings: Vec<&str> = settings.iter().copied().chain(["data.template=none"]).collect();
            let config = config("a.jsonl", &settings);
            (check(&config, project.path(), &files, Some(&kept), &mut progress).unwrap(), looked)
        };
        let (first, looked) = run(&[]);
        assert_eq!(looked, 20);
        assert!(first.report.problems.iter().any(|problem| problem.kind == ProblemKind::UnreadableRow));
        assert_eq!(run(&[]), (first.clone(), 0));
        // What the check does not read leaves the result, and what it does not.
        let (warm, looked) = run(&["train.learning_rate=1e-3", "train.warmup=900"]);
        assert_eq!((warm.train, looked), (first.train.clone(), 0));
        assert!(warm.report.problems.iter().any(|problem| problem.kind == ProblemKind::LongWarmup));
        assert_eq!(run(&["data.max_length=7"]).1, 20);
        let mut quarantine = Quarantine::load(project.path()).unwrap();
        quarantine.insert("00112233445566ff");
        quarantine.save().unwrap();
        assert_eq!(run(&[]).1, 20);
        fs::write(&data, &rows).unwrap();
        assert_eq!(run(&[]).1, 20);
        fs::remove_file(project.path().join("quarantine.json")).unwrap();
        // A result that is damaged is made again.
        for entry in fs::read_dir(cache.path().join("checks")).unwrap() {
            fs::write(entry.unwrap().path(), "{").unwrap();
        }
        fs::write(&data, format!("{rows}{{\"prompt\": 7}}\n")).unwrap();
        assert_eq!(run(&[]), (first, 20));
    }

    #[test]
    fn rows_whose_file_was_written_since_leave_no_result() {
        let (project, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = KeptChecks::new(cache.path().join("checks"));
        let files = ModelFiles::open(&reference("tiny/llama")).unwrap();
        let config = config("a.jsonl", &["data.template=none"]);
        let data = project.path().join("a.jsonl");
        fs::write(&data, "{\"text\": \"one\"}\n").unwrap();
        let dataset = read_dataset(&config, project.path()).unwrap();
        let check = || {
            check_dataset(&config, project.path(), &files, &dataset, Some(&kept), &mut |_, _| go_on())
                .unwrap()
        };
        let count = || fs::read_dir(cache.path().join("checks")).map_or(0, Iterator::count);
        fs::write(&data, "{\"text\": \"one\"}\n{\"text\": \"two\"}\n").unwrap();
        assert_eq!((check().report.rows, count()), (1, 0));
        // What another check keeps of the new rows is not the result for the old ones.
        crate::data::check(&config, project.path(), &files, Some(&kept), &mut |_, _| go_on()).unwrap();
        assert_eq!((check().report.rows, count()), (1, 1));
    }

    #[test]
    fn only_so_many_results_are_kept() {
        let cache = tempfile::tempdir().unwrap();
        let kept = KeptChecks::new(cache.path().to_owned());
        let report = Report { rows: 1, ..Report::default() };
        let checked = Checked { report, data_hash: String::new(), train: Vec::new(), eval: Vec::new() };
        for number in 0..MOST + 3 {
            kept.put(&Key(format!("{number:03}")), &checked);
        }
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), MOST);
        assert_eq!(kept.get(&Key(format!("{:03}", MOST + 2))), Some(checked));
        assert_eq!(kept.get(&Key("000".to_owned())), None);
    }

    #[test]
    fn every_setting_that_the_check_reads_is_part_of_the_name() {
        let of_algorithms: Vec<&str> = crate::algorithms::Algorithm::ALL
            .iter()
            .flat_map(|algorithm| algorithm.declaration().settings)
            .copied()
            .collect();
        // `order.rs` and `check_warmup` come after what is kept.
        let mut open =
            ["data", "algorithms"].map(|room| Path::new(env!("CARGO_MANIFEST_DIR")).join(room)).to_vec();
        let mut seen = 0;
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            if ["order.rs", "tests.rs", "case_tests.rs", "file_tests.rs"].contains(&name) {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for read in code.split("config.").skip(1) {
                let end = read.find(|character: char| {
                    !character.is_alphanumeric() && character != '_' && character != '.'
                });
                let Some((section, rest)) = read[..end.unwrap_or(read.len())].split_once('.') else {
                    continue;
                };
                let key = format!("{section}.{}", rest.split('.').next().unwrap());
                if !KEYS.iter().any(|known| known.path == key) || section == "data" {
                    continue;
                }
                seen += 1;
                assert!(
                    SETTINGS.contains(&key.as_str()) || of_algorithms.contains(&key.as_str()),
                    "{name} reads {key}"
                );
            }
        }
        assert!(seen > 5, "{seen}");
    }
}
