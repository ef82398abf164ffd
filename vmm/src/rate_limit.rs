//! A rate limit for what the guest can cause at will: log messages, and work for the host's kernel.

use std::time::{Duration, Instant};

/// Allows a number of messages, or whatever it limits, in each period, and counts those that it suppresses.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    period: Duration,
    started: Instant,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    /// Allows `burst` messages in each `period`.
    pub fn new(burst: u32, period: Duration) -> Self {
        Self {
            burst,
            period,
            started: Instant::now(),
            used: 0,
            suppressed: 0,
        }
    }

    /// Whether a message may be logged now: `Some` with the number of messages suppressed since the
    /// last one that was logged, or `None` if this one is to be suppressed.
    pub fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    /// Logs a warning within the limit. `device` is the device that it is about.
    pub fn warn(&mut self, device: &str, message: std::fmt::Arguments<'_>) {
        match self.allow() {
            Some(0) => log::warn!("{device}: {message}"),
            Some(suppressed) => {
                log::warn!("{device}: {message} ({suppressed} messages suppressed)");
            }
            None => {}
        }
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.started) >= self.period {
            self.started = now;
            self.used = 0;
        }
        if self.used < self.burst {
            self.used += 1;
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed = self.suppressed.saturating_add(1);
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
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.allow_at(start + Duration::from_secs(1)), Some(2));
    }
}
