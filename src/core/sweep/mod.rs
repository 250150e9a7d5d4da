//! Searches over settings: the space and its samplers, the queue of trials, and the scheduler that starts a
//! run for each trial.
//!
//! The queue is one SQLite file, `luthier.db`, in the project folder. Any process may read and edit it; only
//! the scheduler, one process per project, starts runs.

mod error;
mod file;
mod goal;
mod queue;
mod sampler;
mod scheduler;
mod trial;

pub use error::SweepError;
pub use file::{Distribution, Sampler, SweepFile, TRIAL_LIMIT};
pub use goal::{Goal, GoalMetric};
pub use queue::{Cancelled, Place, QUEUE_FILE, Queue};
pub use sampler::{Settings, overrides};
pub use scheduler::{Scheduler, cancel, start_scheduler, trials_seen};
pub use trial::{Sweep, Trial, TrialState, label, rank};
