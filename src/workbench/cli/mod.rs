//! The command line: one file per subcommand.

mod chat;
mod completions;
mod convert;
mod data;
mod doctor;
mod edit;
mod eval;
mod failure;
mod follow;
mod interrupts;
mod model;
mod new;
mod output;
mod plan;
mod preflight;
mod project;
mod quarantine;
mod queue;
mod review;
mod run;
mod runs;
mod sample;
mod scheduler;
mod sweep;
mod train;
mod wait;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use luthier_core::config::nearest;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use failure::{Failure, Outcome};
use interrupts::Interrupts;

use crate::project::Host;

/// The variable that sets the log level, as in `LUTHIER_LOG=debug`.
const LOG_VARIABLE: &str = "LUTHIER_LOG";

const EXAMPLES: &str = "\
Examples:
  luthier new tickets                 start a project in the folder `tickets`
  luthier tickets                     open it in the workbench
  luthier data check -C tickets       look at its data before training
  luthier train -C tickets --set train.learning_rate=1e-4

Exit status: 0 done, 1 the work failed, 2 bad usage or configuration, 3 a check failed,
130 interrupted. Logs go to stderr; LUTHIER_LOG=debug shows more. LUTHIER_KERNELS=off runs
CUDA without our own kernels, to compare.";

/// A terminal workbench for fine-tuning language models on the machine you are logged in to.
#[derive(Debug, Parser)]
#[command(name = "luthier", bin_name = "luthier", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Project folder to open in the workbench [default: the current folder]
    #[arg(value_name = "PROJECT")]
    project: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::Arguments),
    Doctor(doctor::Arguments),
    Model(model::Arguments),
    Data(data::Arguments),
    Plan(plan::Arguments),
    Train(train::Arguments),
    Runs(runs::Arguments),
    Run(run::Arguments),
    Wait(wait::Arguments),
    Eval(eval::Arguments),
    Chat(chat::Arguments),
    Sweep(sweep::Arguments),
    Queue(queue::Arguments),
    Review(review::Arguments),
    Scheduler(scheduler::Arguments),
    Completions(completions::Arguments),
}

impl Command {
    fn run(self, host: &Host, interrupts: &Interrupts) -> Outcome {
        match self {
            Self::New(arguments) => new::run(&arguments),
            Self::Doctor(arguments) => doctor::run(&arguments),
            Self::Model(arguments) => model::run(&arguments),
            Self::Data(arguments) => data::run(&arguments),
            Self::Plan(arguments) => plan::run(&arguments, host),
            Self::Train(arguments) => train::run(&arguments, host, interrupts),
            Self::Runs(arguments) => runs::run(&arguments),
            Self::Run(arguments) => run::run(&arguments, host),
            Self::Wait(arguments) => wait::run(&arguments, interrupts),
            Self::Eval(arguments) => eval::run(&arguments, host, interrupts),
            Self::Chat(arguments) => chat::run(&arguments, interrupts),
            Self::Sweep(arguments) => sweep::run(&arguments, host),
            Self::Queue(arguments) => queue::run(&arguments, host),
            Self::Scheduler(arguments) => scheduler::run(&arguments),
            Self::Review(arguments) => review::run(&arguments),
            Self::Completions(arguments) => completions::run(&arguments),
        }
    }
}

/// Runs `luthier` as its command line says.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            if error.use_stderr() {
                // It quotes the arguments, which may come from anywhere.
                output::note(error.render().to_string().trim_end());
            } else {
                // Help and version go to stdout; a closed one is ignored.
                let _ = error.print();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match arguments.command {
        Some(command) => {
            start_log();
            Interrupts::watch()
                .map_err(|error| Failure::work(format!("cannot watch for ctrl-C: {error}")))
                .and_then(|interrupts| command.run(&Host::THIS, &interrupts))
                .map(|()| ExitCode::SUCCESS)
        }
        None => open(arguments.project.as_deref()),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

/// Runs a command line in this process; an error is what it complains of.
#[cfg(test)]
pub(crate) fn attempt<'a>(words: impl IntoIterator<Item = &'a str>, host: &Host) -> Result<(), String> {
    let arguments = Arguments::try_parse_from(std::iter::once("luthier").chain(words)).unwrap();
    let interrupts = Interrupts::watch().unwrap();
    let outcome = arguments.command.unwrap().run(host, &interrupts);
    outcome.map_err(|failure| failure.message().to_owned())
}

fn start_log() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    // ureq logs requests, with the token in them, at its finest level.
    let without_requests =
        filter_fn(|seen| *seen.level() < Level::TRACE || !seen.target().starts_with("ureq"));
    // The report of a line that could not be written panics if that cannot be written either; the scheduler's log may be
    // on a full disk.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    let lines = lines.log_internal_errors(false);
    tracing_subscriber::registry().with(filter).with(without_requests).with(lines).init();
}

/// Opens the workbench.
fn open(project: Option<&Path>) -> Outcome<ExitCode> {
    let project = project.unwrap_or(Path::new("."));
    if !project.exists() {
        return Err(no_project(project));
    }
    crate::open(project).map_err(|error| match error.exit_status() {
        2 => Failure::usage(error.to_string()),
        _ => Failure::work(error.to_string()),
    })
}

/// Why a folder cannot be opened; a word that is no folder may be a mistyped command.
fn no_project(project: &Path) -> Failure {
    let shown = project.display();
    let names: Vec<String> = Arguments::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    let word = project.to_str().filter(|word| !word.contains('/')).unwrap_or_default();
    match nearest(word, names.iter().map(String::as_str)) {
        Some(name) => Failure::usage(format!("there is no folder `{shown}`; did you mean `luthier {name}`?")),
        None => Failure::usage(format!(
            "there is no folder `{shown}`; `luthier new {shown}` starts a project there"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_line_of_help_and_an_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no description");
            let subcommands: Vec<_> = command.get_subcommands().collect();
            if subcommands.is_empty() && !command.is_hide_set() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{name} has no example");
                assert!(help.contains("luthier "), "{name}'s example is no command");
            }
            for subcommand in subcommands {
                check(subcommand);
            }
        }
        check(&Arguments::command());
    }
}
