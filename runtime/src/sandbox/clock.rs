//! The host's wall clock, for the guest to follow. It gets the time from the host once, at its boot, and
//! counts on by itself, so it doesn't learn that the host's clock was set, or is being slewed.
//!
//! One timer tells of both. The kernel cancels it when the clock is set (timerfd_create(2)), or the host was
//! suspended. Of slewing it tells nobody: for that the timer runs out every ten seconds, in which the fastest
//! slew that is in use (chrony's, by a twelfth) makes less than a second.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_protocol::notices::{LISTENING, Notice};
use hull_vmm::event_loop::Subscriber;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use vmm_sys_util::epoll::EventSet;

use super::notices::{Asked, Notices};

/// How long, in seconds, the guest's clock may go its own way.
const INTERVAL: i64 = 10;

const TIMER: u32 = 0;
const QUESTION: u32 = 1;

/// Watches the host's clock, and answers the guest.
pub struct ClockWatch {
    timer: OwnedFd,
    guest: Arc<Notices>,
}

impl ClockWatch {
    /// A watch that tells this guest.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new(guest: Arc<Notices>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        Ok(Self { timer, guest })
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

    fn on_timer(&self) {
        // Nothing to read, or ECANCELED: the timer has to be set anew either way.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.arm();
        self.guest.tell(Notice::ClockChanged);
    }

    /// Answers what the guest has asked. Returns whether it may ask more.
    fn on_question(&self) -> bool {
        match self.guest.asked() {
            Asked::Ended => return false,
            Asked::Nothing | Asked::Number(LISTENING) => {}
            Asked::Number(question) => self.guest.tell(Notice::Time {
                question,
                time: now(),
            }),
        }
        true
    }
}

/// The wall clock, since the epoch.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
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
            _ => drop(ops.remove(Events::empty(&*self.guest))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_protocol::notices::LENGTH;
    use std::fs::File;
    use std::io::{Read, Write};

    fn notice(guest: &mut File) -> Notice {
        let mut record = [0; LENGTH];
        guest.read_exact(&mut record).expect("a record");
        Notice::decode(record)
    }

    #[test]
    fn the_guest_is_told_the_time_when_it_asks() {
        let (notices, guest) = Notices::new().expect("a connection");
        let watch = ClockWatch::new(Arc::new(notices)).expect("a watch");
        let mut guest = File::from(guest);
        let before = now();

        guest.write_all(&[LISTENING, 3, 7]).expect("ask");
        assert!(watch.on_question());
        match notice(&mut guest) {
            Notice::Time { question: 7, time } if (before..=now()).contains(&time) => {}
            other => panic!("{other:?}: the last question is answered"),
        }

        guest.write_all(&[LISTENING]).expect("listen");
        assert!(watch.on_question());
        watch.on_timer();
        assert_eq!(notice(&mut guest), Notice::ClockChanged);
        drop(guest);
        assert!(!watch.on_question(), "nobody asks any more");
    }
}
