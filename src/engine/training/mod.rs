//! Training: the loop, one step, the optimizer, the schedule, and what surrounds them while a run lives.

pub mod adamw;
pub mod alerts;
pub mod batch;
pub mod control;
pub mod edits;
pub mod meter;
#[cfg(test)]
mod parity;
pub mod record;
pub mod schedule;
pub mod state;
pub mod step;
