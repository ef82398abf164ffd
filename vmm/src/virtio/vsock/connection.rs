//! One stream between a port of the guest and a descriptor of the host: its state, its credit, and the
//! bytes that wait for a slow descriptor.
//!
//! "Inbound" is what comes from the guest. What the descriptor doesn't take at once is kept here, never
//! more than [`BUFFER_SIZE`]: the guest is told of that much room and is cut off if it sends more.
//! "Outbound" is what goes to the guest. Nothing of it is kept: the descriptor is read straight into
//! the guest's buffers, as far as the guest has room.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::Direction;
use super::claims::Claim;
use super::endpoint::{Endpoint, Moved};
use super::packet::{
    Header, MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, advance, op,
    total_len,
};

/// The room for bytes from the guest, per connection (`buf_alloc`): four of the largest packets, so
/// that the guest can send while the descriptor's reader works.
pub(super) const BUFFER_SIZE: u32 = 256 * 1024;

/// How much room must have become free before the guest is told without having asked. The guest
/// can't run dry on less: it always knows of the other half.
const CREDIT_STEP: u32 = BUFFER_SIZE / 2;

/// An emptied buffer larger than this is given back.
const KEPT_CAPACITY: usize = 16 * 1024;

/// What the guest did wrong on a connection; it is reset for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("operation {0} is unknown, or not allowed in the connection's state")]
    Operation(u16),
    #[error("data on a stream that only goes to the guest")]
    NotReceiving,
    #[error("data after the guest said that it sends no more")]
    AfterShutdown,
    #[error("more data than the guest has credit for")]
    Credit,
}

/// Control packets that the guest is still to get, each at most once.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    shutdown: bool,
    credit_request: bool,
    credit_update: bool,
}

/// From the guest. The counters are bytes modulo 2^32.
#[derive(Debug, Default)]
struct Inbound {
    buffer: VecDeque<u8>,
    /// What came from the guest.
    received: u32,
    /// What the descriptor took, or was discarded (`fwd_cnt`).
    forwarded: u32,
    /// The `forwarded` that the guest was last told.
    reported: u32,
    /// The descriptor takes no more: what comes is discarded.
    broken: bool,
    /// The descriptor was told that no more will come.
    ended: bool,
}

/// To the guest. The counters are bytes modulo 2^32.
#[derive(Debug, Default)]
struct Outbound {
    /// What the guest was sent (`tx_cnt`).
    sent: u32,
    /// The guest's `buf_alloc`.
    allocated: u32,
    /// The guest's `fwd_cnt`.
    forwarded: u32,
    /// The guest was asked for credit and hasn't given any yet.
    asked: bool,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    guest_cid: u64,
    /// The host's port, which no other connection ever has.
    pub host_port: u32,
    pub guest_port: u32,
    direction: Direction,
    pub endpoint: Endpoint,
    established: bool,
    /// `SHUTDOWN` flags that the guest was told, or is to be.
    declared: u32,
    /// `SHUTDOWN` flags that the guest has sent.
    heard: u32,
    /// The guest has forgotten this connection; only buffered bytes keep it.
    pub gone: bool,
    owed: Owed,
    inbound: Inbound,
    outbound: Outbound,
    /// It waits for its turn to send to the guest.
    pub queued: bool,
    /// Its end has been set a deadline.
    pub doomed: bool,
    /// The group that is told of its end.
    pub group: Option<u32>,
}

impl Connection {
    /// A connection that the host asks the guest for.
    pub fn request(guest_cid: u64, host_port: u32, guest_port: u32, endpoint: Endpoint) -> Self {
        let mut connection = Self::new(
            guest_cid,
            host_port,
            guest_port,
            Direction::Duplex,
            endpoint,
        );
        connection.owed.request = true;
        connection
    }

    /// A connection that the guest has opened, and shown that it may. The guest has its answer already.
    pub fn accept(guest_cid: u64, claim: &Claim, direction: Direction, endpoint: Endpoint) -> Self {
        let request = &claim.request;
        let mut connection = Self::new(
            guest_cid,
            request.dst_port,
            request.src_port,
            direction,
            endpoint,
        );
        connection.learn_credit(request);
        connection.established = true;
        connection.inbound.received = claim.sent();
        connection.inbound.forwarded = claim.sent();
        connection
    }

    fn new(
        guest_cid: u64,
        host_port: u32,
        guest_port: u32,
        direction: Direction,
        endpoint: Endpoint,
    ) -> Self {
        Self {
            guest_cid,
            host_port,
            guest_port,
            direction,
            endpoint,
            established: false,
            declared: 0,
            heard: 0,
            gone: false,
            owed: Owed::default(),
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            queued: false,
            doomed: false,
            group: None,
        }
    }

    /// Takes a packet of the guest's. Returns whether it established the connection.
    pub fn receive(
        &mut self,
        header: &Header,
        payload: Vec<VolatileSlice<'_>>,
    ) -> Result<bool, Violation> {
        if self.gone {
            return Err(Violation::Operation(header.op));
        }
        self.learn_credit(header);
        match header.op {
            op::RST => self.gone = true,
            op::RESPONSE if !self.established && !self.owed.request => {
                self.established = true;
                return Ok(true);
            }
            op::RW if self.established => self.receive_data(payload)?,
            op::SHUTDOWN if self.established => self.receive_shutdown(header.flags),
            op::CREDIT_UPDATE if self.established => {}
            op::CREDIT_REQUEST if self.established => self.owed.credit_update = true,
            other => return Err(Violation::Operation(other)),
        }
        Ok(false)
    }

    fn learn_credit(&mut self, header: &Header) {
        self.outbound.allocated = header.buf_alloc;
        self.outbound.forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.outbound.asked = false;
        }
    }

    /// How many bytes the guest has room for. A guest that claims to have read more than it was sent
    /// gets nothing.
    fn credit(&self) -> u32 {
        let in_flight = self.outbound.sent.wrapping_sub(self.outbound.forwarded);
        self.outbound.allocated.saturating_sub(in_flight)
    }

    fn receive_data(&mut self, mut payload: Vec<VolatileSlice<'_>>) -> Result<(), Violation> {
        if self.direction == Direction::ToGuest {
            return Err(Violation::NotReceiving);
        }
        if self.heard & SHUTDOWN_SEND != 0 {
            return Err(Violation::AfterShutdown);
        }
        let len = total_len(&payload) as u32; // at most MAX_PAYLOAD
        let unread = self.inbound.received.wrapping_sub(self.inbound.forwarded);
        if len > BUFFER_SIZE.saturating_sub(unread) {
            return Err(Violation::Credit);
        }
        self.inbound.received = self.inbound.received.wrapping_add(len);
        if self.inbound.broken {
            self.forward(len);
            return Ok(());
        }
        if self.inbound.buffer.is_empty() {
            while !payload.is_empty() {
                match self.endpoint.write(&payload) {
                    Moved::Bytes(count) => {
                        advance(&mut payload, count);
                        self.forward(count as u32);
                    }
                    Moved::WouldBlock => break,
                    Moved::End => {
                        self.forward(total_len(&payload) as u32);
                        self.break_inbound();
                        return Ok(());
                    }
                }
            }
        }
        let mut chunk = [0; 4096];
        while !payload.is_empty() {
            let count = payload[0].copy_to(&mut chunk);
            self.inbound.buffer.extend(&chunk[..count]);
            advance(&mut payload, count);
        }
        Ok(())
    }

    fn receive_shutdown(&mut self, flags: u32) {
        self.heard |= flags & SHUTDOWN_BOTH;
        if self.heard & SHUTDOWN_RECEIVE != 0 && self.is_whole_socket() {
            self.endpoint.end_reading();
        }
        self.end_inbound_if_flushed();
    }

    /// Writes what is buffered, as far as the descriptor takes it.
    pub fn flush(&mut self) {
        while !self.inbound.buffer.is_empty() {
            let (front, back) = self.inbound.buffer.as_mut_slices();
            match self
                .endpoint
                .write(&[VolatileSlice::from(front), VolatileSlice::from(back)])
            {
                Moved::Bytes(count) => {
                    self.inbound.buffer.drain(..count);
                    self.forward(count as u32);
                }
                Moved::WouldBlock => return,
                Moved::End => {
                    self.break_inbound();
                    return;
                }
            }
        }
        if self.inbound.buffer.capacity() > KEPT_CAPACITY {
            self.inbound.buffer = VecDeque::new();
        }
        self.end_inbound_if_flushed();
    }

    fn forward(&mut self, count: u32) {
        self.inbound.forwarded = self.inbound.forwarded.wrapping_add(count);
        let news = self.inbound.forwarded.wrapping_sub(self.inbound.reported);
        if news >= CREDIT_STEP && self.heard & SHUTDOWN_SEND == 0 {
            self.owed.credit_update = true;
        }
    }

    fn end_inbound_if_flushed(&mut self) {
        if self.heard & SHUTDOWN_SEND != 0
            && self.inbound.buffer.is_empty()
            && !std::mem::replace(&mut self.inbound.ended, true)
            && self.is_whole_socket()
        {
            self.endpoint.end_writing();
        }
    }

    /// Whether a socket is this connection's in both directions. One that goes in one direction alone may be
    /// another stream's in the other, as where a caller has one socket for all of its streams, and is the
    /// caller's besides: it is closed, and its other side sees the end once nobody has it any more.
    fn is_whole_socket(&self) -> bool {
        self.direction == Direction::Duplex
    }

    /// Nobody reads what the guest sends: its writer is to see EPIPE.
    fn break_inbound(&mut self) {
        self.forward(self.inbound.buffer.len() as u32);
        self.inbound.buffer = VecDeque::new();
        self.inbound.broken = true;
        self.declare(match self.direction {
            Direction::Duplex => SHUTDOWN_RECEIVE,
            _ => SHUTDOWN_BOTH,
        });
    }

    /// The descriptor has come to its end.
    fn end_outbound(&mut self) {
        // Where both directions are one thing, a hang-up ends both.
        if self.direction == Direction::Duplex && self.endpoint.hung_up {
            self.break_inbound();
        }
        self.declare(SHUTDOWN_SEND);
    }

    fn declare(&mut self, flags: u32) {
        if self.declared | flags != self.declared {
            self.declared |= flags;
            self.owed.shutdown = true;
        }
    }

    /// Reacts to an event that the endpoint has taken note of.
    pub fn on_ready(&mut self) {
        self.flush();
        if self.endpoint.hung_up && self.declared & SHUTDOWN_SEND != 0 {
            self.end_outbound();
        }
    }

    /// Whether the guest has been told that this end neither sends nor receives any more, so that an
    /// answer is due.
    pub fn awaits_shutdown(&self) -> bool {
        self.declared == SHUTDOWN_BOTH && !self.gone
    }

    /// Whether nothing is left to do, and the descriptor can be closed.
    pub fn finished(&self) -> bool {
        let both_sides_know = match self.direction {
            Direction::FromGuest => self.heard & SHUTDOWN_SEND != 0,
            Direction::ToGuest => self.heard & SHUTDOWN_RECEIVE != 0,
            Direction::Duplex => self.heard == SHUTDOWN_BOTH,
        } || (self.declared == SHUTDOWN_BOTH && self.heard != 0);
        self.inbound.buffer.is_empty() && (self.gone || both_sides_know)
    }

    /// Whether it has anything for the guest.
    pub fn has_packets(&mut self) -> bool {
        self.sendable() > 0 || self.owes_control()
    }

    /// Whether a control packet is due.
    pub fn owes_control(&self) -> bool {
        let owed = &self.owed;
        !self.gone && (owed.request || owed.shutdown || owed.credit_request || owed.credit_update)
    }

    /// How many bytes may be read from the descriptor for the guest now. Asks the guest for credit
    /// where only that is missing.
    pub fn sendable(&mut self) -> usize {
        let sending = self.established
            && !self.gone
            && self.direction != Direction::FromGuest
            && self.declared & SHUTDOWN_SEND == 0
            && self.heard & SHUTDOWN_RECEIVE == 0
            && self.endpoint.readable;
        if !sending {
            return 0;
        }
        let credit = self.credit();
        if credit == 0 && !std::mem::replace(&mut self.outbound.asked, true) {
            self.owed.credit_request = true;
        }
        (credit as usize).min(MAX_PAYLOAD)
    }

    /// Reads for the guest; the caller puts what came into packets with [`Self::data_header`].
    pub fn read(&mut self, slices: &[VolatileSlice<'_>]) -> Moved {
        let moved = self.endpoint.read(slices);
        match moved {
            Moved::Bytes(count) => {
                self.outbound.sent = self.outbound.sent.wrapping_add(count as u32);
            }
            Moved::WouldBlock => {}
            Moved::End => self.end_outbound(),
        }
        moved
    }

    /// The control packet that is due, which counts as sent.
    pub fn take_control(&mut self) -> Option<Header> {
        fn take(flag: &mut bool) -> bool {
            std::mem::take(flag)
        }
        let owed = &mut self.owed;
        let op = if take(&mut owed.request) {
            op::REQUEST
        } else if take(&mut owed.shutdown) {
            op::SHUTDOWN
        } else if take(&mut owed.credit_request) {
            op::CREDIT_REQUEST
        } else if take(&mut owed.credit_update) {
            op::CREDIT_UPDATE
        } else {
            return None;
        };
        let mut header = self.header(op);
        if op == op::SHUTDOWN {
            header.flags = self.declared;
        }
        Some(header)
    }

    /// The header of a packet of `len` bytes of data.
    pub fn data_header(&mut self, len: u32) -> Header {
        Header {
            len,
            ..self.header(op::RW)
        }
    }

    /// The `RST` that ends this connection.
    pub fn reset_header(&mut self) -> Header {
        self.header(op::RST)
    }

    /// A header with this connection's addresses and credit. The guest learns of all the room there
    /// is, so no update is due any more.
    fn header(&mut self, op: u16) -> Header {
        self.inbound.reported = self.inbound.forwarded;
        self.owed.credit_update = false;
        Header {
            src_cid: super::HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len: 0,
            type_: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER_SIZE,
            fwd_cnt: self.inbound.forwarded,
        }
    }
}

#[cfg(test)]
impl Connection {
    pub fn buffered(&self) -> usize {
        self.inbound.buffer.len()
    }
}
