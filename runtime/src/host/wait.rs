//! Waiting for file descriptors, and not for ever.
#![allow(unsafe_code)] // tokio's AsyncFd, of a descriptor that is owned

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits until one of them has something to tell, or `deadline` has come; without one, as long as it takes.
/// Returns whether one has. A signal doesn't prolong the wait.
///
/// # Errors
/// When the kernel has no memory for it.
pub fn wait_for_any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose();
        match poll(fds, left.map_err(io::Error::other)?.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Waits until `fd` can be read, is at its end, or, for a pidfd, the process has ended.
///
/// # Errors
/// As [`wait_for_any`].
pub fn wait_readable(fd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    wait_for_any(&mut [PollFd::new(&fd, PollFlags::IN)], Some(deadline))
}

/// The same for async code, which waits by [`AsyncFd::readable`]. To be called inside a runtime.
///
/// # Errors
/// When there are too many open files, or it is one that nobody can wait for.
pub fn async_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_never_comes_is_waited_for_until_the_deadline() {
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(!wait_readable(&reader, deadline).expect("poll"));
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn an_end_is_something_to_read() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        drop(writer);
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(wait_readable(&reader, deadline).expect("poll"));
        assert!(Instant::now() < deadline);
    }
}
