//! The VM process's end of the connection on which it tells the agent what the guest can't learn by itself
//! ([`hull_protocol::notices`]): the [clock](super::clock)'s changes and [signals](super::signals).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use hull_protocol::notices::Notice;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Questions taken at once; the last of them counts.
const MOST_QUESTIONS: usize = 64;

/// The connection.
pub struct Notices(UnixStream);

/// What the guest has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing yet.
    Nothing,
    /// This byte, after which it may ask more.
    Number(u8),
    /// Nothing, ever again.
    Ended,
}

impl Notices {
    /// The connection, and the end of it that is the guest's.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (guest, theirs) = UnixStream::pair()?;
        Ok((Self(guest), theirs.into()))
    }

    /// Tells the guest. One that doesn't read gets no more than fits into its buffer.
    pub fn tell(&self, notice: Notice) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(e) = send(&self.0, &notice.encode(), flags) {
            log::debug!("the guest is not told {notice:?}: {e}");
        }
    }

    /// The last of what the guest has asked meanwhile.
    pub fn asked(&self) -> Asked {
        let mut questions = [0; MOST_QUESTIONS];
        match recv(&self.0, &mut questions, RecvFlags::DONTWAIT) {
            Ok((count, _)) => {
                (questions[..count].last()).map_or(Asked::Ended, |n| Asked::Number(*n))
            }
            Err(Errno::AGAIN | Errno::INTR) => Asked::Nothing,
            Err(_) => Asked::Ended,
        }
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_not_read_holds_nothing_up() {
        let (notices, _guest) = Notices::new().expect("a connection");
        for _ in 0..100_000 {
            notices.tell(Notice::ClockChanged);
        }
    }
}
