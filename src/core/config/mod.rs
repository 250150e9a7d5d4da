//! `luthier.toml` and a run's `config.toml`: one table of keys ([`KEYS`]) drives reading, checking,
//! writing, editing while a run is live, the commented template and the reference.
//!
//! The way of a file: `raw` turns text into a tree in which every value knows its place, `resolve` finds
//! the key of each and lets `fields` read it, `rules` weighs keys against each other, and whatever is wrong
//! on the way becomes one of [`Problems`]. A new setting is one field in `sections` and one row in `keys`.

mod choices;
mod edit;
mod fields;
mod keys;
mod kinds;
mod load;
mod names;
mod problems;
mod raw;
mod resolve;
mod rules;
mod sections;
mod template;
mod toml_text;
mod watch;
mod write;

#[cfg(test)]
mod tests;

pub use edit::{Edit, EditPlan, edit_plan};
pub use keys::{Change, KEYS, Key, key};
pub use kinds::{Bounds, Kind};
pub use load::{ConfigError, FILE_NAME};
pub use names::nearest;
pub use problems::{Problem, Problems, Source};
pub use sections::*;
pub use template::{reference, template};
pub use watch::Watcher;
pub use write::write_key;
