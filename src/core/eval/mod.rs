//! What "better" means, and whether it was reached: objectives that score replies, suites of prompts,
//! people's verdicts on A/B comparisons, and the statistics of both.

mod blind;
mod error;
mod objective;
mod pairs;
mod schema;
mod suite;
mod tally;
mod verdict;

#[cfg(test)]
mod testing;

pub use blind::sides;
pub use error::EvalError;
pub use objective::{Objective, Score, average_scores};
pub use pairs::{PreferencePair, edited_examples, export_pairs, preference_pairs};
pub use suite::{Suite, SuitePrompt};
pub use tally::{Interval, Tally, sign_test, tally, tally_against, wilson_interval};
pub use verdict::{Contender, Side, VERDICT_FILE, Verdict, VerdictChoice, VerdictStore, Verdicts};
