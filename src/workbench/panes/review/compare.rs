//! One comparison: two answers to one prompt, with their scores and their verdict.

use std::time::Duration;

use indexmap::IndexMap;
use jiff::Timestamp;
use luthier_core::data::Message;
use luthier_core::eval::{self, Contender, Score, Side, SuitePrompt, Verdict, VerdictChoice};
use luthier_core::hash::fnv1a;
use luthier_core::runs::serving::DoneReason;

use super::target::Target;
use crate::widgets::Scroll;

/// Name of the overall result among a side's scores.
const PASSED: &str = "passed";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No answer yet; what is being waited for.
    Waiting(String),
    /// Answers are arriving.
    Answering,
    /// Both answers are complete.
    Complete,
    /// Cancelled before both were complete.
    Cancelled,
    /// Something failed; with what to do about it.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub reason: DoneReason,
    pub tokens: usize,
    /// Time from the request to the last token.
    pub seconds: f64,
    /// Fingerprint of the weights that answered, as the engine reports it.
    pub weights: String,
    /// Fingerprint that the weights asked for have, computed without the engine.
    pub expected: String,
    /// How the objective scores the reply; missing where there is nothing to check, an error where the
    /// objective cannot be used.
    pub score: Option<Result<Score, String>>,
}

impl End {
    /// Whether the weights that answered are the ones asked for.
    pub fn is_proved(&self) -> bool {
        self.weights == self.expected
    }
}

/// Why no more answers will come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Cancelled by the user.
    Cancelled,
    /// Something failed; with what to do about it.
    Failed(String),
}

#[derive(Debug)]
pub struct Answer {
    /// Who answered. Must not be shown before [`Comparison::is_named`].
    pub who: Contender,
    /// The reply so far.
    pub reply: String,
    /// Pieces received: about the number of tokens so far.
    pub pieces: usize,
    /// How it ended.
    pub end: Option<End>,
    /// Scroll position in the reply.
    pub scroll: Scroll,
}

impl Answer {
    fn new(who: Contender) -> Self {
        Self { who, reply: String::new(), pieces: 0, end: None, scroll: Scroll::default() }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.end.as_ref().map_or(self.pieces, |end| end.tokens)
    }

    /// The objective's scores, the overall result first.
    fn scores(&self) -> IndexMap<String, f64> {
        let Some(Ok(score)) = self.end.as_ref().and_then(|end| end.score.as_ref()) else {
            return IndexMap::new();
        };
        let passed = (PASSED.to_owned(), f64::from(u8::from(score.passed)));
        [passed].into_iter().chain(score.details.clone()).collect()
    }

    fn side(&self, seed: u64) -> Side {
        Side {
            who: self.who,
            reply: self.reply.clone(),
            weights: self.end.as_ref().map(|end| end.weights.clone()).unwrap_or_default(),
            seed,
            scores: self.scores(),
        }
    }
}

#[derive(Debug)]
pub struct Comparison {
    /// Its number.
    pub id: u64,
    /// The tuned side.
    pub target: Target,
    /// Whom it is compared with: base or baseline.
    pub opponent: Contender,
    pub prompt: SuitePrompt,
    /// The conversation as sent to the tuned side; empty until then.
    pub asked: Vec<Message>,
    /// Sampling seed of both sides.
    pub seed: u64,
    /// Left and right.
    pub answers: [Answer; 2],
    pub stage: Stage,
    /// The choice to record once the other answer has stopped.
    pub wanted: Option<VerdictChoice>,
    /// The choice, once it is made and both answers are complete.
    pub choice: Option<VerdictChoice>,
    /// What the person noted.
    pub note: String,
    /// Whether the sides are hidden until the choice.
    pub blind: bool,
    /// When it was asked, in time since the workbench opened.
    pub begun: Duration,
    /// When the engine received the prompt.
    pub handed_over: Duration,
    /// Whether the end of a growing answer is kept visible.
    pub follows: bool,
}

/// What is asked, for a new comparison.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The tuned side.
    pub target: Target,
    /// Who it is compared with.
    pub opponent: Contender,
    pub prompt: SuitePrompt,
    /// How often these two were asked this before.
    pub attempt: u64,
    /// The project's seed.
    pub seed: u64,
    /// Whether the sides are hidden until the choice.
    pub blind: bool,
}

impl Comparison {
    /// A comparison about to be asked. Sides and seed depend only on what is asked.
    pub fn new(id: u64, asked: Asked, begun: Duration) -> Self {
        let Asked { target, opponent, prompt, attempt, seed, blind } = asked;
        let text: Vec<&str> = prompt.messages.iter().map(|message| message.content.as_str()).collect();
        let step = target.step.map_or_else(String::new, |step| step.to_string());
        let what = [target.run.as_str(), &step, &opponent.to_string()];
        let pairing = hash(what.into_iter().chain(text.iter().copied()));
        let seed = hash(text.into_iter().chain([seed.to_string().as_str(), &attempt.to_string()]));
        let sides = eval::sides(pairing, attempt, [Contender::Tuned, opponent]);
        Self {
            id,
            target,
            opponent,
            prompt,
            asked: Vec::new(),
            seed,
            answers: sides.map(Answer::new),
            stage: Stage::Waiting("asking the engine".to_owned()),
            wanted: None,
            choice: None,
            note: String::new(),
            blind,
            begun,
            handed_over: begun,
            follows: true,
        }
    }

    /// Whether the sides may be named. A comparison that cannot be judged is not blind.
    pub fn is_named(&self) -> bool {
        !self.blind || self.choice.is_some() || self.is_void()
    }

    /// Whether both answered, but a side with other weights than asked for.
    pub fn is_void(&self) -> bool {
        self.stage == Stage::Complete && self.unproved().is_some()
    }

    pub fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_) | Stage::Answering)
    }

    /// Why it cannot be judged by `choice` now, or nothing if it can.
    pub fn unjudgeable(&self, choice: VerdictChoice) -> Option<String> {
        if self.choice.is_some() {
            return Some("it is judged already; `a` asks both again".to_owned());
        }
        if self.wanted.is_some() {
            return Some("it is being judged".to_owned());
        }
        match &self.stage {
            Stage::Waiting(_) => return Some("there are no answers yet".to_owned()),
            Stage::Cancelled => return Some("the answers were cancelled; ↵ asks again".to_owned()),
            Stage::Failed(_) => return Some("there are no answers; ↵ asks again".to_owned()),
            Stage::Answering | Stage::Complete => {}
        }
        if self.unproved().is_some() {
            return Some("other weights answered than the ones asked for; `a` asks again".to_owned());
        }
        let chosen = match choice {
            VerdictChoice::Left => Some(0),
            VerdictChoice::Right => Some(1),
            VerdictChoice::Tie | VerdictChoice::BothBad | VerdictChoice::Skip => None,
        };
        // The next run must not learn to prefer an unfinished answer.
        let unfinished = chosen.is_some_and(|side: usize| self.answers[side].end.is_none());
        unfinished.then(|| "that answer is still being written".to_owned())
    }

    /// The side whose weights are not the ones asked for.
    pub fn unproved(&self) -> Option<&End> {
        self.answers.iter().filter_map(|answer| answer.end.as_ref()).find(|end| !end.is_proved())
    }

    /// Appends pieces of the answers.
    pub fn add(&mut self, pieces: Vec<(usize, String)>) {
        if !self.is_under_way() {
            return;
        }
        self.stage = Stage::Answering;
        for (side, piece) in pieces {
            let Some(answer) = self.answers.get_mut(side).filter(|answer| answer.end.is_none()) else {
                continue;
            };
            answer.reply.push_str(&piece);
            answer.pieces += 1;
            if self.follows {
                answer.scroll.to_end();
            }
        }
    }

    pub fn end(&mut self, side: usize, end: End) {
        if !self.is_under_way() {
            return;
        }
        self.stage = Stage::Answering;
        if let Some(answer) = self.answers.get_mut(side) {
            answer.end = Some(end);
        }
        if self.answers.iter().all(|answer| answer.end.is_some()) {
            self.stage = Stage::Complete;
            let given_up =
                |answer: &Answer| answer.end.as_ref().is_some_and(|end| end.reason == DoneReason::Cancelled);
            // Stopped for a verdict, or stopped for good.
            if self.wanted.is_none() && self.answers.iter().any(given_up) {
                self.stage = Stage::Cancelled;
            }
        }
    }

    /// There will be no more answers.
    pub fn break_off(&mut self, broken: Broken) {
        if self.is_under_way() {
            self.wanted = None;
            self.stage = match broken {
                Broken::Cancelled => Stage::Cancelled,
                Broken::Failed(problem) => Stage::Failed(problem),
            };
        }
    }

    /// Records the wanted choice if both answers are complete, names the sides, and returns the verdict to save.
    pub fn judge(&mut self, time: Timestamp) -> Option<Verdict> {
        if self.stage != Stage::Complete {
            return None;
        }
        let choice = self.wanted.take()?;
        if self.unproved().is_some() {
            return None;
        }
        self.choice = Some(choice);
        Some(self.verdict(choice, time))
    }

    pub fn verdict(&self, choice: VerdictChoice, time: Timestamp) -> Verdict {
        let [left, right] = &self.answers;
        Verdict {
            time,
            run: self.target.run.clone(),
            checkpoint: self.target.step,
            prompt: self.asked.clone(),
            left: left.side(self.seed),
            right: right.side(self.seed),
            choice,
            blind: self.blind,
            note: self.note.clone(),
            edited: None,
        }
    }

    /// The side that an edit starts from: the better one; the one that passes where none is better; the
    /// left one otherwise.
    pub fn editable(&self) -> usize {
        match self.choice {
            Some(VerdictChoice::Left) => 0,
            Some(VerdictChoice::Right) => 1,
            _ => {
                let passes = |answer: &Answer| matches!(answer.end.as_ref().and_then(|end| end.score.as_ref()), Some(Ok(score)) if score.passed);
                usize::from(!passes(&self.answers[0]) && passes(&self.answers[1]))
            }
        }
    }
}

/// FNV-1a over texts and their ends: the same on every machine and in every version.
fn hash<'a>(texts: impl Iterator<Item = &'a str>) -> u64 {
    fnv1a(texts.flat_map(|text| text.bytes().chain([0xff])))
}

#[cfg(test)]
pub mod tests {
    use luthier_core::eval::Score;
    use luthier_core::runs::RunState;

    use super::super::target::tests::candidate;
    use super::*;

    /// A comparison of the base model with the best checkpoint of a run.
    pub fn comparison(attempt: u64) -> Comparison {
        let asked = Asked {
            target: candidate("a", RunState::Running, &[400]).target(Some(400)),
            opponent: Contender::Base,
            prompt: SuitePrompt::typed("hi"),
            attempt,
            seed: 42,
            blind: true,
        };
        Comparison::new(1, asked, Duration::ZERO)
    }

    /// The end of an answer by the weights that were asked.
    pub fn end(reason: DoneReason, weights: &str) -> End {
        End {
            reason,
            tokens: 29,
            seconds: 1.6,
            weights: weights.to_owned(),
            expected: weights.to_owned(),
            score: Some(Ok(Score {
                passed: true,
                details: IndexMap::from([("valid".to_owned(), 1.0)]),
                reason: None,
            })),
        }
    }

    #[test]
    fn sides_and_seeds_follow_from_what_is_asked_and_how_often() {
        let sides = |attempt| comparison(attempt).answers.map(|answer| answer.who);
        assert_eq!(sides(3), sides(3));
        let left: Vec<bool> = (0..32).map(|attempt| sides(attempt)[0] == Contender::Tuned).collect();
        assert!(left.contains(&true) && left.contains(&false));
        assert_ne!(comparison(0).seed, comparison(1).seed);
        assert_eq!(comparison(1).seed, comparison(1).seed);
    }

    #[test]
    fn a_verdict_on_one_answer_waits_for_its_end_only() {
        let mut comparison = comparison(0);
        assert!(comparison.unjudgeable(VerdictChoice::Tie).is_some());
        comparison.add(vec![(0, "left".into()), (1, "right".into())]);
        comparison.end(0, end(DoneReason::Stop, "l"));
        assert_eq!(comparison.unjudgeable(VerdictChoice::Left), None);
        assert_eq!(comparison.unjudgeable(VerdictChoice::Tie), None);
        assert!(comparison.unjudgeable(VerdictChoice::Right).unwrap().contains("still being written"));
        comparison.wanted = Some(VerdictChoice::Left);
        assert_eq!(comparison.judge(Timestamp::UNIX_EPOCH), None);
        assert!(!comparison.is_named());
        comparison.end(1, end(DoneReason::Cancelled, "r"));
        let verdict = comparison.judge(Timestamp::UNIX_EPOCH).unwrap();
        assert!(comparison.is_named());
        assert_eq!((verdict.choice, verdict.left.reply.as_str()), (VerdictChoice::Left, "left"));
        assert_eq!(verdict.left.scores.keys().collect::<Vec<_>>(), ["passed", "valid"]);
        assert!(comparison.unjudgeable(VerdictChoice::Right).unwrap().contains("judged already"));
    }

    #[test]
    fn what_other_weights_answered_cannot_be_judged() {
        let mut comparison = comparison(0);
        comparison.end(0, end(DoneReason::Stop, "l"));
        let mut other = end(DoneReason::Stop, "r");
        other.weights = "x".into();
        comparison.wanted = Some(VerdictChoice::Tie);
        comparison.end(1, other);
        assert_eq!(comparison.judge(Timestamp::UNIX_EPOCH), None);
        assert!(comparison.is_void() && comparison.is_named() && comparison.choice.is_none());
        assert!(comparison.unjudgeable(VerdictChoice::Tie).unwrap().contains("other weights"));
    }

    #[test]
    fn what_comes_after_the_end_changes_nothing() {
        let mut comparison = comparison(0);
        comparison.break_off(Broken::Cancelled);
        comparison.add(vec![(0, "late".into())]);
        comparison.end(0, end(DoneReason::Stop, "l"));
        comparison.break_off(Broken::Failed("late".into()));
        assert_eq!(comparison.stage, Stage::Cancelled);
        assert_eq!(comparison.answers[0].reply, "");
        let mut given_up = self::comparison(0);
        given_up.end(0, end(DoneReason::Stop, "l"));
        given_up.end(1, end(DoneReason::Cancelled, "r"));
        assert_eq!(given_up.stage, Stage::Cancelled);
    }
}
