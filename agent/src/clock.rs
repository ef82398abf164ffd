//! The guest's wall clock follows the host's, which tells when the two may differ.
//!
//! How far they are apart is measured by asking the host for its time: the answer was given at some moment
//! between question and answer, so half of that time is what the measure may be wrong by. On a busy machine
//! that is much, so some questions are asked, and what they leave uncertain is left alone.
//!
//! Only the wall clock is set. The guest's CLOCK_MONOTONIC stands still while the host is suspended, as a
//! host's does. So does its CLOCK_BOOTTIME, other than a host's: the guest's kernel counts only the time of
//! suspends of its own.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::notices::Notices;
use crate::sys;

/// So many questions for one measure.
const MOST_QUESTIONS: u8 = 4;

/// An answer within this time needs no further question.
const GOOD: Duration = Duration::from_millis(1);

/// The clock is set, not slewed, if it is off by more: the kernel slews by this in 20 seconds.
const SLEWED: Duration = Duration::from_millis(10);

/// How far the host's clock is ahead of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    /// Nanoseconds; less than none if it is behind.
    nanoseconds: i128,
    /// What this may be wrong by.
    uncertain: Duration,
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
    /// From the host's time at some moment of the last `took`.
    fn told(time: Duration, took: Duration) -> Self {
        let uncertain = took / 2;
        let then = time + uncertain;
        Self {
            nanoseconds: i128::try_from(then.as_nanos()).unwrap_or(i128::MAX) - now(),
            uncertain,
        }
    }

    fn correction(self) -> Correction {
        let size = self.nanoseconds.unsigned_abs();
        match i64::try_from(self.nanoseconds) {
            _ if size <= self.uncertain.as_nanos() => Correction::Nothing,
            Ok(nanoseconds) if size <= SLEWED.as_nanos() => Correction::Slew(nanoseconds),
            _ => Correction::Set(self.nanoseconds),
        }
    }
}

/// Follows the host's clock for as long as there is a host.
pub async fn follow(mut notices: Notices) {
    if let Err(e) = try_follow(&mut notices).await {
        log::warn!("the host's clock is not followed: {e}");
    }
}

async fn try_follow(notices: &mut Notices) -> io::Result<()> {
    loop {
        notices.clock_changed().await?;
        // Without a time limit: nobody else waits, and an answer that took long counts for little.
        correct(measure(notices).await?.correction())?;
    }
}

/// Asks the host, and takes the answer that was there soonest. If the host's clock was changed meanwhile,
/// answers from before count no more.
async fn measure(notices: &mut Notices) -> io::Result<Offset> {
    let mut best: Option<Offset> = None;
    for number in 1..=MOST_QUESTIONS {
        let asked = Instant::now();
        let answer = notices.ask(number).await?;
        let offset = Offset::told(answer.time, asked.elapsed());
        if answer.changed || best.is_none_or(|best| offset.uncertain < best.uncertain) {
            best = Some(offset);
        }
        if offset.uncertain <= GOOD / 2 {
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
            log::info!("the clock is set by {} ms", nanoseconds / 1_000_000);
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
    fn what_is_uncertain_is_left_alone_and_what_is_far_is_set() {
        let correction = |milliseconds, uncertain| {
            let offset = Offset {
                nanoseconds: milliseconds * MILLISECOND,
                uncertain: Duration::from_millis(uncertain),
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

    /// What is measured with a host that answers so: the number of the question and the guest's time give
    /// the records.
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
        assert!(wrong <= offset.uncertain.as_nanos() + 1000, "{offset:?}");
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
    async fn an_answer_from_before_a_further_change_does_not_count() {
        let changed_after_the_first = async |question, now| {
            // The first answer is the soonest, yet too slow to be the only one.
            let (delay, ahead) = if question == 1 { (2, 3600) } else { (20, 0) };
            tokio::time::sleep(GOOD * delay).await;
            let time = now + GOOD * delay + Duration::from_secs(ahead);
            let answer = Notice::Time { question, time };
            match question {
                2 => vec![Notice::ClockChanged, answer],
                _ => vec![answer],
            }
        };
        assert_is(measured(changed_after_the_first, &[]).await, 0);
    }
}
