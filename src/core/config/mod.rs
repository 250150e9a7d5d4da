//! `luthier.toml` and a run's `config.toml`. Every setting is declared once, in `sections`; reading, checking, writing,
//! edits of a live run, the commented template and the reference are made from the declarations.
//!
//! A file is read in steps: `raw` parses text to a tree in which every value has its place, `resolve` finds the key of
//! each and lets `fields` read it, `rules` checks keys against each other. All [`Problems`] are reported together.

mod choices;
mod edit;
mod fields;
mod goal;
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
mod values;
mod watch;
mod write;

#[cfg(test)]
mod tests;

pub use choices::{
    Algorithm, Bias, Choice, Dtype, Format, MethodKind, ObjectiveKind, OnNan, Overflow, Reasoning, Recompute,
    Schedule, SystemRole, TrainOn, Variant,
};
pub use edit::{Edit, EditPlan, edit_plan};
pub use goal::{Goal, MissingSetting};
pub use keys::{Change, Key, key};
pub use kinds::{Bounds, Kind};
pub use load::{ConfigError, FILE_NAME};
pub use names::nearest;
pub use problems::{Problem, Problems, Source, headline};
pub use sections::{
    Config, DataSection, KEYS, MethodSection, ModelSection, ObjectiveSection, ReviewSection, TrainSection,
    UiSection,
};
pub use template::{reference, template};
pub use values::{DataSource, Device, EvalSource, Targets, Warmup};
pub use watch::Watcher;
pub use write::write_key;
