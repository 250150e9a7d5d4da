//! The review pane's short texts: names, scores, tallies and the last line.

use std::time::Duration;

use luthier_core::eval::{Contender, Tally, VerdictChoice};
use luthier_core::runs::serving::DoneReason;
use luthier_core::units;

use super::compare::{Answer, Comparison, Stage};
use super::state::{Outcome, ReviewState};
use crate::app::Context;
use crate::theme::Role;

/// Who answered, for a comparison whose sides may be named.
pub fn name(who: Contender, comparison: &Comparison) -> String {
    match who {
        Contender::Base => "base model".to_owned(),
        Contender::Baseline => "baseline".to_owned(),
        Contender::Tuned => comparison.target.name(),
    }
}

/// The role that a contender is drawn in, once named.
pub fn role(who: Contender) -> Role {
    match who {
        Contender::Base => Role::Base,
        Contender::Baseline => Role::Baseline,
        Contender::Tuned => Role::Tuned,
    }
}

pub fn reason(reason: DoneReason) -> &'static str {
    match reason {
        DoneReason::Stop => "stop",
        DoneReason::Length => "length",
        DoneReason::Cancelled => "stopped",
    }
}

/// `29 tokens · stop · 18.2/s`, the same for either side.
pub fn pace(answer: &Answer, comparison: &Comparison, now: Duration) -> String {
    let tokens = answer.tokens();
    let seconds = match &answer.end {
        Some(end) => end.seconds,
        None => now.saturating_sub(comparison.handed_over).as_secs_f64(),
    };
    if tokens == 0 && answer.end.is_none() {
        return String::new();
    }
    let count = units::counted(tokens, "token", "tokens");
    let ended = answer.end.as_ref().map_or_else(String::new, |end| format!(" · {}", reason(end.reason)));
    let rate = if seconds > 0.0 { format!(" · {:.1}/s", tokens as f64 / seconds) } else { String::new() };
    format!("{count}{ended}{rate}")
}

/// How the objective scores an answer, in one line.
pub fn score(answer: &Answer) -> Option<(String, Role)> {
    let score = match answer.end.as_ref()?.score.as_ref()? {
        Ok(score) => score,
        Err(problem) => return Some((format!("! no score: {problem}"), Role::Warning)),
    };
    // Fields of their own are for the details.
    let details = score.details.iter().filter(|(name, _)| !name.starts_with("field."));
    let details: Vec<String> =
        details.map(|(name, value)| format!("{name} {}", units::percent(*value))).collect();
    Some(if score.passed {
        (format!("✓ passes   {}", details.join("   ")), Role::Success)
    } else {
        let reason = score.reason.clone().unwrap_or_else(|| details.join("   "));
        (format!("✗ fails   {reason}"), Role::Failed)
    })
}

/// Which weights answered, and whether they are the ones asked for.
pub fn proof(answer: &Answer) -> Option<(String, Role)> {
    const DIGITS: usize = 12;
    let end = answer.end.as_ref()?;
    let short = |fingerprint: &str| fingerprint.chars().take(DIGITS).collect::<String>();
    let weights = short(&end.weights);
    Some(if end.is_proved() {
        (format!("weights {weights} ✓ as asked"), Role::Muted)
    } else {
        (format!("✗ weights {weights} answered, {} were asked", short(&end.expected)), Role::Error)
    })
}

pub fn outcome(outcome: Outcome) -> (&'static str, Role) {
    match outcome {
        Outcome::Won(Contender::Tuned) => ("tuned", Role::Tuned),
        Outcome::Won(Contender::Base) => ("base", Role::Base),
        Outcome::Won(Contender::Baseline) => ("baseline", Role::Baseline),
        Outcome::Undecided(VerdictChoice::Tie) => ("tie", Role::Screen),
        Outcome::Undecided(VerdictChoice::BothBad) => ("both bad", Role::Warning),
        Outcome::Undecided(VerdictChoice::Skip | VerdictChoice::Left | VerdictChoice::Right) => {
            ("skipped", Role::Muted)
        }
    }
}

/// `tuned 5 · base 0 · tie 1  (p 0.03)`, with the win rate and its interval if there is room.
pub fn tally(tally: &Tally, opponent: Contender, wide: bool) -> String {
    let mut parts = vec![
        format!("tuned {}", tally.tuned),
        format!("{opponent} {}", tally.base),
        format!("tie {}", tally.tie),
    ];
    if tally.both_bad > 0 {
        parts.push(format!("both bad {}", tally.both_bad));
    }
    let mut text = parts.join(" · ");
    if wide {
        text.insert_str(0, "so far  ");
    }
    if let (true, Some(rate), Some(interval)) = (wide, tally.win_rate, tally.interval) {
        let (rate, low, high) =
            (units::percent(rate), units::percent(interval.low), units::percent(interval.high));
        text = format!("{text}  win rate {rate} ({low} to {high})");
    }
    if tally.tuned + tally.base > 0 {
        text = format!("{text}  (p {})", probability(tally.p));
    }
    text
}

fn probability(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.2}") }
}

/// The last line of the pane: the next thing to do.
pub fn situation(state: &ReviewState, context: &Context) -> (String, Role) {
    let Some(target) = &state.target else { return (String::new(), Role::Muted) };
    if state.typing.is_some() {
        return ("↵ asks both".to_owned(), Role::Muted);
    }
    let Some(comparison) = state.current() else {
        if state.prompt().is_none() {
            return ("i types a prompt".to_owned(), Role::Muted);
        }
        let opponent = match state.opponent() {
            Contender::Baseline => "the baseline",
            Contender::Base | Contender::Tuned => "the base model",
        };
        return (format!("↵ asks {} and {opponent}", target.name()), Role::Muted);
    };
    let note = if comparison.note.is_empty() { "" } else { "   (with a note)" };
    match (&comparison.stage, comparison.choice) {
        (_, Some(choice)) => (judged(comparison, choice), Role::Success),
        (Stage::Waiting(what), None) => {
            let seconds = context.now.elapsed.saturating_sub(comparison.begun).as_secs();
            (format!("◌ {what} … {seconds} s   esc cancels"), Role::Waiting)
        }
        (Stage::Answering | Stage::Complete, None) if comparison.wanted.is_some() => {
            ("stopping the other answer …".to_owned(), Role::Waiting)
        }
        (Stage::Complete, None) if comparison.is_void() => {
            ("✗ other weights answered; ↵ asks again".to_owned(), Role::Error)
        }
        (Stage::Complete, None) if comparison.answers[0].reply == comparison.answers[1].reply => {
            (format!("which is better? they are equal{note}"), Role::Strong)
        }
        (Stage::Answering | Stage::Complete, None) => (format!("which is better?{note}"), Role::Strong),
        (Stage::Cancelled, None) => ("cancelled; ↵ asks again".to_owned(), Role::Muted),
        (Stage::Failed(_), None) => ("↵ asks again".to_owned(), Role::Muted),
    }
}

fn judged(comparison: &Comparison, choice: VerdictChoice) -> String {
    let winner = |side: usize| format!("✓ {} is better", name(comparison.answers[side].who, comparison));
    let verdict = match choice {
        VerdictChoice::Left => winner(0),
        VerdictChoice::Right => winner(1),
        VerdictChoice::Tie => "✓ a tie".to_owned(),
        VerdictChoice::BothBad => "✓ both bad".to_owned(),
        VerdictChoice::Skip => "✓ skipped".to_owned(),
    };
    format!("{verdict}   ↵ next")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_says_how_sure_it_is() {
        let counted = Tally { tuned: 5, base: 0, tie: 1, p: 0.0625, ..Tally::default() };
        assert_eq!(tally(&counted, Contender::Base, false), "tuned 5 · base 0 · tie 1  (p 0.06)");
        let nothing = Tally { p: 1.0, ..Tally::default() };
        assert_eq!(tally(&nothing, Contender::Baseline, true), "so far  tuned 0 · baseline 0 · tie 0");
        assert_eq!(probability(1e-9), "< 0.001");
    }
}
