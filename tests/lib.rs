//! Harness for whole-program tests: the built programs, small projects to let them loose on, and patience.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "whatever goes wrong here fails the test that met it"
)]

mod command;
mod elf;
pub mod hub_server;
mod process;
mod programs;
mod project;
mod terminal;
mod wait;

pub use command::{Finished, Luthier, Running};
pub use elf::needed_libraries;
pub use process::{is_alive, send};
pub use programs::{engine, luthier, reference};
pub use project::{Project, json_lines, tiny_rows};
pub use terminal::Terminal;
pub use wait::{PATIENCE, wait_for};
