//! What can be done with a run in which state, and why not.

use super::status::{RunState, Status};

/// What a person can do with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// Hold still between two steps.
    Pause,
    /// Go on: after a pause, or from the newest checkpoint.
    Resume,
    /// Write a checkpoint now.
    Checkpoint,
    /// End it.
    Stop,
    /// Change a setting.
    Edit,
    /// Evaluate now.
    Evaluate,
    /// Answer a prompt with the weights of now.
    Sample,
}

/// How a run is made to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeWay {
    /// Its process holds still: ask it over the control socket.
    Ask,
    /// No process works on it: start the engine again, which goes on from the newest checkpoint that
    /// verifies, or from the beginning where there is none.
    Start {
        /// Step of the newest checkpoint, unverified.
        from_step: Option<u64>,
    },
}

impl Action {
    /// Whether this can be done with a run that stands so; an error says why not, in words for the user.
    pub fn check(self, status: &Status, newest_checkpoint: Option<u64>) -> Result<(), &'static str> {
        match self {
            Self::Resume => resume_way(status, newest_checkpoint).map(|_| ()),
            Self::Pause => match status.state {
                RunState::Paused => Err("it is paused already"),
                RunState::Starting => Err("it is still preparing; pause it once it makes steps"),
                _ => live(status.state),
            },
            Self::Stop | Self::Edit => live(status.state),
            Self::Checkpoint | Self::Evaluate | Self::Sample => match status.state {
                RunState::Starting => Err("it is still preparing and has no trained weights yet"),
                _ => live(status.state),
            },
        }
    }
}

fn live(state: RunState) -> Result<(), &'static str> {
    match state {
        RunState::Queued => Err("it has not started yet"),
        RunState::Starting | RunState::Running | RunState::Paused => Ok(()),
        RunState::Stopping => Err("it is stopping already"),
        RunState::Finished => Err("it is finished"),
        RunState::Stopped => Err("it was stopped"),
        RunState::Failed => Err("it failed; its process is gone"),
        RunState::Lost => Err("its process is gone; resume it first"),
    }
}

/// How a run that stands so is made to go on; an error says why it cannot, in words for the user.
pub fn resume_way(status: &Status, newest_checkpoint: Option<u64>) -> Result<ResumeWay, &'static str> {
    match status.state {
        RunState::Paused => Ok(ResumeWay::Ask),
        RunState::Starting | RunState::Running => Err("it is running already"),
        RunState::Stopping => Err("it is stopping; resume it once it has stopped"),
        RunState::Finished => {
            Err("it came to its planned end; start a new run, with more epochs or another seed")
        }
        RunState::Queued | RunState::Stopped | RunState::Failed | RunState::Lost => {
            Ok(ResumeWay::Start { from_step: newest_checkpoint })
        }
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    fn status(state: RunState) -> Status {
        Status { state, ..Status::default() }
    }

    #[test]
    fn a_running_run_takes_everything_but_resume() {
        for action in Action::iter() {
            let answer = action.check(&status(RunState::Running), Some(10));
            assert_eq!(answer.is_ok(), action != Action::Resume, "{action}: {answer:?}");
        }
    }

    #[test]
    fn what_is_over_takes_nothing_but_resume() {
        for state in [RunState::Stopped, RunState::Failed, RunState::Lost] {
            for action in Action::iter() {
                let answer = action.check(&status(state), Some(10));
                assert_eq!(answer.is_ok(), action == Action::Resume, "{state} {action}: {answer:?}");
            }
        }
        assert!(Action::iter().all(|action| action.check(&status(RunState::Finished), Some(10)).is_err()));
    }

    #[test]
    fn a_paused_run_is_asked_and_a_lost_one_started_from_its_checkpoint() {
        assert_eq!(resume_way(&status(RunState::Paused), Some(3)), Ok(ResumeWay::Ask));
        assert_eq!(resume_way(&status(RunState::Lost), Some(3)), Ok(ResumeWay::Start { from_step: Some(3) }));
        assert_eq!(resume_way(&status(RunState::Lost), None), Ok(ResumeWay::Start { from_step: None }));
    }
}
