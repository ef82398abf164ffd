//! Maps ports to streams: the offered ports, the connections, and the groups of streams whose end
//! somebody waits for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::claims::{Claim, Claims, Token, TokenMatch};
use super::connection::{BUFFER_SIZE, Connection};
use super::deadlines::{Deadline, Timeouts};
use super::endpoint::Endpoint;
use super::given;
use super::offer::{Offer, new_token, take_over};
use super::packet::{Header, TYPE_STREAM, op};
use super::{Direction, HOST_CID, Offered, VsockError};
use crate::deadlines::Deadlines;
use crate::rate_limit::RateLimit;
use crate::virtio::lifecycle::FIRST_EVENT;

/// The most streams, connected and offered.
pub(super) const MAX_STREAMS: usize = 1024;

/// The most replies (`RST`s, and `RESPONSE`s to claims) that are queued for the guest; others are
/// dropped.
pub(super) const MAX_REPLIES: usize = 256;

/// Ports are below this number; from here on, numbers are the data of other events.
pub(super) const FIRST_RESERVED: u32 = FIRST_EVENT;

/// Who is notified when all streams of a group have ended and all data is written.
#[derive(Debug)]
pub(super) enum Waiter {
    /// An eventfd, which becomes readable.
    EventFd(EventFd),
    /// A control client, by its number.
    Client(u32),
    /// Nobody: the client has left.
    Nobody,
    /// Whoever gives streams, and counts those that there are.
    Giver {
        /// One more of them.
        _count: Arc<()>,
    },
}

#[derive(Debug)]
struct Group {
    streams: usize,
    waiter: Waiter,
}

/// The state behind the device's queues.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    first_port: u32,
    /// Ports, control clients and groups are numbered from the same counter, and no number is used
    /// twice, so that a late event or packet can't be mistaken for another's.
    next_number: u32,
    offers: HashMap<u32, Offer>,
    connections: HashMap<u32, Connection>,
    claims: Claims,
    groups: HashMap<u32, Group>,
    replies: VecDeque<Header>,
    /// The connections with packets for the guest, in the order in which they will be served.
    senders: VecDeque<u32>,
    /// The control clients whose groups have ended and who haven't been notified yet.
    pub done_clients: Vec<u32>,
    pub deadlines: Deadlines<Deadline>,
    pub timeouts: Timeouts,
    warnings: RateLimit,
}

impl Muxer {
    pub fn new(guest_cid: u64, first_port: u32) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            first_port,
            next_number: first_port,
            offers: HashMap::new(),
            connections: HashMap::new(),
            claims: Claims::default(),
            groups: HashMap::new(),
            replies: VecDeque::new(),
            senders: VecDeque::new(),
            done_clients: Vec::new(),
            deadlines: Deadlines::new()?,
            timeouts: Timeouts::default(),
            warnings: RateLimit::default(),
        })
    }

    /// The descriptors of all streams, of the waiters' eventfds, and of the timer.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let offers = self.offers.values().map(|offer| &offer.endpoint);
        let connections = self.connections.values().map(|stream| &stream.endpoint);
        let waiters = self
            .groups
            .values()
            .filter_map(|group| match &group.waiter {
                Waiter::EventFd(done) => Some(done.as_raw_fd()),
                Waiter::Client(_) | Waiter::Nobody | Waiter::Giver { .. } => None,
            });
        let timer = self.deadlines.as_fd().as_raw_fd();
        let streams = offers.chain(connections).map(AsRawFd::as_raw_fd);
        streams.chain(waiters).chain([timer])
    }

    /// Allocates a number.
    pub fn next_number(&mut self) -> Result<u32, VsockError> {
        if self.next_number >= given::FIRST_PORT {
            return Err(VsockError::OutOfPorts);
        }
        self.next_number += 1;
        Ok(self.next_number - 1)
    }

    /// The next number that will be allocated.
    pub fn next_port(&self) -> u32 {
        self.next_number
    }

    /// Makes sure that no port below this one is allocated any more.
    pub fn skip_ports(&mut self, next: u32) {
        self.next_number = self.next_number.max(next);
    }

    /// The number of streams, connected and offered.
    pub fn streams(&self) -> usize {
        self.connections.len() + self.offers.len()
    }

    fn check_room(&self, streams: usize) -> Result<(), VsockError> {
        if self.streams() + streams > MAX_STREAMS {
            return Err(VsockError::TooManyStreams(MAX_STREAMS));
        }
        Ok(())
    }

    /// Offers descriptors on newly allocated ports, as one group. Returns its number, and each
    /// stream's port and token.
    pub fn attach(
        &mut self,
        streams: Vec<(Direction, OwnedFd)>,
        waiter: Waiter,
    ) -> Result<(u32, Vec<Offered>), VsockError> {
        self.check_room(streams.len())?;
        let group = self.next_number()?;
        let mut offers = Vec::with_capacity(streams.len());
        let mut offered = Vec::with_capacity(streams.len());
        for (direction, fd) in streams {
            let (port, token) = (self.next_number()?, new_token()?);
            let offer = Offer {
                token: Some(token),
                direction,
                endpoint: take_over(fd)?,
                group: Some(group),
            };
            offers.push((port, offer));
            offered.push(Offered { port, token });
        }
        self.offers.extend(offers);
        let streams = offered.len();
        self.groups.insert(group, Group { streams, waiter });
        if streams == 0 {
            self.end_group(group);
        }
        Ok((group, offered))
    }

    /// Offers a descriptor on a fixed port without a token: to the first connection that sends
    /// data.
    pub fn attach_without_token(
        &mut self,
        port: u32,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<(), VsockError> {
        self.offer_at(port, None, direction, fd)
    }

    /// Offers a descriptor on a fixed port. Returns its token.
    pub fn attach_at(
        &mut self,
        port: u32,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<Token, VsockError> {
        let token = new_token()?;
        self.offer_at(port, Some(token), direction, fd)?;
        Ok(token)
    }

    fn offer_at(
        &mut self,
        port: u32,
        token: Option<Token>,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<(), VsockError> {
        if port >= self.first_port
            || self.offers.contains_key(&port)
            || self.connections.contains_key(&port)
        {
            return Err(VsockError::PortTaken(port));
        }
        self.check_room(1)?;
        let endpoint = take_over(fd)?;
        let offer = Offer {
            token,
            direction,
            endpoint,
            group: None,
        };
        self.offers.insert(port, offer);
        Ok(())
    }

    /// Offers a descriptor that was given with its port and token, for a limited time. `count` is kept for as long as
    /// the stream is there.
    pub fn offer_given(
        &mut self,
        Offered { port, token }: Offered,
        fd: OwnedFd,
        count: Arc<()>,
    ) -> Result<(), VsockError> {
        if self.offers.contains_key(&port) || self.connections.contains_key(&port) {
            return Err(VsockError::PortTaken(port));
        }
        self.check_room(1)?;
        let (endpoint, group) = (take_over(fd)?, self.next_number()?);
        let offer = Offer {
            token: Some(token),
            direction: Direction::Duplex,
            endpoint,
            group: Some(group),
        };
        self.offers.insert(port, offer);
        let waiter = Waiter::Giver { _count: count };
        self.groups.insert(group, Group { streams: 1, waiter });
        self.deadlines
            .set(Deadline::Unclaimed(group), self.timeouts.unclaimed);
        Ok(())
    }

    /// Connects a client's socket to a port of the guest. `number` becomes its host port, and is
    /// the data of its events.
    pub fn connect(&mut self, number: u32, guest_port: u32, fd: OwnedFd, ops: &mut EventOps) {
        let mut endpoint = Endpoint::registered_socket(fd);
        if self.check_room(1).is_err() {
            endpoint.unregister(ops);
            return self.warn(format_args!("a client is turned away: too many streams"));
        }
        let connection = Connection::request(self.guest_cid, number, guest_port, endpoint);
        self.connections.insert(number, connection);
        self.deadlines
            .set(Deadline::Response(number), self.timeouts.response);
        self.settle(number, ops);
    }

    /// Handles a packet from the guest.
    pub fn receive(
        &mut self,
        header: &Header,
        payload: Vec<VolatileSlice<'_>>,
        ops: &mut EventOps,
    ) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            let (src, dst) = (header.src_cid, header.dst_cid);
            return self.warn(format_args!(
                "a packet from context {src} to {dst} is dropped"
            ));
        }
        if header.type_ != TYPE_STREAM {
            return self.refuse(header);
        }
        let port = header.dst_port;
        match self.connections.get_mut(&port) {
            Some(connection)
                if connection.guest_port == header.src_port && !connection.is_reset =>
            {
                match connection.receive(header, payload) {
                    Ok(false) => {}
                    Ok(true) => self.answer_connect(port),
                    Err(violation) => {
                        self.warn(format_args!("port {port} is reset: {violation}"));
                        self.reset(port);
                    }
                }
                self.settle(port, ops);
            }
            None if self.claims.find(header).is_some() => self.receive_claim(header, payload, ops),
            None if header.op == op::REQUEST && self.offers.contains_key(&port) => {
                self.claim(header);
            }
            _ => self.refuse(header),
        }
    }

    /// Accepts a connection to an offered port as a claim, which has to send the token next.
    fn claim(&mut self, request: &Header) {
        let (number, oldest) = self.claims.add(*request);
        self.deadlines
            .set(Deadline::Token(number), self.timeouts.token);
        self.push_reply(Header {
            op: op::RESPONSE,
            buf_alloc: BUFFER_SIZE,
            ..request.reset()
        });
        oldest.into_iter().for_each(|claim| self.reset_claim(claim));
    }

    /// Handles a packet of a claim.
    fn receive_claim(
        &mut self,
        header: &Header,
        mut payload: Vec<VolatileSlice<'_>>,
        ops: &mut EventOps,
    ) {
        let port = header.dst_port;
        let (Some(claim), Some(offer)) = (self.claims.find(header), self.offers.get(&port)) else {
            return self.refuse(header);
        };
        claim.update_credit(header);
        let number = claim.number;
        let matched = match header.op {
            op::RW => claim.match_token(offer.token.as_ref(), &mut payload),
            // The guest knows the credit from the `RESPONSE` already.
            op::CREDIT_UPDATE | op::CREDIT_REQUEST => TokenMatch::Partial,
            _ => TokenMatch::Wrong,
        };
        if matched == TokenMatch::Partial {
            return;
        }
        self.deadlines.cancel(Deadline::Token(number));
        let Some(claim) = self.claims.take(number) else {
            return;
        };
        match matched {
            TokenMatch::Complete => self.accept(&claim, header, payload, ops),
            _ if header.op == op::RST => {}
            _ => {
                self.warn(format_args!("port {port} was dialled without its token"));
                self.reset_claim(claim);
            }
        }
    }

    /// Makes a connection of a claim that has sent the token. `rest` is the data that followed it.
    fn accept(
        &mut self,
        claim: &Claim,
        header: &Header,
        rest: Vec<VolatileSlice<'_>>,
        ops: &mut EventOps,
    ) {
        let port = header.dst_port;
        let Some(mut offer) = self.offers.remove(&port) else {
            return self.refuse(header);
        };
        self.reset_claims(|claimed| claimed == port);
        if let Err(error) = offer.endpoint.register(offer.direction, port, ops) {
            self.warn(format_args!(
                "port {port}: cannot watch its descriptor: {error}"
            ));
            self.refuse(header);
            return self.leave_group(offer.group);
        }
        let mut connection =
            Connection::accept(self.guest_cid, claim, offer.direction, offer.endpoint);
        connection.group = offer.group;
        self.connections.insert(port, connection);
        if rest.is_empty() {
            self.settle(port, ops);
        } else {
            self.receive(header, rest, ops);
        }
    }

    fn reset_claim(&mut self, claim: Claim) {
        self.deadlines.cancel(Deadline::Token(claim.number));
        self.push_reply(claim.request.reset());
    }

    fn reset_claims(&mut self, which: impl Fn(u32) -> bool) {
        for claim in self.claims.take_all(which) {
            self.reset_claim(claim);
        }
    }

    /// Sends `OK` to a `CONNECT` client.
    fn answer_connect(&mut self, port: u32) {
        self.deadlines.cancel(Deadline::Response(port));
        let answer = format!("OK {port}\n");
        if let Some(connection) = self.connections.get(&port)
            && connection.endpoint.send(answer.as_bytes()).is_err()
        {
            self.reset(port);
        }
    }

    /// Handles an event of a connection's descriptor. Returns whether there is such a connection.
    pub fn on_event(&mut self, port: u32, set: EventSet, ops: &mut EventOps) -> bool {
        let Some(connection) = self.connections.get_mut(&port) else {
            return false;
        };
        connection.endpoint.on_event(set);
        connection.on_ready();
        self.settle(port, ops);
        true
    }

    /// To be called after any change of a connection: queues it if it has packets, sets the
    /// deadline for its shutdown, or removes it if it is finished.
    pub fn settle(&mut self, port: u32, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        if !connection.finished() {
            if !connection.queued && connection.has_packets() {
                connection.queued = true;
                self.senders.push_back(port);
            }
            if connection.awaits_shutdown() && !connection.has_shutdown_deadline {
                connection.has_shutdown_deadline = true;
                self.deadlines
                    .set(Deadline::Shutdown(port), self.timeouts.shutdown);
            }
            return;
        }
        self.reset(port);
        if let Some(mut connection) = self.connections.remove(&port) {
            connection.endpoint.unregister(ops);
            self.senders.retain(|sender| *sender != port);
            self.deadlines.cancel(Deadline::Response(port));
            self.deadlines.cancel(Deadline::Shutdown(port));
            self.leave_group(connection.group);
        }
    }

    /// Resets a connection: the guest is sent an `RST`; buffered data is still written to the
    /// descriptor.
    fn reset(&mut self, port: u32) {
        if let Some(connection) = self.connections.get_mut(&port)
            && !std::mem::replace(&mut connection.is_reset, true)
        {
            let header = connection.reset_header();
            self.push_reply(header);
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.push_reply(header.reset());
        }
    }

    fn push_reply(&mut self, header: Header) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(header);
        }
    }

    /// Handles a deadline that has passed.
    pub fn on_deadline(&mut self, deadline: Deadline, ops: &mut EventOps) {
        match deadline {
            Deadline::Response(port) | Deadline::Shutdown(port) => {
                self.reset(port);
                self.settle(port, ops);
            }
            Deadline::Token(number) => {
                if let Some(claim) = self.claims.take(number) {
                    self.reset_claim(claim);
                }
            }
            Deadline::Unclaimed(group) => self.withdraw(|offer| offer.group == Some(group)),
            Deadline::RequestLine(_) | Deadline::Accept => {}
        }
    }

    /// The client that waited for a group has left: its ports stay on offer for a limited time.
    pub fn client_left(&mut self, group: u32) {
        if let Some(state) = self.groups.get_mut(&group) {
            state.waiter = Waiter::Nobody;
            self.deadlines
                .set(Deadline::Unclaimed(group), self.timeouts.unclaimed);
        }
    }

    fn withdraw(&mut self, which: impl Fn(&Offer) -> bool) {
        let withdrawn: HashMap<_, _> = self
            .offers
            .extract_if(|_, offer| which(offer))
            .map(|(port, offer)| (port, offer.group))
            .collect();
        self.reset_claims(|port| withdrawn.contains_key(&port));
        for group in withdrawn.into_values() {
            self.leave_group(group);
        }
    }

    fn leave_group(&mut self, group: Option<u32>) {
        let Some(number) = group else { return };
        if let Some(group) = self.groups.get_mut(&number) {
            group.streams -= 1; // can't underflow: each stream leaves its group once
            if group.streams == 0 {
                self.end_group(number);
            }
        }
    }

    fn end_group(&mut self, number: u32) {
        self.deadlines.cancel(Deadline::Unclaimed(number));
        match self.groups.remove(&number).map(|group| group.waiter) {
            Some(Waiter::EventFd(done)) => {
                if let Err(error) = done.write(1) {
                    log::error!("vsock: cannot tell that a group of streams has ended: {error}");
                }
            }
            Some(Waiter::Client(client)) => self.done_clients.push(client),
            Some(Waiter::Nobody | Waiter::Giver { .. }) | None => {}
        }
    }

    /// Treats all connections as reset by the guest, whose driver has reset the device or which has
    /// been stopped. The loop must then call [`Self::settle_all`].
    pub fn reset_all(&mut self) {
        self.reset_claims(|_| true);
        self.replies.clear();
        for connection in self.connections.values_mut() {
            connection.is_reset = true;
        }
    }

    /// Withdraws all offers.
    pub fn withdraw_all(&mut self) {
        self.withdraw(|_| true);
    }

    /// Calls [`Self::settle`] for all connections.
    pub fn settle_all(&mut self, ops: &mut EventOps) {
        let ports: Vec<_> = self.connections.keys().copied().collect();
        for port in ports {
            self.settle(port, ops);
        }
    }

    /// Whether any packet is queued for the guest.
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.senders.is_empty()
    }

    pub fn next_reply(&self) -> Option<&Header> {
        self.replies.front()
    }

    pub fn reply_sent(&mut self) {
        self.replies.pop_front();
    }

    /// The connection whose turn it is to send.
    pub fn next_sender(&mut self) -> Option<&mut Connection> {
        self.connections.get_mut(self.senders.front()?)
    }

    /// The connection whose turn it was has been served.
    pub fn sender_served(&mut self, ops: &mut EventOps) {
        if let Some(port) = self.senders.pop_front() {
            if let Some(connection) = self.connections.get_mut(&port) {
                connection.queued = false;
            }
            self.settle(port, ops);
        }
    }

    /// Logs a warning that the guest can cause, rate-limited.
    pub fn warn(&mut self, message: std::fmt::Arguments<'_>) {
        self.warnings.warn("vsock", message);
    }
}

#[cfg(test)]
impl Muxer {
    pub fn queued_replies(&self) -> usize {
        self.replies.len()
    }

    pub fn claims(&self) -> usize {
        self.claims.len()
    }

    pub fn token(&self, port: u32) -> Option<Token> {
        self.offers.get(&port)?.token
    }

    pub fn buffered(&self) -> usize {
        self.connections.values().map(Connection::buffered).sum()
    }
}
