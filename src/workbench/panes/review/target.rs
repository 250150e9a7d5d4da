//! What can be compared with the base model: a run's result, or one of its checkpoints.

use jiff::Timestamp;
use luthier_core::runs::RunState;

/// Weights written by a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub run: String,
    /// The checkpoint's step; missing for the run's result.
    pub step: Option<u64>,
    /// What was trained, in short: `lora r16`.
    pub method: String,
    /// Whether this checkpoint had the lowest held-out loss when it was chosen.
    pub best: bool,
}

impl Target {
    /// `lora r16 @ best`.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.place())
    }

    /// `@ best`, `@ 400`, `@ result`.
    pub fn place(&self) -> String {
        match self.step {
            None => "@ result".to_owned(),
            Some(_) if self.best => "@ best".to_owned(),
            Some(step) => format!("@ {step}"),
        }
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.run == other.run && self.step == other.step
    }
}

/// A run with the weights it has written so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub run: String,
    /// What is trained, in short.
    pub method: String,
    /// Its state.
    pub state: RunState,
    pub started: Timestamp,
    pub result: bool,
    /// Step of the lowest held-out loss.
    pub best: Option<u64>,
    /// Its checkpoints, by step.
    pub checkpoints: Vec<u64>,
}

impl Candidate {
    /// Everything of the run that can be compared, most useful first: the result, the best
    /// checkpoint, the others from the newest on.
    pub fn targets(&self) -> Vec<Target> {
        let best = self.best.filter(|best| self.checkpoints.contains(best));
        let others = self.checkpoints.iter().rev().copied().filter(|step| Some(*step) != best);
        let steps = self.result.then_some(None).into_iter();
        steps.chain(best.into_iter().chain(others).map(Some)).map(|step| self.target(step)).collect()
    }

    /// The weights at `step`, or the result.
    pub fn target(&self, step: Option<u64>) -> Target {
        Target {
            run: self.run.clone(),
            step,
            method: self.method.clone(),
            best: step.is_some() && step == self.best,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run in this state, with checkpoints.
    pub fn candidate(run: &str, state: RunState, checkpoints: &[u64]) -> Candidate {
        Candidate {
            run: run.to_owned(),
            method: "lora r16".to_owned(),
            state,
            started: Timestamp::from_second(1_795_440_000).unwrap(),
            result: state == RunState::Finished,
            best: checkpoints.first().copied(),
            checkpoints: checkpoints.to_vec(),
        }
    }

    #[test]
    fn what_one_would_want_comes_first() {
        let names = |candidate: &Candidate| candidate.targets().iter().map(Target::name).collect::<Vec<_>>();
        let finished = candidate("a", RunState::Finished, &[100, 200, 300]);
        assert_eq!(
            names(&finished),
            ["lora r16 @ result", "lora r16 @ best", "lora r16 @ 300", "lora r16 @ 200"]
        );
        let mut live = candidate("b", RunState::Running, &[200, 300]);
        live.best = Some(100);
        assert_eq!(names(&live), ["lora r16 @ 300", "lora r16 @ 200"]);
        assert_eq!(names(&candidate("c", RunState::Running, &[])), [""; 0]);
    }
}
