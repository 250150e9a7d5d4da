//! How a command ends when it does not end well.

use std::process::ExitCode;

use luthier_core::config::ConfigError;
use luthier_core::data::DataError;
use luthier_core::eval::EvalError;
use luthier_core::model::ModelError;
use luthier_core::model::forecast::PlanError;
use luthier_core::runs::RunError;
use luthier_core::sweep::SweepError;

use crate::hub::HubError;

/// What a command gives back.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Exit status of a command that did not do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The work failed.
    Work = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// A check fell short.
    Check = 3,
    /// Interrupted by the person.
    Interrupted = 130,
}

/// Why a command did not do what it was asked to, in words for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Missing where nobody reads on: the other end of the pipe is gone.
    exit: Option<Exit>,
    /// Empty where everything has been said already.
    message: String,
}

impl Failure {
    /// The work failed.
    pub fn work(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Work), message: message.into() }
    }

    /// Bad usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Usage), message: message.into() }
    }

    /// A check fell short.
    pub fn check(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Check), message: message.into() }
    }

    /// The person interrupted the command.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { exit: Some(Exit::Interrupted), message: message.into() }
    }

    /// Nobody reads what the command prints any more. That is the reader's right: no complaint, status 0.
    pub fn unread() -> Self {
        Self { exit: None, message: String::new() }
    }

    /// Says what went wrong on stderr and gives the exit status.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            super::output::note(&self.announced());
        }
        self.exit.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8))
    }

    /// The message with `error: ` before it, unless it begins so already, as drawn problems do. An interruption
    /// is no error.
    fn announced(&self) -> String {
        if self.exit == Some(Exit::Interrupted) || self.message.starts_with("error") {
            self.message.clone()
        } else {
            format!("error: {}", self.message)
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        let named_wrongly = matches!(
            error,
            ModelError::NotFound { .. }
                | ModelError::HubName(_)
                | ModelError::NotInCache { .. }
                | ModelError::NoHubCache
                | ModelError::NotAModel { .. }
                | ModelError::Pickle { .. }
                | ModelError::AdapterPickle { .. }
                | ModelError::NotAnAdapter { .. }
                | ModelError::UnknownArchitecture { .. }
                | ModelError::Unsupported { .. }
        );
        if named_wrongly { Self::usage(error.to_string()) } else { Self::work(error.to_string()) }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Model(error) => error.into(),
            error if error.is_usage() => Self::usage(error.to_string()),
            error => Self::work(error.to_string()),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        match &error {
            EvalError::Io { .. } | EvalError::Export(_) => Self::work(error.to_string()),
            EvalError::Schema { .. } | EvalError::Objective { .. } | EvalError::Suite { .. } => {
                Self::usage(error.to_string())
            }
        }
    }
}

impl From<SweepError> for Failure {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Read { .. }
            | SweepError::Problems(_)
            | SweepError::Config(_)
            | SweepError::NoTrial(_) => Self::usage(error.to_string()),
            SweepError::Run(error) => error.into(),
            _ => Self::work(error.to_string()),
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        match &error {
            DataError::Rows(_) => Self::check(error.to_string()),
            DataError::Settings(_) | DataError::Template { .. } => Self::usage(error.to_string()),
            DataError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::usage(format!("{error}; check data.train and data.eval in luthier.toml"))
            }
            _ => Self::work(error.to_string()),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match &error {
            RunError::Config(_)
            | RunError::NotFound { .. }
            | RunError::Ambiguous { .. }
            | RunError::NotARun(_) => Self::usage(error.to_string()),
            // A run that says what is wrong with a configuration draws it over several lines.
            RunError::Answer(message) => Self::work(message),
            _ => Self::work(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_named_wrongly_is_bad_usage_and_what_is_broken_failed_work() {
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
    fn a_drawn_problem_is_not_announced_twice() {
        assert_eq!(Failure::usage("error: unknown key").announced(), "error: unknown key");
        assert_eq!(Failure::usage("no such run").announced(), "error: no such run");
        assert_eq!(Failure::interrupted("the run goes on").announced(), "the run goes on");
    }
}
