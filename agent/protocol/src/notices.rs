//! What the VM process sends to the agent without being asked, on one connection: that the host's clock was set or
//! may have drifted from the guest's, and the signals that were sent to the VM process, which are meant for the
//! container. On the same connection the agent asks for the host's time.
//!
//! The agent first sends [`LISTENING`]. It asks for the time with one byte, a number that it chooses, and the answer
//! has the same number. So the agent knows which question is answered, and how old the answer is at most.

use std::time::Duration;

/// The length of a notice, in bytes.
pub const LENGTH: usize = 9;

/// The agent's first byte.
pub const LISTENING: u8 = 0;

/// The largest number of a question; the smallest is 1.
pub const MAX_QUESTION: u8 = 254;

const CLOCK_CHANGED: u8 = 0;
const SIGNAL: u8 = 255;

/// One message from the VM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The host's wall clock may differ from the guest's.
    ClockChanged,
    /// The host's wall clock at one moment.
    Time {
        /// The question's number, 1 to [`MAX_QUESTION`].
        question: u8,
        /// Since the epoch, in nanoseconds, up to the year 2554.
        time: Duration,
    },
    /// The VM process was sent this signal (signal(7)).
    Signal(i32),
}

impl Notice {
    /// Its record: a byte with the kind of notice, or the question's number, and a little-endian u64 with the
    /// nanoseconds, or the signal.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let (what, value) = match self {
            Self::ClockChanged => (CLOCK_CHANGED, 0),
            Self::Time { question, time } => {
                let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                (question.clamp(1, MAX_QUESTION), nanoseconds)
            }
            Self::Signal(signal) => (SIGNAL, u64::try_from(signal).unwrap_or(0)),
        };
        let mut record = [what; LENGTH];
        record[1..].copy_from_slice(&value.to_le_bytes());
        record
    }

    /// The notice in a record.
    #[must_use]
    pub fn decode([what, value @ ..]: [u8; LENGTH]) -> Self {
        let value = u64::from_le_bytes(value);
        match what {
            CLOCK_CHANGED => Self::ClockChanged,
            SIGNAL => Self::Signal(i32::try_from(value).unwrap_or(i32::MAX)),
            question => Self::Time {
                question,
                time: Duration::from_nanos(value),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_written() {
        let time = |question, time| Notice::Time { question, time };
        let notices = [
            Notice::ClockChanged,
            time(1, Duration::ZERO),
            time(MAX_QUESTION, Duration::new(1_800_000_000, 7)),
            Notice::Signal(15),
            Notice::Signal(64),
        ];
        for notice in notices {
            assert_eq!(Notice::decode(notice.encode()), notice);
        }
        let late = Notice::decode(time(9, Duration::MAX).encode());
        assert_eq!(late, time(9, Duration::from_nanos(u64::MAX)));
    }
}
