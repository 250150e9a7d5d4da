//! Log-probabilities of answers under the base model. The base is the same weights with the adapter off, so there is no second
//! model. It never changes, so a run computes each row once and keeps the result in its directory.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use luthier_core::config::{Config, MethodKind};
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::hash::hex;
use luthier_core::runs::{RunError, replace_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::answers::{Answers, by_side, split_sides};
use super::{Progress, parts};
use crate::base::Base;
use crate::error::{EngineError, Result};
use crate::layers::Active;
use crate::models::Model;
use crate::ops;
use crate::step::batch::Beginnings;

/// The file in a run's directory: a line of JSON that says what the rest was computed from, then for each row its index
/// and the log-probabilities of the answers of its sides, between tabs, in as many digits as they have.
const FILE: &str = "reference.tsv";

/// What log-probabilities depend on. Those of another key are not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The base weights.
    pub model_fingerprint: String,
    /// The type computed in.
    pub dtype: String,
    /// The method, which may hold base weights in fewer bits.
    pub method: String,
    /// The prepared rows.
    pub data_hash: String,
    /// The chat template.
    pub template_fingerprint: String,
    /// Hash of the token ids and loss masks of all rows, which covers every setting that they depend on.
    pub tokens: String,
}

impl Key {
    /// Of a run with these rows.
    pub fn new<'a>(
        base: &Base,
        config: &Config,
        prepared: &Prepared,
        rows: impl IntoIterator<Item = &'a EncodedRow>,
    ) -> Self {
        Self {
            model_fingerprint: base.files.fingerprint.clone(),
            dtype: base.dtype_name().into(),
            method: config.method.kind.name().into(),
            data_hash: prepared.checked.data_hash.clone(),
            template_fingerprint: base.template.fingerprint.clone(),
            tokens: digest(rows),
        }
    }
}

/// SHA-256 over rows, ids and masks.
fn digest<'a>(rows: impl IntoIterator<Item = &'a EncodedRow>) -> String {
    let mut hasher = Sha256::new();
    let mut add = |ids: &[u32], trained: &[bool]| {
        hasher.update((ids.len() as u64).to_le_bytes());
        for (id, &trained) in ids.iter().zip(trained) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(trained)]);
        }
    };
    for row in rows {
        add(&[row.row as u32], &[row.sides.len() > 1]);
        for side in &row.sides {
            add(&side.ids, &side.trained);
        }
    }
    hex(hasher.finalize())
}

/// Log-probabilities of answers under the base model, by row and side.
#[derive(Debug)]
pub struct Reference {
    path: PathBuf,
    key: Key,
    known: BTreeMap<usize, Vec<f64>>,
    /// Requested from the device, not read yet.
    asked: Vec<Asked>,
    /// Whether the file lacks some of them.
    unsaved: bool,
}

/// Rows whose log-probabilities may still be in the making.
#[derive(Debug)]
struct Asked {
    /// Their indices.
    rows: Vec<usize>,
    /// Of each side, `[R]` f64.
    found: Vec<Tensor>,
}

impl Reference {
    /// What the run in that directory has computed before, as far as it was computed from the same.
    pub fn open(run: &Path, key: Key) -> Self {
        let path = run.join(FILE);
        let known = fs::read_to_string(&path).ok().and_then(|text| parse(&text, &key)).unwrap_or_default();
        Self { path, key, known, asked: Vec::new(), unsaved: false }
    }

    /// Number of rows that are known, or will be.
    pub fn count(&self) -> usize {
        self.known.len() + self.asked.iter().map(|asked| asked.rows.len()).sum::<usize>()
    }

    /// Computes and keeps all of `rows` where `method` trains base weights themselves. `progress` may cancel.
    pub fn begin<'a>(
        &mut self,
        model: &Model,
        method: MethodKind,
        rows: impl IntoIterator<Item = &'a EncodedRow>,
        progress: &mut Progress,
    ) -> Result<()> {
        if method != MethodKind::Full {
            return Ok(());
        }
        for part in parts(rows) {
            self.ask(model, &part, Beginnings::of(model))?;
            self.settle()?;
            if progress(self.count()).is_break() {
                break;
            }
        }
        self.save()
    }

    /// The log-probabilities of R rows, `[R]` f64 for each side, computing what is missing in one forward pass without
    /// gradient. It waits for the device only if one of the rows was requested before and is not read yet.
    pub fn of(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<Vec<Tensor>> {
        if self.asked.iter().any(|asked| rows.iter().any(|row| asked.rows.contains(&row.row))) {
            self.settle()?;
        }
        let places: Vec<i64> =
            (0..).zip(rows).filter(|(_, row)| !self.knows(row)).map(|(place, _)| place).collect();
        self.ask(model, rows, beginnings)?;
        let asked = self.asked.last().filter(|_| !places.is_empty());
        let sides = rows.first().map_or(0, |row| row.sides.len());
        let side = |side: usize| {
            let known = rows.iter().map(|row| {
                let known = self.known.get(&row.row).and_then(|sides| sides.get(side));
                known.copied().unwrap_or_default()
            });
            let known = ops::doubles(&known.collect::<Vec<_>>(), model.device())?;
            match asked.and_then(|asked| asked.found.get(side)) {
                Some(found) => ops::with_rows(&known, &ops::integers(&places, model.device())?, found),
                None => Ok(known),
            }
        };
        (0..sides).map(side).collect()
    }

    fn knows(&self, row: &EncodedRow) -> bool {
        self.known.get(&row.row).is_some_and(|sides| sides.len() == row.sides.len())
    }

    /// Requests those of `rows` that are not known.
    fn ask(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<()> {
        let missing: Vec<&EncodedRow> = rows.iter().copied().filter(|row| !self.knows(row)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let (sides, sequences) = by_side(&missing)?;
        let answers = Answers::new(&sequences, beginnings, model.device())?;
        let found = split_sides(&answers.ask(model, Active::Base)?, sides)?;
        self.asked.push(Asked { rows: missing.iter().map(|row| row.row).collect(), found });
        Ok(())
    }

    /// Waits for the results that were requested.
    fn settle(&mut self) -> Result<()> {
        for Asked { rows, found } in std::mem::take(&mut self.asked) {
            let sides = found.iter().map(ops::to_doubles).collect::<Result<Vec<_>>>()?;
            for (place, row) in rows.into_iter().enumerate() {
                self.known.insert(row, sides.iter().map(|side| side[place]).collect());
            }
            self.unsaved = true;
        }
        Ok(())
    }

    /// Writes what is known to the run's directory, replacing the file as a whole.
    pub fn save(&mut self) -> Result<()> {
        self.settle()?;
        if !self.unsaved {
            return Ok(());
        }
        let mut text = serde_json::to_string(&self.key)
            .map_err(|error| EngineError::Data(format!("the reference cannot be written: {error}")))?;
        text.push('\n');
        for (row, sides) in &self.known {
            // Writing to a string cannot fail.
            let _ = write!(text, "{row}");
            for side in sides {
                let _ = write!(text, "\t{side}");
            }
            text.push('\n');
        }
        replace_file(&self.path, text.as_bytes()).map_err(|error| match error {
            RunError::Io { doing, path, source } => EngineError::File { action: doing, path, source },
            other => EngineError::Data(other.to_string()),
        })?;
        self.unsaved = false;
        Ok(())
    }
}

/// The content of a file that was computed from `key`; none where it was computed from something else or is damaged.
fn parse(text: &str, key: &Key) -> Option<BTreeMap<usize, Vec<f64>>> {
    let (head, lines) = text.strip_suffix('\n')?.split_once('\n')?;
    if serde_json::from_str::<Key>(head).ok()? != *key {
        return None;
    }
    let line = |line: &str| {
        let mut cells = line.split('\t');
        let row = cells.next()?.parse().ok()?;
        Some((row, cells.map(str::parse).collect::<std::result::Result<Vec<f64>, _>>().ok()?))
    };
    let known: BTreeMap<usize, Vec<f64>> = lines.lines().map(line).collect::<Option<_>>()?;
    let mut sides = known.values().map(Vec::len);
    let first = sides.next();
    sides.all(|other| Some(other) == first).then_some(known)
}

#[cfg(test)]
mod tests {
    use luthier_core::data::EncodedSide;

    use super::*;

    const ONCE: Beginnings = Beginnings::Once { worth: 16 };
    use crate::testing::tiny_llama;

    fn pair(row: usize, last: u32) -> EncodedRow {
        let side = |ids| EncodedSide { ids, trained: vec![false, false, true, true], label: None };
        EncodedRow { row, sides: vec![side(vec![5, 6, 7, last]), side(vec![5, 6, 9, 1])] }
    }

    fn key(rows: &[EncodedRow]) -> Key {
        Key { dtype: "f32".into(), tokens: digest(rows.iter()), ..Key::default() }
    }

    fn all(rows: &[EncodedRow]) -> Vec<&EncodedRow> {
        rows.iter().collect()
    }

    fn fill(reference: &mut Reference, model: &Model, rows: &[EncodedRow]) {
        reference.of(model, &all(rows), ONCE).unwrap();
        reference.settle().unwrap();
    }

    #[test]
    fn what_was_computed_is_read_back_to_the_last_bit() {
        let run = tempfile::tempdir().unwrap();
        let model = tiny_llama();
        let rows: Vec<_> = (0..6).map(|row| pair(row, 20 + row as u32)).collect();
        let mut reference = Reference::open(run.path(), key(&rows));
        reference.save().unwrap();
        assert!(!run.path().join(FILE).exists(), "nothing was known yet");
        fill(&mut reference, &model, &rows[..2]);
        fill(&mut reference, &model, &rows[1..4]);
        reference.known.insert(9, vec![f64::NAN, f64::NEG_INFINITY]);
        reference.save().unwrap();
        let mut again = Reference::open(run.path(), key(&rows));
        let bits = |reference: &Reference| -> Vec<(usize, Vec<u64>)> {
            let bits = |sides: &Vec<f64>| sides.iter().copied().map(f64::to_bits).collect();
            reference.known.iter().map(|(&row, sides)| (row, bits(sides))).collect()
        };
        assert_eq!(bits(&again), bits(&reference));
        assert_eq!(again.count(), 5);
        again.known.insert(0, vec![-1.0, -2.0]);
        let sides = again.of(&model, &all(&rows[..5]), ONCE).unwrap();
        let first = ops::to_doubles(&sides[0]).unwrap()[0];
        assert!((first + 1.0).abs() < 1e-12, "what is known is not computed again: {first}");
        let rejected = ops::to_doubles(&sides[1]).unwrap();
        // The fifth was not known: what was asked for stands in its place, and is kept.
        assert_eq!((rejected.len(), again.count()), (5, 6));
        again.save().unwrap();
        assert_eq!(again.known[&4][1].to_bits(), rejected[4].to_bits());
        assert!(rejected[1..].iter().all(|value| *value < 0.0), "{rejected:?}");
    }

    #[test]
    fn what_was_computed_from_something_else_is_computed_again() {
        let run = tempfile::tempdir().unwrap();
        let model = tiny_llama();
        let rows = [pair(0, 20)];
        let mut reference = Reference::open(run.path(), key(&rows));
        fill(&mut reference, &model, &rows);
        reference.save().unwrap();
        let text = fs::read_to_string(run.path().join(FILE)).unwrap();
        let count = |key: Key| Reference::open(run.path(), key).count();
        assert_eq!(count(key(&rows)), 1);
        for other in [
            key(&[pair(0, 21)]),
            key(&[pair(1, 20)]),
            Key { dtype: "bf16".into(), ..key(&rows) },
            Key { method: "full".into(), ..key(&rows) },
            Key { model_fingerprint: "b".into(), ..key(&rows) },
            Key { data_hash: "d".into(), ..key(&rows) },
            Key { template_fingerprint: "t".into(), ..key(&rows) },
        ] {
            assert_eq!(count(other.clone()), 0, "{other:?}");
        }
        for damaged in [
            "",
            "{}",
            "nonsense\n",
            &text[..text.len() - 4],
            &format!("{text}1\t2\n"),
            &format!("{text}x\t1\t2\n"),
        ] {
            fs::write(run.path().join(FILE), damaged).unwrap();
            assert_eq!(count(key(&rows)), 0, "{damaged:?}");
        }
    }

    #[test]
    fn masks_tell_datasets_apart() {
        let mut masked = pair(0, 20);
        masked.sides[0].trained[2] = false;
        assert_ne!(digest([pair(0, 20)].iter()), digest([masked].iter()));
        let mut moved = pair(0, 20);
        moved.sides[1].ids.push(3);
        moved.sides[1].trained.push(true);
        assert_ne!(digest([pair(0, 20)].iter()), digest([moved].iter()));
    }
}
