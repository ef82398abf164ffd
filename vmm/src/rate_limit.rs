//! A limit on how often something is logged, for messages that the guest can cause at will.

use std::time::{Duration, Instant};

/// Lets a few messages through in each stretch of time, and counts those that it holds back.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    period: Duration,
    started: Instant,
    used: u32,
    held_back: u64,
}

impl RateLimit {
    /// Lets `burst` messages through in each `period`.
    pub fn new(burst: u32, period: Duration) -> Self {
        Self {
            burst,
            period,
            started: Instant::now(),
            used: 0,
            held_back: 0,
        }
    }

    /// Whether a message may be logged now: `Some` with how many were held back since the last one
    /// that was, or `None` to hold this one back.
    pub fn pass(&mut self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    /// Logs something that the guest can cause, not too often. `device` is whose warning it is.
    pub fn warn(&mut self, device: &str, message: std::fmt::Arguments<'_>) {
        match self.pass() {
            Some(0) => log::warn!("{device}: {message}"),
            Some(held_back) => {
                log::warn!("{device}: {message} ({held_back} messages held back)");
            }
            None => {}
        }
    }

    fn pass_at(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.started) >= self.period {
            self.started = now;
            self.used = 0;
        }
        if self.used < self.burst {
            self.used += 1;
            return Some(std::mem::take(&mut self.held_back));
        }
        self.held_back = self.held_back.saturating_add(1);
        None
    }
}

impl Default for RateLimit {
    /// Ten messages a minute.
    fn default() -> Self {
        Self::new(10, Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_of_in_the_next_period() {
        let mut limit = RateLimit::new(2, Duration::from_secs(1));
        let start = limit.started;
        assert_eq!(limit.pass_at(start), Some(0));
        assert_eq!(limit.pass_at(start), Some(0));
        assert_eq!(limit.pass_at(start), None);
        assert_eq!(limit.pass_at(start), None);
        assert_eq!(limit.pass_at(start + Duration::from_secs(1)), Some(2));
    }
}
