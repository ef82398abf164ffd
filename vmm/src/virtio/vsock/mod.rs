//! virtio-vsock (virtio 1.3, 5.10): streams between the guest's ports and file descriptors of the host.
//!
//! The device and its muxer live in one event loop, and nothing in it ever blocks. Streams come to be
//! in three ways:
//! - the VMM offers a descriptor on a port ([`Vsock::attach`], [`Vsock::attach_at`]); the guest dials
//!   that port and sends the offer's token first, 16 bytes that nobody else in the guest knows;
//! - a client of the control socket does the same for its own descriptors (`ATTACH`);
//! - a client of the control socket has a port of the guest dialled for it (`CONNECT`).
//!
//! Any other port that the guest dials answers with `RST`. Only stream sockets are served.
//!
//! # The control socket
//! A UNIX stream socket. A client sends one line of ASCII, at most 64 bytes, within 30 seconds.
//!
//! `CONNECT <port>`: the muxer dials the guest's port. It answers `OK <host port>`, and from then on
//! the socket is the stream; or it closes the socket. This is Firecracker's protocol. The client waits
//! for the answer before it sends more.
//!
//! `ATTACH <modes>`: three letters, `rww` or `d--` say, for stdin, stdout and stderr. Each is `r` (the
//! muxer reads the descriptor for the guest), `w` (it writes what the guest sends), `d` (both) or `-`
//! (none). The descriptors come with the line, in one sendmsg(2), as SCM_RIGHTS. The muxer answers
//! `OK <stream> <stream> <stream>`, each `<port>:<token>` with the token in 32 hexadecimal digits, or 0
//! where there is none, and offers these ports to the guest. When all the streams have ended and every byte has been
//! written it sends `DONE` and closes the socket. Streams outlive a client that leaves early, but a
//! port that the guest hasn't dialled 30 seconds after that is withdrawn.
//!
//! A line that begins with another word, with at most three descriptors, goes with its client to who takes
//! such requests ([`Vsock::on_other_requests`]); where nobody does, the socket is closed.
//!
//! # Saving it
//! Connections can't be saved: their other ends are descriptors of this process. A device that takes over
//! a saved state has none, and tells the guest's driver that all of its connections are gone (virtio 1.3,
//! 5.10.6.7, "Device Events"), as it did not close them itself. What is on offer isn't saved either: streams
//! are to be offered again, once the state is in place, so that no port is a second stream's.
//!
//! # What the guest can do to the host
//! | it may… | and then |
//! |---|---|
//! | send any bytes as a packet | the packet is dropped, or answered with `RST` |
//! | dial ports, endlessly | only offered ports are answered, and make a connection for who sends the token, once; at most 64 are about to, for five seconds, and the `RST`s queued are bounded |
//! | send more than its credit | that connection is reset; at most 256 KiB are kept for each |
//! | take no buffers, or give no credit | its streams stand still; nothing is kept for it |
//! | make a queue's rings nonsense | that queue is not served any more until the device is reset |
//! | cause log messages | ten a minute |
//!
//! Each event is answered with a bounded amount of work; the rest waits for the loop's next turn.

mod buffers;
mod claims;
mod connection;
mod control;
mod deadlines;
mod device;
mod endpoint;
mod muxer;
mod packet;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub use claims::{TOKEN_LENGTH, Token};
pub use device::{Attached, Vsock, VsockState};

/// The host's context id (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// Where the guest finds a stream on offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// The host's port.
    pub port: u32,
    /// What is to be sent there first. The stream's own bytes follow.
    pub token: Token,
}

/// What a client of the control socket asks for that isn't about streams.
#[derive(Debug)]
pub struct OtherRequest {
    /// Its line, without the newline.
    pub line: String,
    /// What came with it: at most three.
    pub descriptors: Vec<OwnedFd>,
    /// Who asks.
    pub client: ControlClient,
}

/// A client of the control socket that waits for an answer; dropping it closes its socket.
#[derive(Debug)]
pub struct ControlClient(OwnedFd);

impl ControlClient {
    /// Answers with a line, to which the newline is added, and closes the socket. A client that has left, or
    /// has no room for a short line, is not told.
    pub fn answer(self, line: &str) {
        if let Err(error) = request::send_line(self.0.as_fd(), format!("{line}\n").as_bytes()) {
            log::debug!("vsock: a control client gets no answer: {error}");
        }
    }
}

/// Which way a stream's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The descriptor is read, and its bytes go to the guest. Its end is the guest's end of stream;
    /// it is closed when the guest closes.
    ToGuest,
    /// The guest's bytes are written to the descriptor, which is closed when the guest has ended the
    /// stream and all is written. A descriptor that nobody reads is the guest's EPIPE.
    FromGuest,
    /// Both, for a terminal or a socket.
    Duplex,
}

/// Why a descriptor could not be joined to a port, or the device not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A system call failed.
    #[error("vsock: cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The context id is reserved (0 to 2) or does not fit in 32 bits.
    #[error("vsock: {0} is no context id for a guest: use 3 to 4294967294")]
    GuestCid(u64),
    /// The port serves a stream already, or is one that the muxer hands out itself.
    #[error("vsock: port {0} is taken")]
    PortTaken(u32),
    /// The table of streams is full.
    #[error("vsock: there are {0} streams already, the most there can be")]
    TooManyStreams(usize),
    /// Every port has been used once.
    #[error("vsock: all ports have been used")]
    OutOfPorts,
}
