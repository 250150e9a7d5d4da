//! Waiting for what must come, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take: far more than it does, so that only what never comes fails a test.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` finds something; panics with `what` and the last description once patience ends.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => {
                assert!(Instant::now() < deadline, "waited in vain for {what}; at last: {instead}");
                thread::sleep(LOOK);
            }
        }
    }
}
