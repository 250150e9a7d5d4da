//! `luthier completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Outcome;
use super::output;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  luthier completions bash > ~/.local/share/bash-completion/completions/luthier"
)]
pub struct Arguments {
    /// Which shell
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "luthier", &mut script);
    output::raw(&script)
}
