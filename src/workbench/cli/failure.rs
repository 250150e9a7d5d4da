//! How a command fails: exit status and message.

use std::io::ErrorKind;
use std::process::ExitCode;

use luthier_core::data::DataError;
use luthier_core::eval::EvalError;
use luthier_core::model::ModelError;
use luthier_core::runs::RunError;
use luthier_core::sweep::SweepError;

use crate::hub::HubError;
use crate::project::{Refusal, Unserved};

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Exit status of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The work failed.
    Work = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// A check failed.
    Check = 3,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// Why a command failed, in words for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Missing where the reader closed the pipe.
    exit: Option<Exit>,
    /// Empty where nothing is left to print.
    message: String,
}

impl Failure {
    /// The same, with a sentence more.
    pub fn and(self, more: &str) -> Self {
        Self { message: format!("{}\n{more}", self.message), ..self }
    }

    pub fn work(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Work), message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Usage), message: message.into() }
    }

    pub fn check(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Check), message: message.into() }
    }

    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Interrupted), message: message.into() }
    }

    /// The reader closed the pipe: no message, status 0.
    pub fn unread() -> Self {
        Self { exit: None, message: String::new() }
    }

    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints the message on stderr and returns the exit status.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            super::output::note(&self.announced());
        }
        self.exit.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8))
    }

    /// The message prefixed with `error: `, unless it begins so already, as problems with carets do. An
    /// interruption is no error.
    fn announced(&self) -> String {
        if self.exit == Some(Exit::Interrupted) || self.message.starts_with("error") {
            self.message.clone()
        } else {
            format!("error: {}", self.message)
        }
    }
}

impl<E> From<E> for Failure
where
    Refusal: From<E>,
{
    fn from(error: E) -> Self {
        let refusal = Refusal::from(error);
        Self { exit: Some(Exit::of(&refusal)), message: refusal.to_string() }
    }
}

impl Exit {
    /// Bad usage where something was named or set wrongly, failed work where it is broken.
    fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Config(_)
            | Refusal::Fixed { .. }
            | Refusal::Plan(_)
            | Refusal::NoQueue
            | Refusal::NoCheckpoint(_)
            | Refusal::Exists(_)
            | Refusal::NotReplaced(_)
            | Refusal::Source(_)
            | Refusal::NoRow(_)
            | Refusal::NotEdited(_) => Self::Usage,
            Refusal::NotEvaluated
            | Refusal::Serving(Unserved::Cancelled)
            | Refusal::Hub(HubError::Cancelled) => Self::Interrupted,
            Refusal::Blocked(_) => Self::Check,
            Refusal::Model(error) | Refusal::Init(error) | Refusal::Hub(HubError::Model(error)) => {
                Self::of_model(error)
            }
            Refusal::Hub(error) if error.is_usage() => Self::Usage,
            Refusal::State { .. }
            | Refusal::NothingToMeasure(_)
            | Refusal::Serving(_)
            | Refusal::DataChanged
            | Refusal::DiskFull { .. }
            | Refusal::System { .. }
            | Refusal::Hub(_) => Self::Work,
            Refusal::Trial { refusal, .. } => Self::of(refusal),
            Refusal::Data(error) => match error {
                DataError::Rows(_) => Self::Check,
                DataError::Settings(_) | DataError::Template { .. } => Self::Usage,
                DataError::Read { source, .. } if source.kind() == ErrorKind::NotFound => Self::Usage,
                _ => Self::Work,
            },
            Refusal::Eval(error) | Refusal::Suite(error) => match error {
                EvalError::Io { .. } | EvalError::Export(_) => Self::Work,
                _ => Self::Usage,
            },
            Refusal::Run(error) | Refusal::Sweep(SweepError::Run(error)) => match error {
                RunError::Config(_)
                | RunError::NotFound { .. }
                | RunError::Ambiguous { .. }
                | RunError::NotARun(_) => Self::Usage,
                _ => Self::Work,
            },
            Refusal::Sweep(error) => match error {
                SweepError::Read { .. }
                | SweepError::Problems(_)
                | SweepError::Config(_)
                | SweepError::NoTrial(_) => Self::Usage,
                _ => Self::Work,
            },
        }
    }

    fn of_model(error: &ModelError) -> Self {
        match error {
            ModelError::NotFound { .. }
            | ModelError::HubName(_)
            | ModelError::NotInCache { .. }
            | ModelError::NoHubCache
            | ModelError::NotAModel { .. }
            | ModelError::Pickle { .. }
            | ModelError::AdapterPickle { .. }
            | ModelError::NotAnAdapter { .. }
            | ModelError::UnknownArchitecture { .. }
            | ModelError::Unsupported { .. } => Self::Usage,
            _ => Self::Work,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_bad_usage_and_a_damaged_file_is_failed_work() {
        let path = std::path::Path::new("m.gguf");
        let missing = Failure::from(ModelError::NotFound { path: path.into() });
        assert_eq!(missing.exit, Some(Exit::Usage));
        let damaged = ModelError::Damaged { file: path.into(), problem: "cut short".to_owned() };
        assert_eq!(Failure::from(damaged).exit, Some(Exit::Work));
    }

    #[test]
    fn a_runs_answer_keeps_its_lines() {
        let answered = Failure::from(RunError::Answer("error: bad\n  ^^^".to_owned()));
        assert_eq!(answered, Failure::work("error: bad\n  ^^^"));
    }

    #[test]
    fn a_message_gets_one_error_prefix() {
        assert_eq!(Failure::usage("error: unknown key").announced(), "error: unknown key");
        assert_eq!(Failure::usage("no such run").announced(), "error: no such run");
        assert_eq!(Failure::interrupted("the run goes on").announced(), "the run goes on");
    }
}
