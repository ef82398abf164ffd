//! virtio-vsock (virtio 1.3, 5.10): streams between the guest's ports and file descriptors of the host.
//!
//! The device and its muxer run in one event loop, and never block it. A stream is created in one
//! of four ways:
//! - the VMM offers a descriptor on a port ([`Vsock::attach`], [`Vsock::attach_at`]); a process in
//!   the guest connects to that port and first sends the offer's token, 16 bytes that no other
//!   process in the guest knows;
//! - a client of the control socket offers its own descriptors in the same way (`ATTACH`);
//! - another thread gives a socket with port and token, while the guest runs ([`giver`]);
//! - a client of the control socket is connected to a port of the guest (`CONNECT`).
//!
//! A connection to any other port of the host is answered by `RST`. Only stream sockets are
//! supported.
//!
//! # The control socket
//! A UNIX stream socket. A client sends one line of ASCII, at most 64 bytes, within 30 seconds.
//!
//! `CONNECT <port>`: the muxer connects to the guest's port. It answers `OK <host port>`, and from
//! then on the socket carries the stream; or it closes the socket. This is Firecracker's protocol.
//! The client waits for the answer before it sends more.
//!
//! `ATTACH <modes>`: three letters, `rww` or `d--` say, for stdin, stdout and stderr. Each is `r` (the
//! muxer reads the descriptor for the guest), `w` (it writes what the guest sends), `d` (both) or `-`
//! (none). The descriptors come with the line, in one sendmsg(2), as SCM_RIGHTS. The muxer answers
//! `OK <stream> <stream> <stream>`, each `<port>:<token>` with the token in 32 hexadecimal digits, or 0
//! where there is none, and offers these ports to the guest. When all the streams have ended and every byte has been
//! written it sends `DONE` and closes the socket. Streams outlive a client that leaves early, but a
//! port that the guest hasn't dialled 30 seconds after that is withdrawn.
//!
//! A line that begins with another word, with at most eight descriptors, is passed with its client
//! to the handler of other requests ([`Vsock::on_other_requests`]); if there is none, the socket is
//! closed.
//!
//! # Saving and restoring
//! Connections can't be saved: their other ends are descriptors of this process. A restored device
//! has none, and sends the guest's driver a transport reset event (virtio 1.3, 5.10.6.7, "Device
//! Events"), upon which it drops its connections. Offers aren't saved either: streams have to be
//! offered again after the state was restored, so that no port is used twice.
//!
//! # What the guest can do to the host
//! | it may… | and then |
//! |---|---|
//! | send any bytes as a packet | the packet is dropped, or answered with `RST` |
//! | dial ports, endlessly | only offered ports accept, and only for the first who sends the token; at most 64 connections may be waiting for their token, for five seconds each, and the number of queued `RST`s is bounded |
//! | send more than its credit | that connection is reset; at most 256 KiB are kept for each |
//! | provide no buffers, or no credit | its streams stall; nothing is buffered for it |
//! | corrupt a queue's rings | that queue is not served any more until the device is reset |
//! | cause log messages | ten a minute |
//!
//! The work for each event is bounded; the rest is left for the next turn of the loop.

mod buffers;
mod claims;
mod connection;
mod control;
mod deadlines;
mod device;
mod endpoint;
mod given;
mod muxer;
mod offer;
mod packet;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub use claims::{TOKEN_LENGTH, Token};
pub use device::{Attached, Vsock, VsockState};
pub use given::{Giver, Taker, giver};

/// The host's context id (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// The port and the token of an offered stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// The host's port.
    pub port: u32,
    /// What must be sent there first, before the stream's data.
    pub token: Token,
}

/// A request of a control client that isn't about streams.
#[derive(Debug)]
pub struct OtherRequest {
    /// The request line without the newline.
    pub line: String,
    /// The descriptors that were sent with it, at most eight.
    pub descriptors: Vec<OwnedFd>,
    /// The client that sent it.
    pub client: ControlClient,
}

/// A client of the control socket that waits for an answer; dropping it closes its socket.
#[derive(Debug)]
pub struct ControlClient(OwnedFd);

impl ControlClient {
    /// Sends a line, to which a newline is added, and closes the socket. The answer is lost if the
    /// client has left, or its socket's buffer has no room for it.
    pub fn answer(self, line: &str) {
        if let Err(error) = request::send_line(self.0.as_fd(), format!("{line}\n").as_bytes()) {
            log::debug!("vsock: a control client gets no answer: {error}");
        }
    }
}

/// Which way a stream's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What is read from the descriptor is sent to the guest, and its end of file ends the stream.
    /// It is closed when the guest closes the connection.
    ToGuest,
    /// What the guest sends is written to the descriptor, which is closed when the guest has ended
    /// the stream and everything is written. If the descriptor has no reader any more, the guest's
    /// writer gets EPIPE.
    FromGuest,
    /// Both, for a terminal or a socket.
    Duplex,
}

/// Why the device could not be created, or a descriptor not be offered on a port.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A system call failed.
    #[error("vsock: cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The context id is reserved (0 to 2) or does not fit in 32 bits.
    #[error("vsock: {0} is no context id for a guest: use 3 to 4294967294")]
    GuestCid(u64),
    /// The port is in use already, or is in the range that the muxer allocates from.
    #[error("vsock: port {0} is taken")]
    PortTaken(u32),
    /// The table of streams is full.
    #[error("vsock: there are {0} streams already, the most there can be")]
    TooManyStreams(usize),
    /// Every port has been used once.
    #[error("vsock: all ports have been used")]
    OutOfPorts,
}
