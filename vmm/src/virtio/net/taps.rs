//! The queues of a NIC's tap: one for each pair of queues, of which as many are attached to the tap as pairs are in use
//! (Documentation/networking/tuntap.rst of Linux, 3.3).
//!
//! The kernel distributes the frames of an interface among the queues that are attached, by their flows: those of a
//! flow come where the guest has sent its last one.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::MAX_PAIRS;
use super::tap::{Tap, TapError};
use crate::rate_limit::RateLimit;

/// How often a driver may change the number of queues that are attached, in each [`COMMANDS_PERIOD`]. It needs that once,
/// and whenever somebody asks for another number. Each change takes the lock of the host's network configuration, and has
/// the host's kernel wait for all its CPUs and announce it.
const COMMANDS: u32 = 16;
const COMMANDS_PERIOD: Duration = Duration::from_secs(10);

/// The validated queues of a tap, one at least.
#[derive(Debug)]
pub struct Taps {
    first: Tap,
    others: Vec<Tap>,
    /// How many are attached: the first ones.
    attached: usize,
    /// Of the driver's commands, whether they may still be done.
    commands: RateLimit,
}

impl Taps {
    /// Validates descriptors, which may be of anything: each must be as [`Tap::new`] needs it, and several must be
    /// attached queues of the same tap, which has `IFF_MULTI_QUEUE`.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn new(descriptors: Vec<OwnedFd>) -> Result<Self, TapError> {
        let count = descriptors.len();
        if count > MAX_PAIRS {
            return Err(TapError::Count(count));
        }
        let mut descriptors = descriptors.into_iter();
        let first = Tap::new(descriptors.next().ok_or(TapError::Count(0))?)?;
        let others = descriptors.map(|descriptor| first.further_queue(descriptor));
        Ok(Self {
            others: others.collect::<Result<_, _>>()?,
            first,
            attached: count,
            commands: RateLimit::new(COMMANDS, COMMANDS_PERIOD),
        })
    }

    /// Substitutes in tests and fuzzing; see [`Tap::from_test_socket`].
    ///
    /// # Errors
    /// There is none, or a socket can't be made non-blocking.
    pub fn from_test_sockets(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let mut taps = sockets.into_iter().map(Tap::from_test_socket);
        let first = taps.next().ok_or(io::ErrorKind::InvalidInput)??;
        let others = taps.collect::<Result<Vec<_>, _>>()?;
        let attached = 1 + others.len();
        Ok(Self {
            first,
            others,
            attached,
            commands: RateLimit::new(COMMANDS, COMMANDS_PERIOD),
        })
    }

    /// How many there are, and so how many pairs of queues the NIC has.
    pub(super) fn pairs(&self) -> usize {
        1 + self.others.len()
    }

    /// All of them, in the order of the pairs.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tap> {
        std::iter::once(&self.first).chain(&self.others)
    }

    pub(super) fn get(&self, pair: usize) -> Option<&Tap> {
        match pair.checked_sub(1) {
            None => Some(&self.first),
            Some(other) => self.others.get(other),
        }
    }

    /// Whether the tap has UDP segmentation offload.
    pub(super) fn has_uso(&self) -> bool {
        self.first.has_uso()
    }

    /// See [`Tap::set_offloads`].
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.first.set_offloads(features)
    }

    /// See [`Tap::drop_queued_frames`]; of those queues that are attached.
    pub(super) fn drop_queued_frames(&self) {
        for tap in self.iter().take(self.attached) {
            tap.drop_queued_frames();
        }
    }

    /// Attaches the first `pairs` queues, one at least, and detaches all others. If it fails, as many are attached as
    /// before, as far as the kernel does that.
    pub(super) fn use_first(&mut self, pairs: usize) -> io::Result<()> {
        let before = self.attached;
        let changed = self.attach_first(pairs);
        if changed.is_err() {
            let _ = self.attach_first(before); // there is one error to be told already
        }
        changed
    }

    /// The same, where it is the driver that asks for it: as often as [`COMMANDS`] says.
    pub(super) fn use_first_by_command(&mut self, pairs: usize) -> io::Result<()> {
        if pairs != self.attached && self.commands.allow().is_none() {
            let why = "the driver asks for it too often";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        self.use_first(pairs)
    }

    fn attach_first(&mut self, pairs: usize) -> io::Result<()> {
        let pairs = pairs.clamp(1, self.pairs());
        while self.attached != pairs {
            let grows = self.attached < pairs;
            let changed = if grows {
                self.attached
            } else {
                self.attached - 1
            };
            let Some(tap) = self.get(changed) else { break };
            tap.attach(grows)?;
            self.attached = if grows { changed + 1 } else { changed };
        }
        Ok(())
    }
}

/// A tap with one queue.
impl From<Tap> for Taps {
    fn from(first: Tap) -> Self {
        Self {
            first,
            others: Vec::new(),
            attached: 1,
            commands: RateLimit::new(COMMANDS, COMMANDS_PERIOD),
        }
    }
}
