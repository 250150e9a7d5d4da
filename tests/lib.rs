//! Harness for whole-program tests: the built programs, small projects to let them loose on, and patience.

mod command;
mod elf;
mod process;
mod programs;
mod project;
mod terminal;
mod wait;

pub use command::{Finished, Luthier, Running};
pub use elf::needed_libraries;
pub use process::{is_alive, send};
pub use programs::{engine, luthier, reference};
pub use project::{Project, tiny_rows};
pub use terminal::Terminal;
pub use wait::{PATIENCE, wait_for};
