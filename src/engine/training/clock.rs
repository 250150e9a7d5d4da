//! The time in which this process ran.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a thread of its own looks at the time.
const INTERVAL: Duration = Duration::from_millis(250);

/// After a longer gap between two looks the process had been stopped: else the thread would have looked meanwhile, also on
/// a machine that is much too busy.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// Measures time without that in which the process was stopped, by SIGSTOP or with its container. What remains of a stop of
/// more than 2 s is a quarter of a second; a shorter one counts as running. While the machine is suspended, `Instant` does
/// not go on either.
#[derive(Debug, Clone)]
pub struct Clock {
    looks: Arc<Mutex<Looks>>,
}

impl Clock {
    pub fn start() -> Self {
        let looks = Looks { ran: Duration::ZERO, last: Instant::now(), longest_gap: LONGEST_GAP };
        let clock = Self { looks: Arc::new(Mutex::new(looks)) };
        let looks = Arc::downgrade(&clock.looks);
        let looking = thread::Builder::new().name("clock".into()).spawn(move || {
            while let Some(looks) = looks.upgrade() {
                Self { looks }.ran();
                thread::sleep(INTERVAL);
            }
        });
        if let Err(error) = looking {
            tracing::warn!(%error, "no thread for the clock: time in which the process is stopped counts");
            clock.with(|looks| looks.longest_gap = Duration::MAX);
        }
        clock
    }

    /// How long the process has run since the clock was started.
    pub fn ran(&self) -> Duration {
        self.with(|looks| looks.look(Instant::now()))
    }

    /// How long it has run since it had run for `began`.
    pub fn since(&self, began: Duration) -> Duration {
        self.ran().saturating_sub(began)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Looks) -> T) -> T {
        work(&mut self.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Looks {
    ran: Duration,
    last: Instant,
    longest_gap: Duration,
}

impl Looks {
    /// Whoever looks first after a stop leaves it out, so that no thread sees it.
    fn look(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.last);
        self.ran += if gap > self.longest_gap { INTERVAL } else { gap };
        self.last = now;
        self.ran
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_left_out_and_a_busy_machine_is_not() {
        let began = Instant::now();
        let mut looks = Looks { ran: Duration::ZERO, last: began, longest_gap: LONGEST_GAP };
        let mut at = |milliseconds| looks.look(began + Duration::from_millis(milliseconds)).as_millis();
        assert_eq!((at(250), at(2250), at(2300)), (250, 2250, 2300));
        let stopped = 2300 + 3_600_000;
        assert_eq!((at(stopped), at(stopped), at(stopped + 100)), (2550, 2550, 2650));
    }

    #[test]
    fn time_goes_on_as_long_as_the_process_runs() {
        let (began, clock) = (Instant::now(), Clock::start());
        while clock.ran() < Duration::from_millis(5) {
            thread::yield_now();
        }
        assert!(clock.ran() <= began.elapsed());
    }
}
