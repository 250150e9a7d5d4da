//! `luthier wait`: until a run is over.

use clap::Args;

use super::failure::{Failure, Outcome};
use super::follow::{Ending, follow};
use super::interrupts::Interrupts;
use super::run::Which;
use super::train::conclude;

/// Wait until a run is over: exit status 0 if it finished or was stopped, 1 if it failed or was lost
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  luthier wait latest -C tickets && luthier eval latest -C tickets")]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
}

pub fn run(arguments: &Arguments, interrupts: &Interrupts) -> Outcome {
    let run = arguments.which.find()?;
    interrupts.hold();
    match follow(&run, interrupts, &mut |_| Ok(()))? {
        Ending::Left => Err(Failure::interrupted(format!("run {} goes on", run.id()))),
        Ending::Over(status) => conclude(&run, &status, None, false),
    }
}
