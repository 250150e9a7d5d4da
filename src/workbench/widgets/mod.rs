//! Reusable parts of the screen. They know the theme's roles, and nothing about runs or data.

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
