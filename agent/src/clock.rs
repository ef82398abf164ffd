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

use hull_protocol::clock::{LENGTH, NEWS, Reading};
use hull_protocol::ports;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sys;
use crate::transport::{self, Dial, Stream};

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
    fn correction(self) -> Correction {
        let size = self.nanoseconds.unsigned_abs();
        match i64::try_from(self.nanoseconds) {
            _ if size <= self.uncertain.as_nanos() => Correction::Nothing,
            Ok(nanoseconds) if size <= SLEWED.as_nanos() => Correction::Slew(nanoseconds),
            _ => Correction::Set(self.nanoseconds),
        }
    }
}

/// The connection to the host's clock.
pub struct HostClock(Box<dyn Stream>);

impl HostClock {
    /// Makes the connection, and says that it listens: the host then has it joined to its port, which
    /// nobody else gets any more.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn connect(host: &dyn Dial) -> io::Result<Self> {
        let mut host = transport::dial(host, ports::CLOCK).await?;
        host.write_all(&[NEWS]).await?;
        Ok(Self(host))
    }

    /// Follows it for as long as there is a host.
    pub async fn follow(mut self) {
        if let Err(e) = self.try_follow().await {
            log::warn!("the host's clock is not followed: {e}");
        }
    }

    async fn try_follow(&mut self) -> io::Result<()> {
        let Self(host) = self;
        loop {
            while read(host).await?.number != NEWS {}
            // Without a time limit: nobody else waits, and an answer that took long counts for little.
            correct(measure(host).await?.correction())?;
        }
    }
}

async fn read(host: &mut Box<dyn Stream>) -> io::Result<Reading> {
    let mut record = [0; LENGTH];
    host.read_exact(&mut record).await?;
    Ok(Reading::decode(record))
}

/// Asks the host, and takes the answer that was there soonest. News in between mean that the host's clock
/// was set again: the answers from before count no more.
async fn measure(host: &mut Box<dyn Stream>) -> io::Result<Offset> {
    let mut best: Option<Offset> = None;
    for number in 1..=MOST_QUESTIONS {
        let (offset, news) = ask(host, number).await?;
        if news || best.is_none_or(|best| offset.uncertain < best.uncertain) {
            best = Some(offset);
        }
        if offset.uncertain <= GOOD / 2 {
            break;
        }
    }
    best.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the host answers, and whether it had news before it answered.
async fn ask(host: &mut Box<dyn Stream>, number: u8) -> io::Result<(Offset, bool)> {
    let asked = Instant::now();
    host.write_all(&[number]).await?;
    let mut news = false;
    let reading = loop {
        let reading = read(host).await?;
        if reading.number == number {
            break reading;
        }
        news |= reading.number == NEWS;
    };
    let uncertain = asked.elapsed() / 2;
    let then = reading.time + uncertain;
    let offset = Offset {
        nanoseconds: i128::try_from(then.as_nanos()).unwrap_or(i128::MAX) - now(),
        uncertain,
    };
    Ok((offset, news))
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

    #[tokio::test]
    async fn an_old_answer_is_not_taken_for_the_time() {
        let (ours, mut host) = tokio::io::duplex(1024);
        let mut ours: Box<dyn Stream> = Box::new(ours);
        let hour = Duration::from_secs(3600);
        let old = |number| Reading {
            number,
            time: Duration::from_secs(1),
        };
        let answering = async {
            // What the host has said before it was asked.
            for number in [NEWS, 4, NEWS] {
                host.write_all(&old(number).encode()).await.expect("write");
            }
            let mut question = [0];
            while host.read_exact(&mut question).await.is_ok() {
                let time = Duration::from_nanos(u64::try_from(now()).expect("after 1970")) + hour;
                let [number] = question;
                let answer = Reading { number, time };
                host.write_all(&answer.encode()).await.expect("write");
            }
        };
        let measuring = async {
            let offset = measure(&mut ours).await;
            drop(ours);
            offset.expect("an offset")
        };
        let (offset, ()) = tokio::join!(measuring, answering);
        let wrong = (offset.nanoseconds - 3_600_000 * MILLISECOND).unsigned_abs();
        assert!(wrong <= offset.uncertain.as_nanos() + 1000, "{offset:?}");
    }

    #[tokio::test]
    async fn an_answer_from_before_the_clock_was_set_again_does_not_count() {
        let (ours, mut host) = tokio::io::duplex(1024);
        let mut ours: Box<dyn Stream> = Box::new(ours);
        let answering = async {
            let mut question = [0];
            while host.read_exact(&mut question).await.is_ok() {
                let [number] = question;
                // The first answer is the soonest, yet too slow to be the only one.
                let delay = if number == 1 { GOOD * 2 } else { GOOD * 20 };
                tokio::time::sleep(delay).await;
                let mut time = Duration::from_nanos(u64::try_from(now()).expect("after 1970"));
                if number == 2 {
                    let news = Reading { number: NEWS, time };
                    host.write_all(&news.encode()).await.expect("write");
                }
                if number == 1 {
                    time += Duration::from_secs(3600);
                }
                let answer = Reading { number, time };
                host.write_all(&answer.encode()).await.expect("write");
            }
        };
        let measuring = async {
            let offset = measure(&mut ours).await;
            drop(ours);
            offset.expect("an offset")
        };
        let (offset, ()) = tokio::join!(measuring, answering);
        let wrong = offset.nanoseconds.unsigned_abs();
        assert!(wrong <= offset.uncertain.as_nanos() + 1000, "{offset:?}");
    }
}
