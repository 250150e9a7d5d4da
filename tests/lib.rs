//! Harness of the whole-program tests: finds the built programs, makes small projects, and waits with
//! deadlines.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "any error here fails the test that caused it"
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
