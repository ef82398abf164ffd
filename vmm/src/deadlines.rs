//! Any number of deadlines on a single timerfd, which an event loop watches.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// A set of deadlines, identified by values of `D`. Each either expires or is cancelled. The number
/// of different values that the caller uses bounds its size.
#[derive(Debug)]
pub struct Deadlines<D> {
    timer: OwnedFd,
    /// When the timer fires next; it may fire early, never late.
    armed: Option<Instant>,
    due: BTreeMap<D, Instant>,
}

impl<D: Copy + Ord> Deadlines<D> {
    /// Creates the timer, with no deadline.
    ///
    /// # Errors
    /// timerfd_create(2) failed: the process has too many files open.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            armed: None,
            due: BTreeMap::new(),
        })
    }

    /// Sets a deadline, or moves it.
    pub fn set(&mut self, deadline: D, after: Duration) {
        let at = Instant::now() + after;
        self.due.insert(deadline, at);
        if self.armed.is_none_or(|armed| at < armed) {
            self.arm(at);
        }
    }

    /// Forgets a deadline, if there is one.
    pub fn cancel(&mut self, deadline: D) {
        self.due.remove(&deadline);
    }

    /// Acknowledges the timer, and removes and returns the deadlines that have passed. To be called
    /// when the timer is readable.
    pub fn expired(&mut self) -> Vec<D> {
        let mut count = [0; 8];
        // If there is nothing to read, the timer was set again meanwhile.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.armed = None;
        let now = Instant::now();
        let expired: Vec<_> = self
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(deadline, _)| *deadline)
            .collect();
        for deadline in &expired {
            self.due.remove(deadline);
        }
        if let Some(next) = self.due.values().min().copied() {
            self.arm(next);
        }
        expired
    }

    fn arm(&mut self, at: Instant) {
        // Zero would disarm the timer.
        let after = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let spec = Itimerspec {
            it_interval: Default::default(),
            it_value: rustix::time::Timespec {
                tv_sec: after.as_secs() as i64,
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            Ok(_) => self.armed = Some(at),
            Err(errno) => log::error!("cannot set the timer of deadlines: {errno}"),
        }
    }
}

/// The timer.
impl<D> AsFd for Deadlines<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
