//! One after the other: whoever connects or disconnects interfaces of a network namespace holds an flock(2) of the
//! namespace's own file meanwhile, which all who are in it have, whatever else of the host they see.
//!
//! It isn't what says that an interface is connected: that is the tap beside it. And anybody who can open that file can
//! hold such a lock, so nobody waits long for it.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Error, Namespace};

/// How long a turn is waited for: each takes some milliseconds.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// A turn that is still to be taken.
pub(super) struct Turn {
    namespace: OwnedFd,
    may_wait: bool,
}

/// A turn that was taken, until it is dropped; without a descriptor, one that somebody doesn't give back.
pub(super) struct Taken<'a>(Option<&'a OwnedFd>);

impl Turn {
    /// A turn at a namespace.
    ///
    /// # Errors
    /// When its descriptor can't be duplicated.
    pub(super) fn of(namespace: &Namespace) -> Result<Self, Error> {
        Ok(Self {
            namespace: namespace.try_clone()?,
            may_wait: !namespace.is_own(),
        })
    }

    /// Takes it, and waits for others where this process may start a thread for that.
    ///
    /// # Errors
    /// When somebody else has it, where it isn't waited for.
    pub(super) fn take(&self) -> Result<Taken<'_>, Error> {
        match flock(&self.namespace, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Taken(Some(&self.namespace))),
            Err(Errno::WOULDBLOCK) if self.may_wait => self.wait(LONGEST_WAIT),
            Err(e) => Err(Error::Turn(e.into())),
        }
    }

    /// flock(2) has no time limit, so a thread waits. One that comes too late gives the turn back.
    fn wait(&self, longest: Duration) -> Result<Taken<'_>, Error> {
        let namespace = self.namespace.try_clone().map_err(Error::Turn)?;
        let (sender, receiver) = mpsc::sync_channel(0);
        let wait = move || {
            let locked = flock(&namespace, FlockOperation::LockExclusive);
            if sender.send(locked).is_err() {
                let _ = flock(&namespace, FlockOperation::Unlock);
            }
        };
        let thread = thread::Builder::new().name("turn".to_owned());
        thread.spawn(wait).map_err(Error::Turn)?;
        match receiver.recv_timeout(longest) {
            Ok(Ok(())) => Ok(Taken(Some(&self.namespace))),
            Ok(Err(e)) => Err(Error::Turn(e.into())),
            Err(_) => {
                log::warn!(
                    "somebody has locked the file of the network namespace (flock) for {} s: going on all the same",
                    longest.as_secs()
                );
                Ok(Taken(None))
            }
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // The descriptor is the caller's as well, so it isn't closed by this. It fails for none that is locked.
        if let Some(namespace) = self.0 {
            let _ = flock(namespace, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io;

    fn turn(may_wait: bool) -> Turn {
        let namespace = File::open("/proc/thread-self/ns/net").expect("this thread's");
        Turn {
            namespace: namespace.into(),
            may_wait,
        }
    }

    #[test]
    fn two_who_open_the_namespace_take_turns() {
        let (first, second) = (turn(true), turn(false));
        let taken = first.take().expect("nobody else's");
        let refused = second.take().err().expect("the first has it");
        assert!(matches!(refused, Error::Turn(e) if e.kind() == io::ErrorKind::WouldBlock));
        let (sender, receiver) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let third = turn(true);
            let _taken = third.take().expect("its turn");
            sender.send(()).expect("somebody waits");
        });
        let early = receiver.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "it doesn't wait");
        drop(taken);
        receiver
            .recv_timeout(Duration::from_secs(10))
            .expect("it has its turn");
        waiting.join().expect("no panic");
        let stranger = turn(false);
        let held = stranger.take().expect("nobody has it");
        let without = turn(true);
        drop(without.wait(Duration::from_millis(20)).expect("it goes on"));
        drop(held);
        drop(second.take().expect("nobody has it any more"));
    }
}
