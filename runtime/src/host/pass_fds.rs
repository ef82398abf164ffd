//! Passing file descriptors to another process, over a UNIX socket (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The most descriptors that are sent at once: those of a network interface.
const MOST: usize = 8;

/// Sends bytes, the first of them with these descriptors, eight at most.
///
/// # Errors
/// When the other side takes nothing, or they are too many.
pub fn send_with_fds(
    socket: &mut UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let vector = [IoSlice::new(bytes)];
    let sent = sendmsg(&*socket, &vector, &mut control, SendFlags::NOSIGNAL)?;
    socket.write_all(&bytes[sent..])
}
