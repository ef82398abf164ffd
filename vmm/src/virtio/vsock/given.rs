//! Streams that another thread of this process gives to the device, while the guest runs: each a socket, with the port
//! and the token at which the guest is to find it.
//!
//! Each thread has file descriptors of its own, so a stream comes over a pair of sockets. The giver chooses the port,
//! above all that the muxer allocates, and may tell the guest of it at once: before a connection to such a port is
//! refused, the device takes what has been given.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::claims::TOKEN_LENGTH;
use super::muxer::{FIRST_RESERVED, Muxer};
use super::offer::new_token;
use super::{Offered, VsockError};

/// The first port of streams that are given.
pub(super) const FIRST_PORT: u32 = 1 << 31;

/// The most of them at a time: fewer than a quarter of all streams, so that those of stdio have room beside them, and as
/// many as the agent has file descriptors for.
pub(super) const MOST: usize = 200;

/// A port and its token, as they are sent to the device and to the guest.
const LENGTH: usize = size_of::<u32>() + TOKEN_LENGTH;

/// Who gives streams.
#[derive(Debug)]
pub struct Giver {
    socket: OwnedFd,
    next_port: AtomicU32,
    /// One for each stream that the device has, beside the giver's own and the taker's.
    count: Arc<()>,
}

/// The device's end.
#[derive(Debug)]
pub struct Taker {
    socket: OwnedFd,
    count: Arc<()>,
}

/// Makes a giver and the end for the device that it gives to.
///
/// # Errors
/// When the process is out of descriptors.
pub fn giver() -> io::Result<(Giver, Taker)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let count = Arc::new(());
    let giver = Giver {
        socket: ours,
        next_port: AtomicU32::new(FIRST_PORT),
        count: Arc::clone(&count),
    };
    let socket = theirs;
    Ok((giver, Taker { socket, count }))
}

impl Offered {
    /// The port, a little-endian u32, and the token.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[4..].copy_from_slice(&self.token);
        bytes
    }

    fn decode(bytes: [u8; LENGTH]) -> Self {
        let [p0, p1, p2, p3, token @ ..] = bytes;
        let port = u32::from_le_bytes([p0, p1, p2, p3]);
        Self { port, token }
    }
}

impl Giver {
    /// Whether the guest has as many such streams as it may have.
    pub fn is_full(&self) -> bool {
        Arc::strong_count(&self.count) >= MOST + 2
    }

    /// Gives a stream. Doesn't block.
    ///
    /// # Errors
    /// When the device hasn't taken what was given before, or all ports have been used.
    pub fn give(&self, stream: OwnedFd) -> io::Result<Offered> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        if !(FIRST_PORT..FIRST_RESERVED).contains(&port) {
            self.next_port.store(FIRST_RESERVED, Ordering::Relaxed);
            return Err(io::Error::other(VsockError::OutOfPorts));
        }
        let token = new_token().map_err(io::Error::other)?;
        let offered = Offered { port, token };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [stream.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors)); // there is room for one
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let message = offered.encode();
        sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, flags)?;
        Ok(offered)
    }
}

impl AsRawFd for Giver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsRawFd for Taker {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Taker {
    /// Offers to the guest what has been given, in a bounded number of steps.
    pub(super) fn take_all(&self, muxer: &mut Muxer) {
        for _ in 0..MOST {
            match self.take() {
                Ok(Some((offered, stream))) => {
                    let count = Arc::clone(&self.count);
                    if let Err(error) = muxer.offer_given(offered, stream, count) {
                        muxer.warn(format_args!("a stream that was given is closed: {error}"));
                    }
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// The next stream; none if what came is no stream.
    fn take(&self) -> Result<Option<(Offered, OwnedFd)>, Errno> {
        let mut bytes = [0; LENGTH];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.socket, into, &mut control, flags)?.bytes;
        let mut streams = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        let stream = streams.next();
        if length == 0 && stream.is_none() {
            // The giver has gone.
            return Err(Errno::PIPE);
        }
        let offered = Offered::decode(bytes);
        let is_given = length == LENGTH && (FIRST_PORT..FIRST_RESERVED).contains(&offered.port);
        Ok(stream.filter(|_| is_given).map(|stream| (offered, stream)))
    }
}

#[cfg(test)]
impl Giver {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}
