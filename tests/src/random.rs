//! Random numbers that a printed seed repeats.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator (xorshift64*): good enough to choose moments.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The generator that this seed always gives.
    pub fn new(seed: u64) -> Self {
        // zero is the one state that xorshift never leaves
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    /// A moment between now and `longest` away.
    pub fn moment(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.below(longest.as_micros().max(1) as u64))
    }
}

/// The run's seed: `HULL_E2E_SEED`, or one of the clock's.
pub fn seed() -> u64 {
    std::env::var("HULL_E2E_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| u64::from(now.subsec_nanos()))
        })
}
