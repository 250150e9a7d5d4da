//! Helpers for tests of verdicts.

use indexmap::IndexMap;

use super::verdict::{Contender, Side, Verdict, VerdictChoice};
use crate::data::Message;
use crate::runs::time;

/// A verdict on `left` (the tuned side) and `right` (the base side).
pub(super) fn verdict(left: &str, right: &str, choice: VerdictChoice) -> Verdict {
    let side = |who, reply: &str| Side {
        who,
        reply: reply.to_owned(),
        weights: "f00d".to_owned(),
        seed: 7,
        scores: IndexMap::from([("valid".to_owned(), 1.0)]),
    };
    Verdict {
        time: time::now(),
        run: "20260823-140211-a".to_owned(),
        checkpoint: Some(400),
        prompt: vec![Message::new("user", "hi")],
        left: side(Contender::Tuned, left),
        right: side(Contender::Base, right),
        choice,
        blind: true,
        note: String::new(),
        edited: None,
    }
}
