//! Direct preference optimisation (arXiv 2305.18290).

use super::{BaseUse, Declaration, Metric, RowShape};
use crate::config::Config;
use crate::data::{Findings, ProblemKind, Severity, Split, UsableRow};

/// Learns to prefer the chosen answer of each pair over the rejected one, measured against the base model.
pub(super) const DECLARATION: Declaration = Declaration {
    rows: RowShape::Pair,
    sides: 2,
    packs: false,
    token_loss: false,
    base: BaseUse::Once,
    settings: &["train.dpo_beta", "train.dpo_label_smoothing"],
    metrics: &[
        Metric::more("reward_chosen", "reward of chosen"),
        Metric::less("reward_rejected", "reward of rejected"),
        Metric::more("reward_margin", "reward margin").with_chart(),
        Metric::more("reward_accuracy", "preferred").as_share().with_chart(),
    ],
    check,
};

/// The sides of a pair must differ.
fn check(_: &Config, rows: &[UsableRow], findings: &mut Findings) {
    let pairs = || rows.iter().filter(|usable| usable.row.is_pair);
    for UsableRow { row, truncated, .. } in pairs().filter(|usable| usable.same_sides) {
        let what = if *truncated {
            "chosen and rejected are the same up to data.max_length: nothing in it can be preferred"
        } else {
            "chosen and rejected are the same: nothing in it can be preferred"
        };
        findings.row(ProblemKind::SameSides, Severity::Warning, row, what);
    }
    let mut train = pairs().filter(|usable| usable.row.split == Split::Train).peekable();
    if train.peek().is_some() && train.all(|usable| usable.same_sides) {
        let what = "chosen and rejected are the same in every pair: there is nothing to learn";
        findings.add(ProblemKind::SameSides, Severity::Blocks, what);
    }
}
