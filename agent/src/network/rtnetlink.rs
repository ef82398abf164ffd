//! A NETLINK_ROUTE socket (rtnetlink(7)): requests and their answers, dumps, and notifications.
//!
//! The socket belongs to the network namespace of the thread that opens it. It blocks: the kernel carries a request out
//! while it is being sent, so there is nothing else to do meanwhile. The crate rtnetlink isn't used: its messages
//! are an enum of all kinds of links and queueing disciplines, which makes the agent larger by 640 KiB; the
//! four kinds of message that are used here take 110.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::error::Strerror;

/// How long the kernel may take to answer. Usually it has answered when a request is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than any packet that the kernel sends, in bytes.
const MAX_PACKET_LENGTH: usize = 64 << 10;

/// How often a dump is begun again because something has changed meanwhile, before that is an error.
const MAX_DUMP_ATTEMPTS: u32 = 10;

/// The length of a message's header, `struct nlmsghdr`.
const HEADER: usize = 16;

/// The attribute of an answer with a text about the error, `NLMSGERR_ATTR_MSG` (linux/netlink.h).
const EXPLANATION: u16 = 1;

/// The kernel has refused a request.
#[derive(Debug, thiserror::Error)]
#[error("{}{explanation}", Strerror(.source))]
pub struct Refusal {
    /// The error.
    pub source: io::Error,
    /// Empty, or a colon and the kernel's text about the error.
    explanation: String,
}

impl Refusal {
    /// Whether the error has this number, `E*`.
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            explanation: String::new(),
        }
    }
}

/// The socket.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket,
    /// The sequence number of the last request, and of its answers.
    sequence: u32,
}

impl Rtnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request of this kind, `RTM_*`, with these flags, `NLM_F_*`, and waits until it is carried out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn request(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> Result<(), Refusal> {
        self.send(kind, flags | NLM_F_ACK, body)?;
        self.receive(|_| ()).map(drop)
    }

    /// What `parse` makes of the bodies of a dump's messages. A dump during which something has changed may lack
    /// messages, so it is made again.
    ///
    /// # Errors
    /// When the kernel refuses, or something changes each time.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        for _ in 0..MAX_DUMP_ATTEMPTS {
            let mut parsed = Vec::new();
            self.send(kind, NLM_F_DUMP, body)?;
            let is_whole = self.receive(|body| parsed.extend(parse(body)))?;
            if is_whole {
                return Ok(parsed);
            }
        }
        let problem = format!("something has changed during each of {MAX_DUMP_ATTEMPTS} attempts");
        Err(io::Error::other(problem).into())
    }

    fn send(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + body.buffer_len();
        let mut packet = vec![0; length];
        let mut message = NetlinkBuffer::new(&mut packet);
        message.set_length(u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?);
        message.set_message_type(kind);
        message.set_flags(flags | NLM_F_REQUEST);
        message.set_sequence_number(self.sequence);
        body.emit(message.payload_mut());
        self.socket.send(&packet, 0).map(drop)
    }

    /// Receives the answers to the last request, up to the one that ends them, and passes the bodies of the others to
    /// `each`. Returns whether they are a consistent whole.
    fn receive(&mut self, mut each: impl FnMut(&[u8])) -> Result<bool, Refusal> {
        let mut packet = Vec::with_capacity(MAX_PACKET_LENGTH);
        let mut is_whole = true;
        loop {
            packet.clear();
            // Even with SA_RESTART, a signal ends a receive that has a timeout.
            match self.socket.recv(&mut packet, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                received => received.map_err(with_timeout_named)?,
            };
            let mut rest = packet.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                // The answers to an earlier request may not have been read to the end.
                if message.sequence_number() == self.sequence {
                    is_whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                    match message.message_type() {
                        // After the error of a refused request comes the header of that.
                        NLMSG_ERROR => return outcome(&message, HEADER).map(|()| is_whole),
                        NLMSG_DONE => return outcome(&message, 0).map(|()| is_whole),
                        _ => each(message.payload()),
                    }
                }
                let length = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// The error of a receive, which says what took too long if that is the error.
fn with_timeout_named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the kernel's answer took longer than {ANSWER_TIMEOUT:?}"),
        ),
        _ => error,
    }
}

/// The error of the last answer to a request; 0 is none. The attributes come `skip` bytes after it.
fn outcome(message: &NetlinkBuffer<&[u8]>, skip: usize) -> Result<(), Refusal> {
    let payload = message.payload();
    let Some((code, rest)) = payload.split_first_chunk() else {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(());
    }
    let mut explanation = String::new();
    if message.flags() & NLM_F_ACK_TLVS != 0 {
        let attributes = NlasIterator::new(rest.get(skip..).unwrap_or_default());
        let text = attributes.flatten().find(|nla| nla.kind() == EXPLANATION);
        if let Some(text) = text {
            let text = String::from_utf8_lossy(text.value());
            explanation = format!(": {}", text.trim_end_matches(['\0', '.']));
        }
    }
    Err(Refusal {
        source: io::Error::from_raw_os_error(code.saturating_neg()),
        explanation,
    })
}

/// Notifications of changes in a network namespace.
#[derive(Debug)]
pub struct Events(Socket);

impl Events {
    /// Subscribes to the notifications of these groups, `RTMGRP_*`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn subscribe(groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Waits for a notification until the deadline. Returns whether there may have been one.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        set_socket_timeout(&self.0, Timeout::Recv, Some(left))?;
        let mut packet = Vec::with_capacity(MAX_PACKET_LENGTH);
        match self.0.recv(&mut packet, 0) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            // There were more notifications than the socket holds.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
            Err(e) => Err(e),
        }
    }
}
