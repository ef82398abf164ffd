//! Waiting for file descriptors, and not for ever.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

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
