//! A network namespace of the host, and work in it.
//!
//! What a process may see and change of a network depends on the namespace of the thread that asks: a netlink socket
//! and a tap belong to the one in which they were opened, and /proc/sys/net shows the reader's. So all work is done
//! on a thread of its own, which enters the namespace and ends with the work; the caller's never enters anything.
//! A process that is in the namespace as a whole ([`Namespace::own`]) does it itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError, SendError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Error;
use super::netlink::Netlink;

/// How long a caller waits for all that it asks for at once.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of that is kept for taking back what was made.
pub(super) const UNDO: Duration = Duration::from_secs(2);

/// Until when answers are waited for, of work that begins now.
pub(super) fn deadline() -> Instant {
    Instant::now() + TIMEOUT - UNDO
}

/// A network namespace of the host.
#[derive(Debug)]
pub struct Namespace(Place);

#[derive(Debug)]
enum Place {
    /// The calling thread's, and a descriptor of it.
    Own(OwnedFd),
    /// One that is held by a descriptor.
    Other(OwnedFd),
}

impl From<OwnedFd> for Namespace {
    /// Takes a descriptor of nsfs (a file of `/proc/PID/ns/net`). Whether it is one shows when it is entered.
    fn from(fd: OwnedFd) -> Self {
        Self(Place::Other(fd))
    }
}

impl Namespace {
    /// The namespace of a descriptor that somebody else keeps.
    ///
    /// # Errors
    /// When the descriptor can't be duplicated.
    pub fn borrowed(fd: BorrowedFd<'_>) -> Result<Self, Error> {
        fd.try_clone_to_owned()
            .map(Self::from)
            .map_err(Error::Enter)
    }

    /// That of the calling thread, of which this is a descriptor; it starts no other thread for it and enters nothing.
    pub fn own(fd: OwnedFd) -> Self {
        Self(Place::Own(fd))
    }

    /// Whether it is the calling thread's.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.0, Place::Own(_))
    }

    /// Another descriptor of it.
    pub(super) fn try_clone(&self) -> Result<OwnedFd, Error> {
        let (Place::Own(fd) | Place::Other(fd)) = &self.0;
        fd.try_clone().map_err(Error::Enter)
    }

    /// Does something in the namespace. `what` completes "waited for the kernel to …".
    pub(super) fn within<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Netlink) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.within_or(what, work, |_, _| ())
    }

    /// Does something in the namespace that `undo` takes back if it is made after the caller has given up.
    pub(super) fn within_or<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Netlink) -> Result<T, Error> + Send + 'static,
        undo: impl FnOnce(&mut Netlink, T) + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = deadline();
        let namespace = match &self.0 {
            Place::Own(_) => return work(&mut Netlink::open(deadline)?),
            Place::Other(fd) => fd.try_clone().map_err(Error::Enter)?,
        };
        // Without a buffer, so that what nobody waits for any more is still the thread's.
        let (sender, receiver) = mpsc::sync_channel(0);
        let inside = move || {
            let mut netlink = match enter(&namespace, deadline) {
                Ok(netlink) => netlink,
                Err(e) => {
                    let _ = sender.send(Err(e));
                    return;
                }
            };
            let done = work(&mut netlink);
            if let Err(SendError(Ok(made))) = sender.send(done) {
                netlink.set_deadline(Instant::now() + UNDO);
                undo(&mut netlink, made);
            }
        };
        let thread = thread::Builder::new().name("netns".to_owned());
        thread.spawn(inside).map_err(Error::Thread)?;
        let what = || what.to_owned();
        match receiver.recv_timeout(TIMEOUT) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                what: what(),
                seconds: TIMEOUT.as_secs(),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Died { what: what() }),
        }
    }
}

/// Has the calling thread enter the namespace.
fn enter(namespace: &OwnedFd, deadline: Instant) -> Result<Netlink, Error> {
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| Error::Enter(e.into()))?;
    Netlink::open(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_is_no_network_namespace_is_not_entered() {
        for path in ["/dev/null", "/proc/self/ns/uts"] {
            let file = File::open(path).expect("a file");
            let namespace = Namespace::borrowed(file.as_fd()).expect("dup");
            let entered = namespace.within("nothing", |_| Ok(()));
            assert!(matches!(entered, Err(Error::Enter(_))), "{path}");
        }
    }
}
