//! Waits for conditions, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// The longest wait. Far more than anything needs, so that only a condition that never comes true fails a
/// test.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Interval between checks of a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` returns a value. Panics with `what` and the last description after the deadline.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => {
                assert!(Instant::now() < deadline, "timed out waiting for {what}; last seen: {instead}");
                thread::sleep(LOOK);
            }
        }
    }
}
