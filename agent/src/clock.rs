//! Keeps the guest's wall clock in step with the host's. The host sends a notice when the two may differ.
//!
//! The offset is measured by asking the host for its time: it read its clock at some moment between question
//! and answer, so half of the round trip is what the offset may be wrong by. On a busy machine that is much, so
//! several questions are asked, and an offset within the uncertainty isn't corrected.
//!
//! Only the wall clock is set. The guest's CLOCK_MONOTONIC stops while the host is suspended, as a host's does.
//! So does its CLOCK_BOOTTIME, unlike a host's: the guest's kernel counts only suspends of its own.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::notices::Notices;
use crate::sys;

/// How many questions are asked for one measurement at most.
const MAX_QUESTIONS: u8 = 4;

/// After an answer within this time no further question is asked.
const GOOD_ROUND_TRIP: Duration = Duration::from_millis(1);

/// If the clock is off by more, it is set, not slewed: the kernel takes 20 seconds to slew by this.
const MAX_SLEW: Duration = Duration::from_millis(10);

/// How far the host's clock is ahead of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    /// Nanoseconds; negative if it is behind.
    nanoseconds: i128,
    /// What the offset may be wrong by.
    uncertainty: Duration,
}

/// What is to be done about an offset.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    Nothing,
    /// By so many nanoseconds.
    Slew(i64),
    /// By so many nanoseconds.
    Set(i128),
}

impl Offset {
    /// From the host's time at some moment during the last `round_trip`.
    fn from_answer(time: Duration, round_trip: Duration) -> Self {
        let uncertainty = round_trip / 2;
        let then = time + uncertainty;
        Self {
            nanoseconds: i128::try_from(then.as_nanos()).unwrap_or(i128::MAX) - now(),
            uncertainty,
        }
    }

    fn correction(self) -> Correction {
        let size = self.nanoseconds.unsigned_abs();
        match i64::try_from(self.nanoseconds) {
            _ if size <= self.uncertainty.as_nanos() => Correction::Nothing,
            Ok(nanoseconds) if size <= MAX_SLEW.as_nanos() => Correction::Slew(nanoseconds),
            _ => Correction::Set(self.nanoseconds),
        }
    }
}

/// Follows the host's clock until the connection ends.
pub async fn follow(mut notices: Notices) {
    if let Err(e) = try_follow(&mut notices).await {
        log::warn!("the guest's clock no longer follows the host's: {e}");
    }
}

async fn try_follow(notices: &mut Notices) -> io::Result<()> {
    loop {
        notices.clock_changed().await?;
        // Without a time limit: nobody waits for this, and a slow answer only has a large uncertainty.
        correct(measure(notices).await?.correction())?;
    }
}

/// Asks the host several times, and uses the answer with the shortest round trip. If the host's clock was
/// changed meanwhile, earlier answers are discarded.
async fn measure(notices: &mut Notices) -> io::Result<Offset> {
    let mut best: Option<Offset> = None;
    for number in 1..=MAX_QUESTIONS {
        let asked = Instant::now();
        let answer = notices.ask_time(number).await?;
        let offset = Offset::from_answer(answer.time, asked.elapsed());
        if answer.changed || best.is_none_or(|best| offset.uncertainty < best.uncertainty) {
            best = Some(offset);
        }
        if offset.uncertainty <= GOOD_ROUND_TRIP / 2 {
            break;
        }
    }
    best.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The guest's wall clock, in nanoseconds since the epoch.
fn now() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn correct(correction: Correction) -> io::Result<()> {
    match correction {
        Correction::Nothing => Ok(()),
        Correction::Slew(nanoseconds) => sys::slew_clock(nanoseconds / 1000),
        Correction::Set(nanoseconds) => {
            log::info!("step the clock by {} ms", nanoseconds / 1_000_000);
            set(now().saturating_add(nanoseconds))
        }
    }
}

/// Sets the clock to so many nanoseconds since the epoch.
fn set(to: i128) -> io::Result<()> {
    let seconds = i64::try_from(to.div_euclid(1_000_000_000));
    let time = Timespec {
        tv_sec: seconds.map_err(|_| io::ErrorKind::InvalidData)?,
        tv_nsec: to.rem_euclid(1_000_000_000) as i64,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notices::tests::connection;
    use hull_protocol::notices::Notice;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const MILLISECOND: i128 = 1_000_000;

    #[test]
    fn an_uncertain_offset_is_ignored_and_a_large_one_is_set() {
        let correction = |milliseconds, uncertainty| {
            let offset = Offset {
                nanoseconds: milliseconds * MILLISECOND,
                uncertainty: Duration::from_millis(uncertainty),
            };
            offset.correction()
        };
        assert_eq!(correction(0, 0), Correction::Nothing);
        assert_eq!(correction(-40, 40), Correction::Nothing);
        assert_eq!(correction(-7, 1), Correction::Slew(-7_000_000));
        assert_eq!(correction(40, 1), Correction::Set(40 * MILLISECOND));
        let hour = 3_600_000;
        assert_eq!(correction(-hour, 900), Correction::Set(-hour * MILLISECOND));
    }

    /// Measures the offset from a host that sends `before`, and answers each question with the notices that
    /// `answer` makes of its number and the guest's time.
    async fn measured(
        answer: impl AsyncFn(u8, Duration) -> Vec<Notice>,
        before: &[Notice],
    ) -> Offset {
        let (mut notices, mut host, _signals) = connection();
        let answering = async {
            for notice in before {
                host.write_all(&notice.encode()).await.expect("write");
            }
            let mut question = [0];
            while host.read_exact(&mut question).await.is_ok() {
                let now = Duration::from_nanos(u64::try_from(now()).expect("after 1970"));
                for notice in answer(question[0], now).await {
                    host.write_all(&notice.encode()).await.expect("write");
                }
            }
        };
        let measuring = async {
            let offset = measure(&mut notices).await;
            drop(notices);
            offset.expect("an offset")
        };
        tokio::join!(measuring, answering).0
    }

    #[track_caller]
    fn assert_is(offset: Offset, seconds: i128) {
        let wrong = (offset.nanoseconds - seconds * 1000 * MILLISECOND).unsigned_abs();
        assert!(wrong <= offset.uncertainty.as_nanos() + 1000, "{offset:?}");
    }

    #[tokio::test]
    async fn an_old_answer_is_not_taken_for_the_time() {
        let old = Notice::Time {
            question: 4,
            time: Duration::from_secs(1),
        };
        let an_hour_ahead = async |question, now| {
            let time = now + Duration::from_secs(3600);
            vec![Notice::Time { question, time }]
        };
        let before = [Notice::ClockChanged, old, Notice::ClockChanged];
        assert_is(measured(an_hour_ahead, &before).await, 3600);
    }

    #[tokio::test]
    async fn an_answer_from_before_a_clock_change_is_discarded() {
        let changed_after_the_first = async |question, now| {
            // The first answer is the fastest, yet too slow to be the only one.
            let (delay, ahead) = if question == 1 { (2, 3600) } else { (20, 0) };
            tokio::time::sleep(GOOD_ROUND_TRIP * delay).await;
            let time = now + GOOD_ROUND_TRIP * delay + Duration::from_secs(ahead);
            let answer = Notice::Time { question, time };
            match question {
                2 => vec![Notice::ClockChanged, answer],
                _ => vec![answer],
            }
        };
        assert_is(measured(changed_after_the_first, &[]).await, 0);
    }
}
