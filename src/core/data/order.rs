//! Which rows a step uses: a pure function of seed, epoch and step.
//!
//! Nothing here depends on the machine, on earlier work or on the standard library's random numbers, and
//! nothing may change: runs are resumed, and old steps explained, by computing their rows again.
//!
//! The order of an epoch is a Fisher-Yates shuffle of all rows by SplitMix64, seeded by `train.seed` and the
//! epoch's number from 0. With `data.packing` it is then cut into windows of [`WINDOW`] rows. In each window,
//! rows are put into sequences of at most `data.max_length` tokens, longest first, each where it leaves the
//! least room (best-fit decreasing), and the window's sequences are shuffled by the same stream. Without
//! `data.shuffle` rows and sequences keep the file's order. Steps use `train.accumulate` micro-batches of
//! `train.batch_size` sequences; the last step of an epoch uses the rest.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::random::Random;

/// Number of rows that are packed together.
const WINDOW: usize = 4096;

/// Sequences that go through the model together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    /// Each sequence's rows in order, as indices into [`super::Prepared::train`]. Rows of one sequence are
    /// packed block-diagonally: they do not attend to each other. Without packing a sequence has one row.
    pub sequences: Vec<Vec<usize>>,
}

/// The order in which a run uses its rows.
pub struct StepOrder {
    lengths: Vec<usize>,
    seed: u64,
    shuffle: bool,
    /// Most tokens in a sequence; `None` without packing.
    packing: Option<usize>,
    batch_size: usize,
    accumulate: usize,
    total: u64,
    known: Mutex<Known>,
}

/// Earlier results, so that neighbouring steps cost little.
#[derive(Default)]
struct Known {
    /// Steps up to and including each epoch, from the first on.
    ends: Vec<u64>,
    /// An epoch and its sequences.
    plan: Option<(u64, Plan)>,
}

type Plan = Arc<Vec<Vec<usize>>>;

impl fmt::Debug for StepOrder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StepOrder")
            .field("rows", &self.lengths.len())
            .field("total_steps", &self.total)
            .finish_non_exhaustive()
    }
}

impl StepOrder {
    /// The order of rows with these lengths in tokens ([`super::Prepared::train`]).
    pub fn new(lengths: &[usize], config: &Config) -> Self {
        let mut order = StepOrder {
            lengths: lengths.to_vec(),
            seed: config.train.seed,
            shuffle: config.data.shuffle,
            packing: config.packs().then_some(config.data.max_length),
            batch_size: config.train.batch_size.max(1),
            accumulate: config.train.accumulate.max(1),
            total: 0,
            known: Mutex::default(),
        };
        order.total = match (config.train.max_steps, lengths.len()) {
            (_, 0) => 0,
            (Some(steps), _) => steps,
            (None, _) => order.steps_of_epochs(config.train.epochs),
        };
        order
    }

    /// Steps of the whole run: `train.max_steps` if set, otherwise those of `train.epochs`. A fraction of an
    /// epoch is rounded up to whole steps. 0 without rows.
    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// Epochs completed after `steps` steps.
    pub fn epoch_of(&self, steps: u64) -> f64 {
        if self.lengths.is_empty() {
            return 0.0;
        }
        let (epoch, start, end) = self.epoch_at(steps);
        epoch as f64 + (steps - start) as f64 / (end - start) as f64
    }

    /// The micro-batches of a step, counted from 0. Steps after [`StepOrder::total_steps`] continue with
    /// further epochs; without rows there are no micro-batches.
    pub fn step(&self, step: u64) -> Vec<MicroBatch> {
        if self.lengths.is_empty() {
            return Vec::new();
        }
        let (epoch, start, _) = self.epoch_at(step);
        let plan = self.plan(epoch);
        let first = (step - start) as usize * self.sequences_per_step();
        plan.iter()
            .skip(first)
            .take(self.sequences_per_step())
            .cloned()
            .collect::<Vec<_>>()
            .chunks(self.batch_size)
            .map(|sequences| MicroBatch { sequences: sequences.to_vec() })
            .collect()
    }

    /// All rows of a step, as indices into [`super::Prepared::train`].
    pub fn rows(&self, step: u64) -> Vec<usize> {
        self.step(step).into_iter().flat_map(|batch| batch.sequences).flatten().collect()
    }

    fn sequences_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    fn steps_of_epochs(&self, epochs: f64) -> u64 {
        let whole = epochs.max(0.0).floor();
        let before = if whole >= 1.0 { self.end_of(whole as u64 - 1) } else { 0 };
        let rest = epochs - whole;
        if rest <= 0.0 {
            return before;
        }
        let partial = self.end_of(whole as u64) - before;
        before + ((partial as f64 * rest).ceil() as u64).min(partial)
    }

    /// Steps up to and including `epoch`.
    fn end_of(&self, epoch: u64) -> u64 {
        if self.packing.is_none() {
            return (epoch + 1) * self.steps_for(self.lengths.len());
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        while known.ends.len() as u64 <= epoch {
            self.extend(&mut known);
        }
        known.ends[epoch as usize]
    }

    /// The epoch of `step`, the steps before that epoch, and the steps up to and including it.
    fn epoch_at(&self, step: u64) -> (u64, u64, u64) {
        if self.packing.is_none() {
            let steps = self.steps_for(self.lengths.len());
            let epoch = step / steps;
            return (epoch, epoch * steps, (epoch + 1) * steps);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        while known.ends.last().is_none_or(|&end| end <= step) {
            self.extend(&mut known);
        }
        let epoch = known.ends.partition_point(|&end| end <= step);
        let start = if epoch == 0 { 0 } else { known.ends[epoch - 1] };
        (epoch as u64, start, known.ends[epoch])
    }

    fn extend(&self, known: &mut Known) {
        let epoch = known.ends.len() as u64;
        let plan = Arc::new(self.sequences(epoch));
        let steps = self.steps_for(plan.len());
        known.ends.push(known.ends.last().copied().unwrap_or(0) + steps);
        known.plan = Some((epoch, plan));
    }

    fn steps_for(&self, sequences: usize) -> u64 {
        sequences.div_ceil(self.sequences_per_step()) as u64
    }

    fn plan(&self, epoch: u64) -> Plan {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &known.plan {
            Some((of, plan)) if *of == epoch => Arc::clone(plan),
            _ => {
                let plan = Arc::new(self.sequences(epoch));
                known.plan = Some((epoch, Arc::clone(&plan)));
                plan
            }
        }
    }

    /// The sequences of an epoch, in order.
    fn sequences(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut random = Random::new(self.seed, epoch);
        let mut rows: Vec<usize> = (0..self.lengths.len()).collect();
        if self.shuffle {
            random.shuffle(&mut rows);
        }
        let Some(capacity) = self.packing else {
            return rows.into_iter().map(|row| vec![row]).collect();
        };
        let mut sequences = Vec::new();
        for window in rows.chunks(WINDOW) {
            let mut packed = pack(window, &self.lengths, capacity);
            if self.shuffle {
                random.shuffle(&mut packed);
            }
            sequences.extend(packed);
        }
        sequences
    }
}

/// Best-fit decreasing. Sequences are ordered by the position of their first row in `window`, rows within one
/// by theirs. A row longer than `capacity` gets its own sequence.
fn pack(window: &[usize], lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut places: Vec<usize> = (0..window.len()).collect();
    places.sort_by_key(|&place| std::cmp::Reverse(lengths[window[place]]));
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for place in places {
        let length = lengths[window[place]];
        let fitting = room.range((length, 0)..).next().copied();
        let (left, sequence) = fitting.unwrap_or_else(|| {
            sequences.push(Vec::new());
            (capacity.max(length), sequences.len() - 1)
        });
        room.remove(&(left, sequence));
        sequences[sequence].push(place);
        room.insert((left - length, sequence));
    }
    for sequence in &mut sequences {
        sequence.sort_unstable();
    }
    sequences.sort_unstable();
    sequences.into_iter().map(|places| places.into_iter().map(|place| window[place]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::data::testing::config;

    fn order(lengths: &[usize], settings: &[&str]) -> StepOrder {
        StepOrder::new(lengths, &config("a.jsonl", settings))
    }

    #[test]
    fn the_order_never_changes() {
        let lengths = [7, 3, 5, 2, 8, 1, 4, 6];
        let plain = order(&lengths, &["data.packing=false", "train.batch_size=2", "train.accumulate=2"]);
        assert_eq!(plain.rows(0), GOLDEN_PLAIN[0]);
        assert_eq!(plain.rows(1), GOLDEN_PLAIN[1]);
        assert_eq!(plain.rows(2), GOLDEN_PLAIN[2]);
        let packed = order(&lengths, &["data.max_length=9", "train.batch_size=1", "train.accumulate=2"]);
        let steps: Vec<Vec<Vec<usize>>> = (0..3)
            .map(|step| packed.step(step).into_iter().flat_map(|batch| batch.sequences).collect())
            .collect();
        assert_eq!(
            steps,
            GOLDEN_PACKED.map(|step| step.iter().map(|rows| rows.to_vec()).collect::<Vec<_>>())
        );
    }

    // Computed by a second implementation of these rules, in Python.
    const GOLDEN_PLAIN: [[usize; 4]; 3] = [[5, 1, 7, 0], [3, 4, 2, 6], [0, 4, 5, 6]];
    const GOLDEN_PACKED: [&[&[usize]]; 3] = [&[&[1, 7], &[2, 6]], &[&[0, 3], &[5, 4]], &[&[4, 5], &[7, 1]]];

    #[test]
    fn without_shuffle_or_packing_rows_keep_their_order() {
        let lengths = vec![24; 80];
        let settings = [
            "data.packing=false",
            "data.shuffle=false",
            "train.batch_size=2",
            "train.accumulate=2",
            "train.epochs=1",
        ];
        let order = order(&lengths, &settings);
        assert_eq!(order.total_steps(), 20);
        assert_eq!(
            order.step(0),
            [[vec![0], vec![1]], [vec![2], vec![3]]].map(|rows| MicroBatch { sequences: rows.into() })
        );
        assert_eq!(order.rows(19), [76, 77, 78, 79]);
    }

    #[test]
    fn the_last_step_of_an_epoch_uses_the_rest() {
        let order = order(
            &[5; 10],
            &["data.packing=false", "train.batch_size=4", "train.accumulate=1", "train.epochs=2"],
        );
        assert_eq!(order.total_steps(), 6);
        let sizes: Vec<usize> = (0..6).map(|step| order.rows(step).len()).collect();
        assert_eq!(sizes, [4, 4, 2, 4, 4, 2]);
        assert_ne!(order.rows(0), order.rows(3));
        let epochs: Vec<f64> = [0, 3, 4, 6].map(|steps| order.epoch_of(steps)).to_vec();
        assert_eq!(epochs, [0.0, 1.0, 1.0 + 1.0 / 3.0, 2.0]);
    }

    #[test]
    fn steps_come_from_epochs_or_from_max_steps() {
        let steps = |settings: &[&str]| {
            order(
                &[5; 10],
                &[&["data.packing=false", "train.batch_size=1", "train.accumulate=1"], settings].concat(),
            )
            .total_steps()
        };
        assert_eq!(steps(&["train.epochs=0.25"]), 3);
        assert_eq!(steps(&["train.epochs=1.5"]), 15);
        assert_eq!(steps(&["train.max_steps=7"]), 7);
        assert_eq!(steps(&["train.max_steps=1000"]), 1000);
        let empty = order(&[], &[]);
        assert_eq!((empty.total_steps(), empty.epoch_of(5)), (0, 0.0));
        assert_eq!(empty.step(0), []);
    }

    #[test]
    fn packing_fills_sequences() {
        let order = order(&[6, 4, 5, 5, 9, 1, 12], &["data.max_length=10", "data.shuffle=false"]);
        let sequences = order.step(0).into_iter().flat_map(|batch| batch.sequences).collect::<Vec<_>>();
        assert_eq!(sequences, [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
    }

    #[test]
    fn a_far_step_does_not_need_those_before_it() {
        let lengths: Vec<usize> = (0..500).map(|row| 1 + row * 7 % 90).collect();
        let settings = ["data.max_length=100", "train.max_steps=100000"];
        let near = order(&lengths, &settings);
        let far = order(&lengths, &settings);
        let expected: Vec<Vec<usize>> = (0..40).map(|step| near.rows(step)).collect();
        for step in (0..40).rev() {
            assert_eq!(far.rows(step), expected[step as usize]);
        }
    }

    proptest! {
        #[test]
        fn every_epoch_uses_each_row_once(
            lengths in prop::collection::vec(1_usize..64, 1..300),
            seed in 0_u64..1000,
            batch in 1_usize..5,
            accumulate in 1_usize..4,
            packing: bool,
            shuffle: bool,
        ) {
            let settings = [
                "data.max_length=64".to_owned(),
                "train.epochs=2".to_owned(),
                format!("train.seed={seed}"),
                format!("train.batch_size={batch}"),
                format!("train.accumulate={accumulate}"),
                format!("data.packing={packing}"),
                format!("data.shuffle={shuffle}"),
            ];
            let order = order(&lengths, &settings.each_ref().map(String::as_str));
            let mut seen = vec![0; lengths.len()];
            for step in 0..order.total_steps() {
                let batches = order.step(step);
                prop_assert!(!batches.is_empty() && batches.len() <= accumulate);
                for sequence in batches.iter().flat_map(|found| &found.sequences) {
                    prop_assert!(sequence.iter().map(|&row| lengths[row]).sum::<usize>() <= 64);
                    prop_assert!(packing || sequence.len() == 1);
                    for &row in sequence {
                        seen[row] += 1;
                    }
                }
                prop_assert!(batches.iter().all(|found| !found.sequences.is_empty() && found.sequences.len() <= batch));
                let epoch = if order.epoch_of(step) < 1.0 { 1 } else { 2 };
                prop_assert!(seen.iter().all(|&times| times <= epoch));
            }
            prop_assert!(seen.iter().all(|&times| times == 2));
        }
    }
}
