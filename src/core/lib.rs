//! What the Luthier engine and workbench share: configuration, models as files, data, runs, sweeps and
//! judgement. Knows neither torch nor terminal.

pub mod algorithms;
pub mod config;
pub mod data;
pub mod eval;
pub mod files;
pub mod hash;
pub mod hub;
pub mod json;
pub mod machine;
pub mod model;
pub mod panics;
pub mod paths;
pub mod plan;
pub mod random;
pub mod runs;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod text;
pub mod units;
