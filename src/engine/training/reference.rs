//! DPO's reference: what the base model makes of the answers of preference pairs. The base is the same weights with the
//! adapter off, so there is no second model; and since it never changes, a run computes each pair once and keeps the result
//! beside its journal.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use luthier_core::data::{EncodedRow, Prepared};
use luthier_core::runs::{RunError, replace_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::batch::Beginnings;
use super::dpo::{LogProbs, PairBatch, Pairs};
use crate::base::Base;
use crate::error::{EngineError, Result};
use crate::models::{Active, Model, Pass};
use crate::ops;

/// The file in a run's directory: a line of JSON that says what the rest was computed from, then for each pair its row and
/// the log-probabilities of the chosen and the rejected answer, between tabs, in as many digits as they have.
const FILE: &str = "reference.tsv";

/// What log-probabilities depend on. Those of another key are worth nothing.
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
    /// Token ids and loss masks of all pairs: whatever else decides on them is in here.
    pub tokens: String,
}

impl Key {
    /// Of a run with these rows.
    pub fn new(base: &Base, config: &Config, prepared: &Prepared) -> Self {
        Self {
            model_fingerprint: base.files.fingerprint.clone(),
            dtype: base.dtype_name().into(),
            method: config.method.kind.name().into(),
            data_hash: prepared.data_hash.clone(),
            template_fingerprint: base.template.fingerprint.clone(),
            tokens: digest(prepared.train.iter().chain(&prepared.eval)),
        }
    }
}

/// SHA-256 over rows, ids and masks.
fn digest<'a>(rows: impl Iterator<Item = &'a EncodedRow>) -> String {
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
    format!("{:x}", hasher.finalize())
}

/// Log-probabilities of pairs under the base model, by row: chosen answer, rejected answer.
#[derive(Debug)]
pub struct Reference {
    path: PathBuf,
    key: Key,
    known: BTreeMap<usize, [f64; 2]>,
    /// What the device was asked to compute, and nobody has read yet.
    asked: Vec<Asked>,
    /// Whether the file lacks some of them.
    unsaved: bool,
}

/// Pairs whose log-probabilities may still be in the making.
#[derive(Debug)]
struct Asked {
    /// Their rows.
    rows: Vec<usize>,
    found: LogProbs,
}

impl Reference {
    /// What the run in that directory has computed before, as far as it was computed from the same.
    pub fn open(run: &Path, key: Key) -> Self {
        let path = run.join(FILE);
        let known = fs::read_to_string(&path).ok().and_then(|text| parse(&text, &key)).unwrap_or_default();
        Self { path, key, known, asked: Vec::new(), unsaved: false }
    }

    /// Number of pairs that are known, or will be.
    pub fn count(&self) -> usize {
        self.known.len() + self.asked.iter().map(|asked| asked.rows.len()).sum::<usize>()
    }

    /// Computes those of `rows` that are not known, in one forward pass without gradient, and waits for them.
    pub fn fill(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<()> {
        self.ask(model, rows, beginnings)?;
        self.settle()
    }

    /// Pairs with their reference, computing what is missing of it. Where none of them was asked for before, or all are
    /// known, nothing waits for the device.
    pub fn batch(
        &mut self,
        model: &Model,
        rows: &[&EncodedRow],
        beginnings: Beginnings,
    ) -> Result<PairBatch> {
        if self.asked.iter().any(|asked| rows.iter().any(|row| asked.rows.contains(&row.row))) {
            self.settle()?;
        }
        let places: Vec<i64> = (0..)
            .zip(rows)
            .filter(|(_, row)| !self.known.contains_key(&row.row))
            .map(|(place, _)| place)
            .collect();
        self.ask(model, rows, beginnings)?;
        let asked = self.asked.last().filter(|_| !places.is_empty()).map(|asked| &asked.found);
        let side = |side: usize, found: Option<&Tensor>| {
            let known = rows.iter().map(|row| self.known.get(&row.row).map_or(0.0, |sides| sides[side]));
            let known = ops::doubles(&known.collect::<Vec<_>>(), model.device())?;
            match found {
                Some(found) => ops::with_rows(&known, &ops::integers(&places, model.device())?, found),
                None => Ok(known),
            }
        };
        let chosen = side(0, asked.map(|found| &found.chosen))?;
        let rejected = side(1, asked.map(|found| &found.rejected))?;
        let pairs = Pairs::new(rows, beginnings, model.device())?;
        Ok(PairBatch { pairs, reference: LogProbs { chosen, rejected } })
    }

    /// Asks for those of `rows` that are not known.
    fn ask(&mut self, model: &Model, rows: &[&EncodedRow], beginnings: Beginnings) -> Result<()> {
        let missing: Vec<&EncodedRow> =
            rows.iter().copied().filter(|row| !self.known.contains_key(&row.row)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let pairs = Pairs::new(&missing, beginnings, model.device())?;
        let found = log_probs(model, Active::Base, &pairs)?;
        self.asked.push(Asked { rows: missing.iter().map(|row| row.row).collect(), found });
        Ok(())
    }

    /// Waits for what was asked for.
    fn settle(&mut self) -> Result<()> {
        for Asked { rows, found } in std::mem::take(&mut self.asked) {
            let sides = ops::to_doubles(&found.chosen)?.into_iter().zip(ops::to_doubles(&found.rejected)?);
            self.known.extend(rows.into_iter().zip(sides.map(|(chosen, rejected)| [chosen, rejected])));
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
        for (row, [chosen, rejected]) in &self.known {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{row}\t{chosen}\t{rejected}");
        }
        replace_file(&self.path, text.as_bytes()).map_err(|error| match error {
            RunError::Io { doing, path, source } => EngineError::File { action: doing, path, source },
            other => EngineError::Data(other.to_string()),
        })?;
        self.unsaved = false;
        Ok(())
    }
}

/// What a model makes of pairs, without the noise of training.
pub fn log_probs(model: &Model, adapters: Active, pairs: &Pairs) -> Result<LogProbs> {
    let batch = pairs.batch();
    let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
    pairs.log_probs(model, adapters, &model.hidden(&batch.ids, &pass, None)?)
}

/// The content of a file that was computed from `key`; none where it was computed from something else or is damaged.
fn parse(text: &str, key: &Key) -> Option<BTreeMap<usize, [f64; 2]>> {
    let (head, lines) = text.strip_suffix('\n')?.split_once('\n')?;
    if serde_json::from_str::<Key>(head).ok()? != *key {
        return None;
    }
    let line = |line: &str| {
        let mut cells = line.split('\t');
        let row = cells.next()?.parse().ok()?;
        let sides = [cells.next()?.parse().ok()?, cells.next()?.parse().ok()?];
        cells.next().is_none().then_some((row, sides))
    };
    lines.lines().map(line).collect()
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

    #[test]
    fn what_was_computed_is_read_back_to_the_last_bit() {
        let run = tempfile::tempdir().unwrap();
        let model = tiny_llama();
        let rows: Vec<_> = (0..6).map(|row| pair(row, 20 + row as u32)).collect();
        let mut reference = Reference::open(run.path(), key(&rows));
        reference.save().unwrap();
        assert!(!run.path().join(FILE).exists(), "nothing was known yet");
        reference.fill(&model, &all(&rows[..2]), ONCE).unwrap();
        reference.fill(&model, &all(&rows[1..4]), ONCE).unwrap();
        reference.known.insert(9, [f64::NAN, f64::NEG_INFINITY]);
        reference.save().unwrap();
        let mut again = Reference::open(run.path(), key(&rows));
        let bits = |reference: &Reference| -> Vec<(usize, [u64; 2])> {
            reference.known.iter().map(|(&row, sides)| (row, sides.map(f64::to_bits))).collect()
        };
        assert_eq!(bits(&again), bits(&reference));
        assert_eq!(again.count(), 5);
        again.known.insert(0, [-1.0, -2.0]);
        let batch = again.batch(&model, &all(&rows[..5]), ONCE).unwrap();
        let first = ops::to_doubles(&batch.reference.chosen).unwrap()[0];
        assert!((first + 1.0).abs() < 1e-12, "what is known is not computed again: {first}");
        let rejected = ops::to_doubles(&batch.reference.rejected).unwrap();
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
        reference.fill(&model, &all(&rows), ONCE).unwrap();
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
