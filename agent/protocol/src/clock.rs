//! How the guest learns the host's wall clock: on one connection the host says when its clock was set, and
//! from time to time that it may have drifted from the guest's, and the agent asks for the time.
//!
//! The agent first says [`NEWS`]: that it listens. It asks with one byte, a number that it chooses, and is
//! answered with a [`Reading`] of that number. By the number it knows how old a reading is at most, and so
//! what it is worth.

use std::time::Duration;

/// The length of a reading, in bytes.
pub const LENGTH: usize = 9;

/// The number of a reading that nobody asked for: the host's clock may differ from the guest's.
pub const NEWS: u8 = 0;

/// The host's wall clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The question's, or [`NEWS`].
    pub number: u8,
    /// Since the epoch, in steps of a nanosecond, up to the year 2554.
    pub time: Duration,
}

impl Reading {
    /// The record of this reading: its number, and the nanoseconds as a little-endian u64.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let nanoseconds = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        let mut record = [0; LENGTH];
        record[0] = self.number;
        record[1..].copy_from_slice(&nanoseconds.to_le_bytes());
        record
    }

    /// The reading in a record.
    #[must_use]
    pub fn decode([number, nanoseconds @ ..]: [u8; LENGTH]) -> Self {
        Self {
            number,
            time: Duration::from_nanos(u64::from_le_bytes(nanoseconds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_read_as_it_was_written() {
        for time in [Duration::ZERO, Duration::new(1_800_000_000, 7)] {
            let reading = Reading { number: 9, time };
            assert_eq!(Reading::decode(reading.encode()), reading);
        }
        let late = Reading {
            number: NEWS,
            time: Duration::MAX,
        };
        assert_eq!(
            Reading::decode(late.encode()).time,
            Duration::from_nanos(u64::MAX)
        );
    }
}
