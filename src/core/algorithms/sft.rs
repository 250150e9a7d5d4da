//! Supervised fine-tuning.

use super::{BaseUse, Declaration, Metric, RowShape};

/// Learns the likelihood of the tokens that are trained on.
pub(super) const DECLARATION: Declaration = Declaration {
    rows: RowShape::Answer,
    sides: 1,
    packs: true,
    token_loss: true,
    base: BaseUse::Never,
    settings: &[],
    metrics: &[
        Metric::less("perplexity", "perplexity"),
        Metric::more("token_accuracy", "token accuracy").as_share(),
    ],
    check: |_, _, _| {},
};
