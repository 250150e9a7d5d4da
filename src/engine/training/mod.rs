//! Training: the loop, one step, the optimizer, the schedule, and what surrounds them while a run lives.

mod alerts;
mod record;
mod schedule;
