//! The training algorithms, one file each: which rows one learns from, what it reports, what its pre-flight checks. The
//! engine has a file of the same name with batch, loss and held-out score.

mod dpo;
mod kto;
mod metric;
mod rows;
mod sft;

pub use metric::{Direction, Metric, Notation};
pub use rows::RowShape;

pub use crate::config::Algorithm;
use crate::config::Config;
use crate::data::{Findings, UsableRow};

/// Hands the values of `train.algorithm`, each with its meaning, to the macro `$choices`.
macro_rules! algorithms {
    ($choices:ident) => {
        $choices! {
            /// `train.algorithm`.
            pub enum Algorithm {
                Sft = "sft", "supervised fine-tuning: likelihood of the reply";
                Dpo = "dpo", "direct preference optimisation: the chosen reply over the rejected one";
                Kto = "kto", "Kahneman-Tversky optimisation: replies that are labelled good or bad";
            }
        }
    };
}
pub(crate) use algorithms;

/// All that the rest of the program knows about an algorithm.
#[derive(Debug)]
pub struct Declaration {
    /// The rows it learns from.
    pub rows: RowShape,
    /// Token sequences of a row that one forward pass with gradient takes.
    pub sides: usize,
    /// Whether short rows may share a sequence (`data.packing`).
    pub packs: bool,
    /// Whether its loss is a mean over tokens. Then the gradient of the logits overwrites them, which saves memory.
    pub token_loss: bool,
    /// When it needs the base model.
    pub base: BaseUse,
    /// The settings that it alone uses, by dotted key.
    pub settings: &'static [&'static str],
    /// What it reports in addition to the loss, in the order in which it is shown.
    pub metrics: &'static [Metric],
    /// Adds to the findings what is wrong with usable rows for it.
    pub(crate) check: fn(&Config, &[UsableRow], &mut Findings),
}

/// When an algorithm needs the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseUse {
    Never,
    /// Once for each row, which full fine-tuning does before it begins.
    Once,
    /// In each step, which takes an adapter: `method.kind = "full"` does not keep the base.
    EachStep,
}

impl Algorithm {
    /// What is declared about it.
    pub fn declaration(self) -> &'static Declaration {
        match self {
            Self::Sft => &sft::DECLARATION,
            Self::Dpo => &dpo::DECLARATION,
            Self::Kto => &kto::DECLARATION,
        }
    }
}

/// Every metric that some algorithm reports, in the order in which they are shown.
pub fn metrics() -> impl Iterator<Item = &'static Metric> {
    let declared = || Algorithm::ALL.iter().flat_map(|algorithm| algorithm.declaration().metrics);
    let is_first = move |place: usize, name: &str| !declared().take(place).any(|other| other.name == name);
    declared()
        .enumerate()
        .filter(move |(place, metric)| is_first(*place, metric.name))
        .map(|(_, metric)| metric)
}

/// The metric of that name, if some algorithm reports one.
pub fn metric(name: &str) -> Option<&'static Metric> {
    metrics().find(|metric| metric.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::{EvalEvent, StepEvent};

    #[test]
    fn metrics_of_one_name_are_one_metric() {
        for algorithm in Algorithm::ALL {
            for declared in algorithm.declaration().metrics {
                assert_eq!(metric(declared.name), Some(declared), "{algorithm}");
            }
        }
        let mut names: Vec<_> = metrics().map(|metric| metric.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn no_metric_is_named_like_another_key_of_a_journal_line() {
        let taken = [
            serde_json::to_value(StepEvent::default()).unwrap(),
            serde_json::to_value(EvalEvent::default()).unwrap(),
            serde_json::json!({ "kind": 0, "time": 0, "step": 0, "scores": 0, "load": 0, "replies": 0, "device_memory_bytes": 0 }),
        ];
        for metric in metrics() {
            assert!(taken.iter().all(|line| line.get(metric.name).is_none()), "{}", metric.name);
        }
    }

    #[test]
    fn settings_of_an_algorithm_exist_and_carry_its_name() {
        for algorithm in Algorithm::ALL {
            for setting in algorithm.declaration().settings {
                assert!(crate::config::KEYS.iter().any(|key| key.path == *setting), "{setting}");
                assert!(setting.starts_with(&format!("train.{algorithm}_")), "{setting}");
            }
        }
    }
}
