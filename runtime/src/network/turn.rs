//! One after the other: whoever connects or disconnects interfaces of a network namespace holds an flock(2) of the
//! namespace's own file meanwhile, which all who are in it have, whatever else of the host they see.
//!
//! It isn't what says that an interface is connected: that is the tap beside it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, flock};

use super::{Error, Namespace};

/// A turn that is still to be taken.
pub(super) struct Turn {
    namespace: OwnedFd,
    may_wait: bool,
}

/// A turn that was taken, until it is dropped.
pub(super) struct Taken<'a>(&'a OwnedFd);

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

    /// Takes it: waits for others where somebody limits the wait, as who gives a thread work in a namespace does.
    ///
    /// # Errors
    /// When somebody else has it, where it isn't waited for.
    pub(super) fn take(&self) -> Result<Taken<'_>, Error> {
        let operation = match self.may_wait {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        flock(&self.namespace, operation).map_err(|e| Error::Turn(io::Error::from(e)))?;
        Ok(Taken(&self.namespace))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // The descriptor is the caller's as well, so it isn't closed by this. It fails for none that is locked.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::mpsc;
    use std::time::Duration;

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
        drop(second.take().expect("nobody has it any more"));
    }
}
