//! Chooses the settings of trials. They are pure functions of the sweep's seed and the trial's number, so a
//! restart neither repeats nor skips any.

use std::collections::HashSet;

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::file::{Distribution, Sampler, SweepFile, TRIAL_LIMIT};

/// The settings that differ from the configuration of the sweep: dotted key to TOML value.
pub type Settings = IndexMap<String, String>;

/// Settings as `KEY=VALUE`.
pub fn overrides(settings: &Settings) -> Vec<String> {
    settings.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// Digits kept of a drawn number: precise enough for any setting, and short enough to read.
const DIGITS: usize = 4;

/// How often a point is drawn again if an earlier trial has it already.
const REDRAWS: u64 = 100;

impl SweepFile {
    /// Number of points in the grid; `None` if the space is continuous or the number overflows.
    pub fn grid_size(&self) -> Option<u64> {
        self.space.values().try_fold(1_u64, |size, distribution| size.checked_mul(distribution.points()?))
    }

    /// The settings of trial `index`, counted from 0; `None` after the end of a grid.
    pub fn settings(&self, index: u64) -> Option<Settings> {
        match self.sampler {
            Sampler::Grid => self.grid_point(index),
            Sampler::Random => Some(self.draw(index, 0)),
        }
    }

    /// The settings of all trials. A random sweep repeats none: a point that an earlier trial has is drawn
    /// again. If the space has too few points, there are fewer trials.
    pub fn expand(&self) -> Vec<Settings> {
        match self.sampler {
            Sampler::Grid => {
                let trials = self.trials.unwrap_or(TRIAL_LIMIT);
                (0..trials).map_while(|index| self.grid_point(index)).collect()
            }
            Sampler::Random => {
                let mut seen = HashSet::new();
                let mut trials = Vec::new();
                for index in 0..self.trials.unwrap_or(0) {
                    let mut draws = (0..REDRAWS).map(|attempt| self.draw(index, attempt));
                    if let Some(new) = draws.find(|settings| seen.insert(key_of(settings))) {
                        trials.push(new);
                    }
                }
                trials
            }
        }
    }

    /// The last key changes fastest.
    fn grid_point(&self, index: u64) -> Option<Settings> {
        let mut rest = index;
        let mut point = Settings::new();
        for (key, distribution) in self.space.iter().rev() {
            let points = distribution.points()?;
            point.insert(key.clone(), distribution.point(rest % points));
            rest /= points;
        }
        point.reverse();
        (rest == 0).then_some(point)
    }

    fn draw(&self, index: u64, attempt: u64) -> Settings {
        let draw = |(key, distribution): (&String, &Distribution)| {
            (key.clone(), distribution.at(share(self.seed, index, attempt, key)))
        };
        self.space.iter().map(draw).collect()
    }
}

impl Distribution {
    /// Number of values; `None` for a continuous distribution.
    fn points(&self) -> Option<u64> {
        match self {
            Self::Fixed(_) => Some(1),
            Self::Choice(values) => Some(values.len() as u64),
            Self::Int(least, most) => most.abs_diff(*least).checked_add(1),
            Self::Uniform(..) | Self::LogUniform(..) => None,
        }
    }

    /// The value with this index.
    fn point(&self, index: u64) -> String {
        match self {
            Self::Choice(values) => values.get(index as usize).cloned().unwrap_or_default(),
            Self::Int(least, _) => least.saturating_add_unsigned(index).to_string(),
            Self::Fixed(value) => value.clone(),
            Self::Uniform(..) | Self::LogUniform(..) => self.at(0.0),
        }
    }

    /// The value at the fraction `share` of the range, 0 ≤ `share` < 1.
    fn at(&self, share: f64) -> String {
        match self {
            Self::Fixed(_) | Self::Choice(_) | Self::Int(..) => {
                let points = self.points().unwrap_or(1);
                self.point(((share * points as f64) as u64).min(points.saturating_sub(1)))
            }
            Self::Uniform(least, most) => number(least * (1.0 - share) + most * share, *least, *most),
            Self::LogUniform(least, most) => {
                let value = (least.ln() + share * (most.ln() - least.ln())).exp();
                number(value, *least, *most)
            }
        }
    }
}

/// A number rounded to a few digits, within its bounds.
fn number(value: f64, least: f64, most: f64) -> String {
    let rounded = format!("{value:.*e}", DIGITS - 1).parse().unwrap_or(value);
    toml::Value::Float(rounded.clamp(least, most)).to_string()
}

/// A number in [0, 1): 53 bits of a hash over everything that identifies the draw.
fn share(seed: u64, index: u64, attempt: u64, key: &str) -> f64 {
    let mut digest = Sha256::new();
    digest.update(b"luthier sweep");
    for part in [seed, index, attempt] {
        digest.update(part.to_le_bytes());
    }
    digest.update(key);
    let hash = digest.finalize();
    let bits = hash.iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn key_of(settings: &Settings) -> Vec<String> {
    settings.values().cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::runs::testing::config;

    fn sweep(text: &str) -> SweepFile {
        SweepFile::parse(text, Path::new("a.toml"), &config(&[])).unwrap()
    }

    fn values(settings: &Settings) -> Vec<&str> {
        settings.values().map(String::as_str).collect()
    }

    #[test]
    fn a_grid_has_every_combination_once() {
        let sweep = sweep(
            "sampler = \"grid\"\n[space]\n\"method.rank\" = { choice = [8, 16] }\n\"train.epochs\" = 2\n\"train.seed\" = { int = [5, 7] }\n",
        );
        assert_eq!(sweep.grid_size(), Some(6));
        let trials = sweep.expand();
        let seen: Vec<_> = trials.iter().map(values).collect();
        let expected = [
            ["8", "2.0", "5"],
            ["8", "2.0", "6"],
            ["8", "2.0", "7"],
            ["16", "2.0", "5"],
            ["16", "2.0", "6"],
            ["16", "2.0", "7"],
        ];
        assert_eq!(seen, expected);
        assert_eq!(trials[0].keys().collect::<Vec<_>>(), ["method.rank", "train.epochs", "train.seed"]);
        assert_eq!(sweep.settings(6), None);
        let short = SweepFile { trials: Some(4), ..sweep };
        assert_eq!(short.expand(), trials[..4]);
    }

    #[test]
    fn draws_depend_only_on_seed_and_number() {
        let text = "trials = 50\nseed = 3\n[space]\n\"train.learning_rate\" = { log_uniform = [1e-6, 1e-2] }\n\"train.weight_decay\" = { uniform = [0.0, 0.5] }\n";
        let first = sweep(text).expand();
        assert_eq!(first, sweep(text).expand());
        assert_eq!(first[37], sweep(text).settings(37).unwrap());
        let more = SweepFile { trials: Some(80), ..sweep(text) }.expand();
        assert_eq!(more[..50], first, "more trials do not change the ones before");
        let other = SweepFile { seed: 4, ..sweep(text) }.expand();
        assert!(first.iter().all(|settings| !other.contains(settings)));
    }

    #[test]
    fn draws_cover_their_range() {
        let sweep = sweep(
            "trials = 400\n[space]\n\"train.learning_rate\" = { log_uniform = [1e-6, 1e-2] }\n\"method.rank\" = { int = [1, 4] }\n\"train.schedule\" = { choice = [\"linear\", \"cosine\"] }\n",
        );
        let trials = sweep.expand();
        let rates: Vec<f64> =
            trials.iter().map(|settings| settings["train.learning_rate"].parse().unwrap()).collect();
        assert!(rates.iter().all(|rate| (1e-6..=1e-2).contains(rate)));
        let below_the_middle = rates.iter().filter(|rate| **rate < 1e-4).count();
        assert!(
            (150..250).contains(&below_the_middle),
            "{below_the_middle} of 400 below the middle in orders of magnitude"
        );
        for rank in ["1", "2", "3", "4"] {
            let count = trials.iter().filter(|settings| settings["method.rank"] == rank).count();
            assert!((60..140).contains(&count), "{rank}: {count}");
        }
        assert_eq!(
            rates.iter().filter(|rate| format!("{rate:.3e}").parse() == Ok(**rate)).count(),
            400,
            "four digits"
        );
    }

    #[test]
    fn points_are_not_repeated_and_a_small_space_ends() {
        let sweep = sweep(
            "trials = 100\n[space]\n\"method.rank\" = { choice = [8, 16, 32] }\n\"train.seed\" = { int = [1, 2] }\n",
        );
        let trials = sweep.expand();
        let distinct: HashSet<_> = trials.iter().map(key_of).collect();
        assert_eq!((trials.len(), distinct.len()), (6, 6));
    }

    #[test]
    fn the_widest_bounds_do_not_overflow() {
        for (least, most) in [(i64::MIN, i64::MAX), (i64::MAX - 1, i64::MAX)] {
            let distribution = Distribution::Int(least, most);
            for share in [0.0, 0.5, 1.0 - f64::EPSILON] {
                assert!(distribution.at(share).parse::<i64>().is_ok());
            }
        }
        assert_eq!(Distribution::Uniform(-1e308, 1e308).at(0.5).parse(), Ok(0.0));
    }
}
