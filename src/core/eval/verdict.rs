//! People's judgements of A/B comparisons.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::EvalError;
use super::error::io_error;
use crate::data::Message;
use crate::files;
use crate::runs::ends_torn;
use crate::runs::time::millis;

/// Name of the file in the project folder.
pub const VERDICT_FILE: &str = "verdicts.jsonl";

/// Most bytes read from the file: some hundred thousand judgements.
const VERDICTS_LIMIT: u64 = 1 << 30;

/// Who answers in a comparison.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, strum::Display, strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Contender {
    /// The base model alone.
    Base,
    /// The base model given a system prompt instead of training.
    Baseline,
    /// The base model with the weights trained by a run.
    Tuned,
}

/// One answer of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Who gave the answer.
    pub who: Contender,
    pub reply: String,
    /// Fingerprint of the weights used.
    #[serde(default)]
    pub weights: String,
    /// Seed used for sampling.
    #[serde(default)]
    pub seed: u64,
    /// The objective's scores by name, if there are any.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub scores: IndexMap<String, f64>,
}

/// A person's choice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, strum::Display, strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum VerdictChoice {
    /// The left answer is better.
    Left,
    /// The right answer is better.
    Right,
    /// Neither is better, and at least one is good enough.
    Tie,
    /// Neither is good enough.
    BothBad,
    /// Not judged.
    Skip,
}

/// A person's judgement of one comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    #[serde(with = "millis")]
    pub time: Timestamp,
    /// The tuned side's run.
    pub run: String,
    /// Step of the tuned side's checkpoint; missing for the run's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// The conversation up to the answer.
    pub prompt: Vec<Message>,
    pub left: Side,
    pub right: Side,
    pub choice: VerdictChoice,
    /// Whether the sides were hidden until the choice.
    #[serde(default)]
    pub blind: bool,
    /// A note by the judge.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// A better reply written by the judge, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<String>,
}

impl Verdict {
    /// Who won, if there is a winner.
    pub fn winner(&self) -> Option<Contender> {
        self.preferred().map(|(chosen, _)| chosen.who)
    }

    /// The better and the worse side, if one is better.
    pub fn preferred(&self) -> Option<(&Side, &Side)> {
        match self.choice {
            VerdictChoice::Left => Some((&self.left, &self.right)),
            VerdictChoice::Right => Some((&self.right, &self.left)),
            VerdictChoice::Tie | VerdictChoice::BothBad | VerdictChoice::Skip => None,
        }
    }

    /// Whether the sides are these two contenders.
    pub fn is_between(&self, one: Contender, other: Contender) -> bool {
        let found = [self.left.who, self.right.who];
        found == [one, other] || found == [other, one]
    }
}

/// A project's verdicts: one JSON object per line, append-only.
#[derive(Clone, Debug)]
pub struct VerdictStore {
    path: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdicts {
    /// Oldest first.
    pub verdicts: Vec<Verdict>,
    /// Number of lines that could not be parsed and were skipped.
    pub broken_lines: usize,
}

impl VerdictStore {
    /// The store of a project; its file need not exist yet.
    pub fn of(project: &Path) -> Self {
        Self { path: project.join(VERDICT_FILE) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a verdict and syncs the file. If a killed process left a torn last line, a line end is added
    /// first.
    pub fn append(&self, verdict: &Verdict) -> Result<(), EvalError> {
        let failed = io_error("write", &self.path);
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(&failed)?;
        let mut line = Vec::new();
        if ends_torn(&mut file).map_err(&failed)? {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, verdict).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(&failed)
    }

    /// Reads all verdicts. Lines that cannot be parsed are counted, not fatal.
    pub fn load(&self) -> Result<Verdicts, EvalError> {
        let text = match files::read(&self.path, VERDICTS_LIMIT) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Verdicts::default()),
            Err(error) => return Err(io_error("read", &self.path)(error)),
        };
        let mut found = Verdicts::default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match serde_json::from_slice(line) {
                Ok(verdict) => found.verdicts.push(verdict),
                Err(_) => found.broken_lines += 1,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::eval::testing::verdict;
    use crate::testing::{damage, damaged};

    #[test]
    fn appended_verdicts_are_read_in_order() {
        let project = tempfile::tempdir().unwrap();
        let store = VerdictStore::of(project.path());
        assert_eq!(store.load().unwrap(), Verdicts::default());
        let mut given =
            vec![verdict("a", "b", VerdictChoice::Left), verdict("a\nb", "\u{1b}", VerdictChoice::Skip)];
        given[1].edited = Some("c".to_owned());
        for verdict in &given {
            store.append(verdict).unwrap();
        }
        assert_eq!(store.load().unwrap(), Verdicts { verdicts: given, broken_lines: 0 });
    }

    #[test]
    fn a_torn_line_loses_only_itself() {
        let project = tempfile::tempdir().unwrap();
        let store = VerdictStore::of(project.path());
        store.append(&verdict("a", "b", VerdictChoice::Left)).unwrap();
        let whole = fs::read(store.path()).unwrap();
        for end in 1..whole.len() {
            fs::write(store.path(), &whole[..end]).unwrap();
            store.append(&verdict("c", "d", VerdictChoice::Right)).unwrap();
            let found = store.load().unwrap();
            let lost = usize::from(end + 1 < whole.len());
            assert_eq!((found.verdicts.len(), found.broken_lines), (2 - lost, lost), "cut after {end} bytes");
            assert_eq!(found.verdicts.last().unwrap().choice, VerdictChoice::Right);
        }
    }

    #[test]
    fn the_winner_is_the_contender_on_the_chosen_side() {
        let with = |choice| verdict("a", "b", choice).winner();
        assert_eq!(with(VerdictChoice::Left), Some(Contender::Tuned));
        assert_eq!(with(VerdictChoice::Right), Some(Contender::Base));
        for choice in [VerdictChoice::Tie, VerdictChoice::BothBad, VerdictChoice::Skip] {
            assert_eq!(with(choice), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_lines_are_counted_and_the_others_kept(damage in damage()) {
            let project = tempfile::tempdir().unwrap();
            let store = VerdictStore::of(project.path());
            store.append(&verdict("a", "b", VerdictChoice::Left)).unwrap();
            let whole = fs::read(store.path()).unwrap();
            let broken = damaged(&whole, &damage);
            fs::write(store.path(), [&whole, broken.as_slice(), b"\n", &whole].concat()).unwrap();
            let found = store.load().unwrap();
            let lines = broken.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
            prop_assert_eq!(found.verdicts.len() + found.broken_lines, lines + 2);
            prop_assert!(found.verdicts.len() >= 2);
        }
    }
}
