//! The host's wall clock, for the guest to follow. It gets the time from the host once, at its boot, and
//! counts on by itself, so it doesn't learn that the host's clock was set, or is being slewed.
//!
//! One timer tells of both. The kernel cancels it when the clock is set (timerfd_create(2)), or the host was
//! suspended. Of slewing it tells nobody: for that the timer runs out every ten seconds, in which the fastest
//! slew that is in use (chrony's, by a twelfth) makes less than a second.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_protocol::clock::{NEWS, Reading};
use hull_vmm::event_loop::Subscriber;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use vmm_sys_util::epoll::EventSet;

/// How long, in seconds, the guest's clock may go its own way.
const INTERVAL: i64 = 10;

/// Questions taken in one turn of the loop; the last of them is answered.
const MOST_QUESTIONS: usize = 64;

const TIMER: u32 = 0;
const QUESTION: u32 = 1;

/// Watches the host's clock, and answers the guest.
pub struct ClockWatch {
    timer: OwnedFd,
    guest: UnixStream,
}

impl ClockWatch {
    /// A watch, and the end of its connection that is the guest's.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let (guest, theirs) = UnixStream::pair()?;
        Ok((Self { timer, guest }, theirs.into()))
    }

    /// Sets the timer anew. What was set in between is in the time that is told next.
    fn arm(&self) {
        let at = Timespec {
            tv_sec: clock_gettime(ClockId::Realtime).tv_sec + INTERVAL,
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: at,
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.timer, flags, &spec) {
            // It is armed all the same.
            Ok(_) | Err(Errno::CANCELED) => {}
            Err(e) => log::error!("the host's clock is not followed: {e}"),
        }
    }

    /// Tells the guest the time. One that doesn't read gets no more than fits into its buffer.
    fn tell(&self, number: u8) {
        let now = clock_gettime(ClockId::Realtime);
        let seconds = Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0));
        let nanoseconds = Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0));
        let reading = Reading {
            number,
            time: seconds + nanoseconds,
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(e) = send(&self.guest, &reading.encode(), flags) {
            log::debug!("the time is not told: {e}");
        }
    }

    fn on_timer(&self) {
        // Nothing to read, or ECANCELED: the timer has to be set anew either way.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.arm();
        self.tell(NEWS);
    }

    /// Answers what the guest has asked. Returns whether it may ask more.
    fn on_question(&self) -> bool {
        let mut questions = [0; MOST_QUESTIONS];
        match recv(&self.guest, &mut questions, RecvFlags::DONTWAIT) {
            Ok((0, _)) => false,
            Ok((count, _)) => {
                match questions.get(count - 1) {
                    Some(&question) if question != NEWS => self.tell(question),
                    // It says that it listens.
                    _ => {}
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

impl Subscriber for ClockWatch {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.timer.as_raw_fd(), self.guest.as_raw_fd()]
    }
}

impl MutEventSubscriber for ClockWatch {
    fn init(&mut self, ops: &mut EventOps) {
        let fds = [
            (self.timer.as_raw_fd(), TIMER),
            (self.guest.as_raw_fd(), QUESTION),
        ];
        for (fd, what) in fds {
            if let Err(e) = ops.add(Events::with_data_raw(fd, what, EventSet::IN)) {
                log::error!("the host's clock is not followed: {}", io::Error::other(e));
            }
        }
        self.arm();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TIMER => self.on_timer(),
            _ if self.on_question() => {}
            _ => drop(ops.remove(Events::empty(&self.guest))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_protocol::clock;
    use std::io::{Read, Write};
    use std::time::SystemTime;

    fn reading(guest: &mut UnixStream) -> Reading {
        let mut record = [0; clock::LENGTH];
        guest.read_exact(&mut record).expect("a record");
        Reading::decode(record)
    }

    #[test]
    fn the_guest_is_told_the_time_when_it_asks() {
        let (watch, guest) = ClockWatch::new().expect("a watch");
        let mut guest = UnixStream::from(guest);
        let now = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
        let before = now();

        guest.write_all(&[3, 7]).expect("ask");
        assert!(watch.on_question());
        let answer = reading(&mut guest);

        assert_eq!(answer.number, 7, "the last question");
        assert!((before..=now()).contains(&answer.time), "{answer:?}");
        watch.on_timer();
        assert_eq!(reading(&mut guest).number, NEWS);
        drop(guest);
        assert!(!watch.on_question(), "nobody asks any more");
    }

    #[test]
    fn a_guest_that_does_not_read_holds_nothing_up() {
        let (watch, _guest) = ClockWatch::new().expect("a watch");
        for _ in 0..100_000 {
            watch.tell(NEWS);
        }
    }
}
