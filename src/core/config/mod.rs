//! `luthier.toml` and a run's `config.toml`: one table of keys ([`KEYS`]) drives reading, checking,
//! writing, editing while a run is live, the commented template and the reference.

mod choices;
mod sections;

pub use sections::*;
