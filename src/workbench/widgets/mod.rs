//! Reusable parts of the screen. They know roles of the theme and nothing of what the workbench is about.

pub mod chart;
pub mod gauge;
pub mod input;
pub mod list;
pub mod rule;
pub mod scroll;
pub mod sparkline;
pub mod table;
pub mod text;

pub use chart::{Chart, Mark, Series, Shape};
pub use input::TextLine;
pub use list::ListState;
pub use scroll::Scroll;
