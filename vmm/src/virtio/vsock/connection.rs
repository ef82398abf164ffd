//! A connection between a port of the guest and a descriptor of the host: its state, its credit,
//! and the bytes that wait until the descriptor can be written.
//!
//! "Inbound" data comes from the guest. What the descriptor doesn't accept at once is buffered, at
//! most [`BUFFER_SIZE`], which is announced to the guest as its credit; the connection is reset if
//! it sends more. "Outbound" data goes to the guest. It is never buffered: the descriptor is read
//! directly into the guest's buffers, as far as the guest has given credit.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::Direction;
use super::claims::Claim;
use super::endpoint::{Endpoint, Transferred};
use super::packet::{
    Header, MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, advance, op,
    total_len,
};

/// The size of the buffer for data from the guest, per connection (`buf_alloc`): four of the
/// largest packets, so that the guest can send while the descriptor's reader is busy.
pub(super) const BUFFER_SIZE: u32 = 256 * 1024;

/// How many bytes of the buffer must have become free before an unrequested `CREDIT_UPDATE` is
/// sent. The guest doesn't run out of credit before, since it still has the other half.
const CREDIT_STEP: u32 = BUFFER_SIZE / 2;

/// An empty buffer with a larger capacity than this is freed.
const KEPT_CAPACITY: usize = 16 * 1024;

/// A violation of the protocol by the guest, for which the connection is reset.
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

/// The control packets that have to be sent to the guest.
#[derive(Debug, Default)]
struct PendingControl {
    request: bool,
    shutdown: bool,
    credit_request: bool,
    credit_update: bool,
}

/// The direction from the guest. The counters are in bytes, modulo 2^32.
#[derive(Debug, Default)]
struct Inbound {
    buffer: VecDeque<u8>,
    /// Received from the guest.
    received: u32,
    /// Written to the descriptor, or discarded (`fwd_cnt`).
    forwarded: u32,
    /// The value of `forwarded` that was last sent to the guest.
    reported: u32,
    /// The descriptor can't be written any more: data is discarded.
    broken: bool,
    /// The descriptor's write side has been shut down.
    ended: bool,
}

/// The direction to the guest. The counters are in bytes, modulo 2^32.
#[derive(Debug, Default)]
struct Outbound {
    /// Sent to the guest (`tx_cnt`).
    sent: u32,
    /// The guest's `buf_alloc`.
    allocated: u32,
    /// The guest's `fwd_cnt`.
    forwarded: u32,
    /// A `CREDIT_REQUEST` has been sent, and the guest hasn't given credit since.
    asked: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    guest_cid: u64,
    /// The host's port, which is never reused.
    pub host_port: u32,
    pub guest_port: u32,
    direction: Direction,
    pub endpoint: Endpoint,
    established: bool,
    /// The `SHUTDOWN` flags that were sent to the guest, or are about to be.
    shutdown_sent: u32,
    /// The `SHUTDOWN` flags that were received from the guest.
    shutdown_received: u32,
    /// The connection has been reset by either side; it only remains until the buffered bytes are
    /// written.
    pub is_reset: bool,
    pending: PendingControl,
    inbound: Inbound,
    outbound: Outbound,
    /// It is in the muxer's queue of connections with packets for the guest.
    pub queued: bool,
    /// A deadline for the guest's answer to a full `SHUTDOWN` has been set.
    pub has_shutdown_deadline: bool,
    /// The group of streams that it belongs to.
    pub group: Option<u32>,
}

impl Connection {
    /// A connection that the host opens, by a `REQUEST` to the guest.
    pub fn request(guest_cid: u64, host_port: u32, guest_port: u32, endpoint: Endpoint) -> Self {
        let mut connection = Self::new(
            guest_cid,
            host_port,
            guest_port,
            Direction::Duplex,
            endpoint,
        );
        connection.pending.request = true;
        connection
    }

    /// A connection that the guest has opened and sent the token for. The `RESPONSE` has been sent
    /// already.
    pub fn accept(guest_cid: u64, claim: &Claim, direction: Direction, endpoint: Endpoint) -> Self {
        let request = &claim.request;
        let mut connection = Self::new(
            guest_cid,
            request.dst_port,
            request.src_port,
            direction,
            endpoint,
        );
        connection.update_credit(request);
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
            shutdown_sent: 0,
            shutdown_received: 0,
            is_reset: false,
            pending: PendingControl::default(),
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            queued: false,
            has_shutdown_deadline: false,
            group: None,
        }
    }

    /// Handles a packet from the guest. Returns whether it established the connection.
    pub fn receive(
        &mut self,
        header: &Header,
        payload: Vec<VolatileSlice<'_>>,
    ) -> Result<bool, Violation> {
        if self.is_reset {
            return Err(Violation::Operation(header.op));
        }
        self.update_credit(header);
        match header.op {
            op::RST => self.is_reset = true,
            op::RESPONSE if !self.established && !self.pending.request => {
                self.established = true;
                return Ok(true);
            }
            op::RW if self.established => self.receive_data(payload)?,
            op::SHUTDOWN if self.established => self.receive_shutdown(header.flags),
            op::CREDIT_UPDATE if self.established => {}
            op::CREDIT_REQUEST if self.established => self.pending.credit_update = true,
            other => return Err(Violation::Operation(other)),
        }
        Ok(false)
    }

    fn update_credit(&mut self, header: &Header) {
        self.outbound.allocated = header.buf_alloc;
        self.outbound.forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.outbound.asked = false;
        }
    }

    /// The credit that the guest has given, in bytes. It is 0 if the guest claims to have read more
    /// than was sent.
    fn credit(&self) -> u32 {
        let in_flight = self.outbound.sent.wrapping_sub(self.outbound.forwarded);
        self.outbound.allocated.saturating_sub(in_flight)
    }

    fn receive_data(&mut self, mut payload: Vec<VolatileSlice<'_>>) -> Result<(), Violation> {
        if self.direction == Direction::ToGuest {
            return Err(Violation::NotReceiving);
        }
        if self.shutdown_received & SHUTDOWN_SEND != 0 {
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
                    Transferred::Bytes(count) => {
                        advance(&mut payload, count);
                        self.forward(count as u32);
                    }
                    Transferred::WouldBlock => break,
                    Transferred::End => {
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
        self.shutdown_received |= flags & SHUTDOWN_BOTH;
        if self.shutdown_received & SHUTDOWN_RECEIVE != 0 && self.is_whole_socket() {
            self.endpoint.end_reading();
        }
        self.end_inbound_if_flushed();
    }

    /// Writes the buffered bytes to the descriptor, as far as that is possible without blocking.
    pub fn flush(&mut self) {
        while !self.inbound.buffer.is_empty() {
            let (front, back) = self.inbound.buffer.as_mut_slices();
            match self
                .endpoint
                .write(&[VolatileSlice::from(front), VolatileSlice::from(back)])
            {
                Transferred::Bytes(count) => {
                    self.inbound.buffer.drain(..count);
                    self.forward(count as u32);
                }
                Transferred::WouldBlock => return,
                Transferred::End => {
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
        if news >= CREDIT_STEP && self.shutdown_received & SHUTDOWN_SEND == 0 {
            self.pending.credit_update = true;
        }
    }

    fn end_inbound_if_flushed(&mut self) {
        if self.shutdown_received & SHUTDOWN_SEND != 0
            && self.inbound.buffer.is_empty()
            && !std::mem::replace(&mut self.inbound.ended, true)
            && self.is_whole_socket()
        {
            self.endpoint.end_writing();
        }
    }

    /// Whether the connection uses both directions of a socket, so that it may shut them down. A
    /// socket that it uses in one direction only may belong to another stream in the other
    /// direction (a caller may have one socket for all of its streams), and to the caller. It is
    /// only closed then: the peer sees the end once all descriptors of it are closed.
    fn is_whole_socket(&self) -> bool {
        self.direction == Direction::Duplex
    }

    /// The descriptor can't be written any more: the guest's writer is to get EPIPE.
    fn break_inbound(&mut self) {
        self.forward(self.inbound.buffer.len() as u32);
        self.inbound.buffer = VecDeque::new();
        self.inbound.broken = true;
        self.send_shutdown(match self.direction {
            Direction::Duplex => SHUTDOWN_RECEIVE,
            _ => SHUTDOWN_BOTH,
        });
    }

    /// The descriptor has been read to its end.
    fn end_outbound(&mut self) {
        // On a duplex descriptor a hang-up ends both directions.
        if self.direction == Direction::Duplex && self.endpoint.hung_up {
            self.break_inbound();
        }
        self.send_shutdown(SHUTDOWN_SEND);
    }

    fn send_shutdown(&mut self, flags: u32) {
        if self.shutdown_sent | flags != self.shutdown_sent {
            self.shutdown_sent |= flags;
            self.pending.shutdown = true;
        }
    }

    /// Handles an event, after the endpoint has updated its readiness.
    pub fn on_ready(&mut self) {
        self.flush();
        if self.endpoint.hung_up && self.shutdown_sent & SHUTDOWN_SEND != 0 {
            self.end_outbound();
        }
    }

    /// Whether a `SHUTDOWN` of both directions was sent, which the guest has to answer.
    pub fn awaits_shutdown(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_BOTH && !self.is_reset
    }

    /// Whether the connection is over and all buffered bytes are written, so that the descriptor
    /// can be closed.
    pub fn finished(&self) -> bool {
        let both_sides_know = match self.direction {
            Direction::FromGuest => self.shutdown_received & SHUTDOWN_SEND != 0,
            Direction::ToGuest => self.shutdown_received & SHUTDOWN_RECEIVE != 0,
            Direction::Duplex => self.shutdown_received == SHUTDOWN_BOTH,
        } || (self.shutdown_sent == SHUTDOWN_BOTH
            && self.shutdown_received != 0);
        self.inbound.buffer.is_empty() && (self.is_reset || both_sides_know)
    }

    /// Whether there is a packet for the guest.
    pub fn has_packets(&mut self) -> bool {
        self.sendable() > 0 || self.has_control()
    }

    /// Whether there is a control packet for the guest.
    pub fn has_control(&self) -> bool {
        let pending = &self.pending;
        !self.is_reset
            && (pending.request
                || pending.shutdown
                || pending.credit_request
                || pending.credit_update)
    }

    /// How many bytes may be read from the descriptor for the guest now. If only credit is missing,
    /// a `CREDIT_REQUEST` is scheduled.
    pub fn sendable(&mut self) -> usize {
        let sending = self.established
            && !self.is_reset
            && self.direction != Direction::FromGuest
            && self.shutdown_sent & SHUTDOWN_SEND == 0
            && self.shutdown_received & SHUTDOWN_RECEIVE == 0
            && self.endpoint.readable;
        if !sending {
            return 0;
        }
        let credit = self.credit();
        if credit == 0 && !std::mem::replace(&mut self.outbound.asked, true) {
            self.pending.credit_request = true;
        }
        (credit as usize).min(MAX_PAYLOAD)
    }

    /// Reads from the descriptor into the guest's buffers; the caller completes the packets with
    /// [`Self::data_header`].
    pub fn read(&mut self, slices: &[VolatileSlice<'_>]) -> Transferred {
        let moved = self.endpoint.read(slices);
        match moved {
            Transferred::Bytes(count) => {
                self.outbound.sent = self.outbound.sent.wrapping_add(count as u32);
            }
            Transferred::WouldBlock => {}
            Transferred::End => self.end_outbound(),
        }
        moved
    }

    /// Takes the next control packet, which counts as sent.
    pub fn take_control(&mut self) -> Option<Header> {
        fn take(flag: &mut bool) -> bool {
            std::mem::take(flag)
        }
        let pending = &mut self.pending;
        let op = if take(&mut pending.request) {
            op::REQUEST
        } else if take(&mut pending.shutdown) {
            op::SHUTDOWN
        } else if take(&mut pending.credit_request) {
            op::CREDIT_REQUEST
        } else if take(&mut pending.credit_update) {
            op::CREDIT_UPDATE
        } else {
            return None;
        };
        let mut header = self.header(op);
        if op == op::SHUTDOWN {
            header.flags = self.shutdown_sent;
        }
        Some(header)
    }

    /// The header of a data packet with `len` bytes.
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

    /// A header with this connection's addresses and credit. Since it announces the current credit,
    /// a pending `CREDIT_UPDATE` is dropped.
    fn header(&mut self, op: u16) -> Header {
        self.inbound.reported = self.inbound.forwarded;
        self.pending.credit_update = false;
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
