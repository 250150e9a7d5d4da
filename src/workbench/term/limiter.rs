//! When the next frame may be drawn.

use std::time::Duration;

/// Least time between two frames: thirty a second.
pub const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / 30);

/// Keeps frames apart; pure, times come from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameLimiter {
    last: Option<Duration>,
}

impl FrameLimiter {
    /// The earliest time, not before `now`, at which a frame may be drawn.
    pub fn earliest(&self, now: Duration) -> Duration {
        self.last.map_or(now, |last| now.max(last + INTERVAL))
    }

    /// A frame was drawn at `now`.
    pub fn drawn(&mut self, now: Duration) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_frame_and_one_after_a_pause_come_at_once() {
        let mut limiter = FrameLimiter::default();
        assert_eq!(limiter.earliest(Duration::ZERO), Duration::ZERO);
        limiter.drawn(Duration::ZERO);
        assert_eq!(limiter.earliest(Duration::from_millis(1)), INTERVAL);
        assert_eq!(limiter.earliest(Duration::from_secs(1)), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn frames_never_come_closer_than_the_interval(gaps in proptest::collection::vec(0u64..100, 1..50)) {
            let mut limiter = FrameLimiter::default();
            let mut now = Duration::ZERO;
            let mut last: Option<Duration> = None;
            for gap in gaps {
                now += Duration::from_millis(gap);
                let due = limiter.earliest(now);
                prop_assert!(due >= now && due <= now + INTERVAL);
                if let Some(last) = last {
                    prop_assert!(due >= last + INTERVAL);
                }
                limiter.drawn(due);
                last = Some(due);
                now = due;
            }
        }
    }
}
