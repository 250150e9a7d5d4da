//! Which actions a run allows in each state, and why the others are refused.

use super::status::{RunState, Status};

/// What a user can do with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// Wait between two steps.
    Pause,
    /// Continue after a pause, or from the newest checkpoint.
    Resume,
    Checkpoint,
    Stop,
    /// Change a setting.
    Edit,
    /// Run an evaluation now.
    Evaluate,
    /// Answer a prompt with the current weights.
    Sample,
}

/// How a run is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeWay {
    /// Its process is paused: ask it over the control socket.
    Ask,
    /// It has no process: start the engine again. It continues from the newest checkpoint that verifies, or
    /// from the beginning if there is none.
    Start {
        /// Step of the newest checkpoint, unverified.
        from_step: Option<u64>,
    },
}

impl Action {
    /// Whether a run with this status allows the action. The error says why not, for the user.
    pub fn check(self, status: &Status, newest_checkpoint: Option<u64>) -> Result<(), &'static str> {
        match self {
            Self::Resume => resume_way(status, newest_checkpoint).map(|_| ()),
            Self::Pause => match status.state {
                RunState::Paused => Err("it is already paused"),
                RunState::Starting => Err("it is still preparing; pause it once it is training"),
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

/// How a run with this status is resumed. The error says why it cannot be, for the user.
pub fn resume_way(status: &Status, newest_checkpoint: Option<u64>) -> Result<ResumeWay, &'static str> {
    match status.state {
        RunState::Paused => Ok(ResumeWay::Ask),
        RunState::Starting | RunState::Running => Err("it is already running"),
        RunState::Stopping => Err("it is stopping; resume it once it has stopped"),
        RunState::Finished => {
            Err("it reached its planned end; start a new run, with more epochs or another seed")
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
    fn a_running_run_allows_everything_but_resume() {
        for action in Action::iter() {
            let answer = action.check(&status(RunState::Running), Some(10));
            assert_eq!(answer.is_ok(), action != Action::Resume, "{action}: {answer:?}");
        }
    }

    #[test]
    fn a_run_that_ended_allows_only_resume() {
        for state in [RunState::Stopped, RunState::Failed, RunState::Lost] {
            for action in Action::iter() {
                let answer = action.check(&status(state), Some(10));
                assert_eq!(answer.is_ok(), action == Action::Resume, "{state} {action}: {answer:?}");
            }
        }
        assert!(Action::iter().all(|action| action.check(&status(RunState::Finished), Some(10)).is_err()));
    }

    #[test]
    fn a_paused_run_is_asked_and_a_lost_one_restarted() {
        assert_eq!(resume_way(&status(RunState::Paused), Some(3)), Ok(ResumeWay::Ask));
        assert_eq!(resume_way(&status(RunState::Lost), Some(3)), Ok(ResumeWay::Start { from_step: Some(3) }));
        assert_eq!(resume_way(&status(RunState::Lost), None), Ok(ResumeWay::Start { from_step: None }));
    }
}
