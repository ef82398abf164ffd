//! Deadlines on one timerfd.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// The guest's answer to a `REQUEST` on this host port.
    Response(u32),
    /// The guest's answer to a complete `SHUTDOWN` on this host port.
    Shutdown(u32),
    /// The token of the claim with this number.
    Token(u64),
    /// A control client's request line.
    Line(u32),
    /// A stream group without a client: its ports that the guest hasn't dialled.
    Unclaimed(u32),
    /// The next attempt to accept control clients after one failed.
    Accept,
}

/// How long the muxer waits, for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// The guest's answer to a `REQUEST`.
    pub response: Duration,
    /// The guest's answer to a `SHUTDOWN` of both directions.
    pub shutdown: Duration,
    /// The token of a claim.
    pub token: Duration,
    /// The guest's dialling of a port whose client has left.
    pub unclaimed: Duration,
    /// A client's request line.
    pub line: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // A client that cannot wait so long leaves, and knows what it waited for. Who hears of this
            // limit instead can't tell a guest that is slow from one that refuses.
            response: Duration::from_secs(60),
            // Nobody waits for it any more.
            shutdown: Duration::from_secs(2),
            // It is sent as soon as the connection is there.
            token: Duration::from_secs(5),
            unclaimed: Duration::from_secs(30),
            line: Duration::from_secs(30),
        }
    }
}

/// A set of deadlines, each met or cancelled. Its size is bounded by what the deadlines are for.
#[derive(Debug)]
pub(super) struct Deadlines {
    timer: OwnedFd,
    /// When the timer fires next; it may fire early, never late.
    armed: Option<Instant>,
    due: BTreeMap<Deadline, Instant>,
}

impl Deadlines {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            armed: None,
            due: BTreeMap::new(),
        })
    }

    /// Sets a deadline, or moves it.
    pub fn set(&mut self, deadline: Deadline, after: Duration) {
        let at = Instant::now() + after;
        self.due.insert(deadline, at);
        if self.armed.is_none_or(|armed| at < armed) {
            self.arm(at);
        }
    }

    pub fn cancel(&mut self, deadline: Deadline) {
        self.due.remove(&deadline);
    }

    /// Acknowledges the timer, and takes the deadlines that have passed.
    pub fn expired(&mut self) -> Vec<Deadline> {
        let mut count = [0; 8];
        // Nothing to read means that the timer was set anew meanwhile.
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
            Err(errno) => log::error!("vsock: cannot set the timer: {errno}"),
        }
    }
}

impl AsFd for Deadlines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
