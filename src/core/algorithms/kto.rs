//! Kahneman-Tversky optimisation (arXiv 2402.01306).

use super::{BaseUse, Declaration, Metric, RowShape};
use crate::config::{Config, Kind};
use crate::data::{Findings, ProblemKind, Severity, Split, UsableRow};
use crate::units;

/// Learns from single answers, each labelled good or bad, measured against the base model.
pub(super) const DECLARATION: Declaration = Declaration {
    rows: RowShape::LabelledAnswer,
    sides: 1,
    packs: false,
    token_loss: false,
    base: BaseUse::EachStep,
    settings: &["train.kto_beta", "train.kto_desirable_weight", "train.kto_undesirable_weight"],
    metrics: &[
        Metric::more("reward_desirable", "reward of good"),
        Metric::less("reward_undesirable", "reward of bad"),
        Metric::more("reward_margin", "reward margin").with_chart(),
        Metric::less("kl", "KL to base").with_chart(),
    ],
    check,
};

/// How much more the good answers may weigh in all than the bad ones, as TRL advises.
const MOST: f64 = 4.0 / 3.0;

/// Good and bad answers must weigh about the same.
fn check(config: &Config, rows: &[UsableRow], findings: &mut Findings) {
    let train = || rows.iter().filter(|usable| usable.row.split == Split::Train);
    let count = |label: bool| train().filter(|usable| usable.row.label == Some(label)).count();
    let (good, bad) = (count(true), count(false));
    if config.train.batch_size * config.train.accumulate < 2 {
        let what = "a step has one row, so that the KL to the base model counts as 0; set train.accumulate = 2 or more";
        findings.add(ProblemKind::NotForAlgorithm, Severity::Warning, what);
    }
    let mut warn = |what: &str| findings.add(ProblemKind::UnevenLabels, Severity::Warning, what);
    if good == 0 || bad == 0 {
        if good + bad > 0 {
            let which = if bad == 0 { "good" } else { "bad" };
            let other = if bad == 0 { "bad" } else { "good" };
            warn(&format!(
                "every answer to train on is labelled {which}: there is nothing to tell it from; add {other} answers"
            ));
        }
        return;
    }
    let [desirable, undesirable] = [config.train.kto_desirable_weight, config.train.kto_undesirable_weight];
    let (good, bad) = (good as f64, bad as f64);
    let ratio = desirable * good / (undesirable * bad);
    // A tenth more or less is no imbalance.
    if (0.9..=MOST * 1.1).contains(&ratio) {
        return;
    }
    let advice: Vec<String> = [
        ("train.kto_desirable_weight", undesirable * bad / good, MOST * undesirable * bad / good),
        ("train.kto_undesirable_weight", desirable * good / bad / MOST, desirable * good / bad),
    ]
    .into_iter()
    .filter(|(key, _, most)| crate::config::key(key).is_some_and(|key| accepts(key.kind, *most)))
    .map(|(key, least, most)| format!("{key} between {} and {}", units::number(least), units::number(most)))
    .collect();
    warn(&format!(
        "{good} good answers of weight {desirable} and {bad} bad ones of weight {undesirable} do not balance; set {}",
        advice.join(", or ")
    ));
}

/// Whether a setting takes this number.
fn accepts(kind: Kind, value: f64) -> bool {
    matches!(kind, Kind::Number(bounds) if bounds.hold(value))
}
