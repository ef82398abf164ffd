//! Which stream belongs to which port: the ports on offer, the connections, and the groups of streams
//! that somebody waits for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use event_manager::{EventOps, EventSet};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::claims::{Claim, Claims, Shown, TOKEN_LENGTH, Token};
use super::connection::{BUFFER_SIZE, Connection};
use super::deadlines::{Deadline, Timeouts};
use super::endpoint::Endpoint;
use super::packet::{Header, TYPE_STREAM, op};
use super::{Direction, HOST_CID, Offered, VsockError};
use crate::deadlines::Deadlines;
use crate::rate_limit::RateLimit;
use crate::virtio::life::FIRST_EVENT;

/// Streams there may be, connected and on offer.
pub(super) const MAX_STREAMS: usize = 1024;

/// `RST`s and answers to claims that wait for a buffer of the guest's; more are dropped.
pub(super) const MAX_REPLIES: usize = 256;

/// Numbers from here on are no ports but other events' tokens.
pub(super) const FIRST_RESERVED: u32 = FIRST_EVENT;

fn take_over(fd: OwnedFd) -> Result<Endpoint, VsockError> {
    Endpoint::new(fd).map_err(|source| VsockError::Io {
        action: "examine a stream's descriptor",
        source,
    })
}

/// A token that nobody can guess.
fn new_token() -> Result<Token, VsockError> {
    let mut token = [0; TOKEN_LENGTH];
    // Up to 256 bytes come whole.
    getrandom(&mut token[..], GetRandomFlags::empty()).map_err(|errno| VsockError::Io {
        action: "choose a stream's token",
        source: errno.into(),
    })?;
    Ok(token)
}

/// A descriptor that waits for the guest to dial its port.
#[derive(Debug)]
struct Offer {
    /// What is to be sent first; `None` where whoever sends anything gets it.
    token: Option<Token>,
    direction: Direction,
    endpoint: Endpoint,
    group: Option<u32>,
}

/// Who is told when all streams of a group have ended and are flushed.
#[derive(Debug)]
pub(super) enum Waiter {
    /// An eventfd becomes readable.
    EventFd(EventFd),
    /// A control client, by its number.
    Client(u32),
    /// The client has left.
    Nobody,
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
    /// Ports, control clients and groups are numbered together, and no number is used twice: an event
    /// or a packet that comes late can't be taken for another's.
    next_number: u32,
    offers: HashMap<u32, Offer>,
    connections: HashMap<u32, Connection>,
    claims: Claims,
    groups: HashMap<u32, Group>,
    replies: VecDeque<Header>,
    /// Connections with something for the guest, in turn.
    senders: VecDeque<u32>,
    /// Control clients whose groups have ended.
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

    /// All that is open for streams, and for those who wait for their end.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let offers = self.offers.values().map(|offer| &offer.endpoint);
        let connections = self.connections.values().map(|stream| &stream.endpoint);
        let waiters = self
            .groups
            .values()
            .filter_map(|group| match &group.waiter {
                Waiter::EventFd(done) => Some(done.as_raw_fd()),
                Waiter::Client(_) | Waiter::Nobody => None,
            });
        let timer = self.deadlines.as_fd().as_raw_fd();
        let streams = offers.chain(connections).map(AsRawFd::as_raw_fd);
        streams.chain(waiters).chain([timer])
    }

    /// A number that nothing had before.
    pub fn next_number(&mut self) -> Result<u32, VsockError> {
        if self.next_number >= FIRST_RESERVED {
            return Err(VsockError::OutOfPorts);
        }
        self.next_number += 1;
        Ok(self.next_number - 1)
    }

    /// The next of these numbers.
    pub fn next_port(&self) -> u32 {
        self.next_number
    }

    /// Hands out no port below this one any more.
    pub fn skip_ports(&mut self, next: u32) {
        self.next_number = self.next_number.max(next);
    }

    /// Streams connected and on offer.
    pub fn streams(&self) -> usize {
        self.connections.len() + self.offers.len()
    }

    fn check_room(&self, streams: usize) -> Result<(), VsockError> {
        if self.streams() + streams > MAX_STREAMS {
            return Err(VsockError::TooManyStreams(MAX_STREAMS));
        }
        Ok(())
    }

    /// Offers descriptors on fresh ports, as one group. Returns its number and the streams' addresses.
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

    /// Offers a descriptor on a fixed port, to whoever sends something.
    pub fn attach_open(
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

    /// Dials a port of the guest for a socket whose events come with `number`, its host port.
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

    /// Answers a packet of the guest's.
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
            Some(connection) if connection.guest_port == header.src_port && !connection.gone => {
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
            None if self.claims.of(header).is_some() => self.receive_claim(header, payload, ops),
            None if header.op == op::REQUEST && self.offers.contains_key(&port) => {
                self.claim(header);
            }
            _ => self.refuse(header),
        }
    }

    /// Has the guest show that it may have the offer that it has dialled.
    fn claim(&mut self, request: &Header) {
        let (number, oldest) = self.claims.add(*request);
        self.deadlines
            .set(Deadline::Token(number), self.timeouts.token);
        self.push_reply(Header {
            op: op::RESPONSE,
            buf_alloc: BUFFER_SIZE,
            ..request.reset()
        });
        oldest.into_iter().for_each(|claim| self.turn_down(claim));
    }

    /// Takes a packet of somebody who claims an offer.
    fn receive_claim(
        &mut self,
        header: &Header,
        mut payload: Vec<VolatileSlice<'_>>,
        ops: &mut EventOps,
    ) {
        let port = header.dst_port;
        let (Some(claim), Some(offer)) = (self.claims.of(header), self.offers.get(&port)) else {
            return self.refuse(header);
        };
        claim.learn_credit(header);
        let number = claim.number;
        let shown = match header.op {
            op::RW => claim.show(offer.token.as_ref(), &mut payload),
            // It was told of all the credit there is.
            op::CREDIT_UPDATE | op::CREDIT_REQUEST => Shown::Part,
            _ => Shown::Other,
        };
        if shown == Shown::Part {
            return;
        }
        self.deadlines.cancel(Deadline::Token(number));
        let Some(claim) = self.claims.take(number) else {
            return;
        };
        match shown {
            Shown::Token => self.join(&claim, header, payload, ops),
            _ if header.op == op::RST => {}
            _ => {
                self.warn(format_args!("port {port} was dialled without its token"));
                self.turn_down(claim);
            }
        }
    }

    /// Connects the guest to the offer whose token it has sent, with what came behind that.
    fn join(
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
        self.turn_down_all(|claimed| claimed == port);
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

    fn turn_down(&mut self, claim: Claim) {
        self.deadlines.cancel(Deadline::Token(claim.number));
        self.push_reply(claim.request.reset());
    }

    fn turn_down_all(&mut self, which: impl Fn(u32) -> bool) {
        for claim in self.claims.take_all(which) {
            self.turn_down(claim);
        }
    }

    /// Tells a `CONNECT` client that its stream is there.
    fn answer_connect(&mut self, port: u32) {
        self.deadlines.cancel(Deadline::Response(port));
        let answer = format!("OK {port}\n");
        if let Some(connection) = self.connections.get(&port)
            && connection.endpoint.send(answer.as_bytes()).is_err()
        {
            self.reset(port);
        }
    }

    /// An event of a connection's descriptor. Returns whether there is such a connection.
    pub fn on_event(&mut self, port: u32, set: EventSet, ops: &mut EventOps) -> bool {
        let Some(connection) = self.connections.get_mut(&port) else {
            return false;
        };
        connection.endpoint.on_event(set);
        connection.on_ready();
        self.settle(port, ops);
        true
    }

    /// Follows up on whatever happened to a connection: queues it to send, waits for its end, or
    /// takes it away.
    pub fn settle(&mut self, port: u32, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        if !connection.finished() {
            if !connection.queued && connection.has_packets() {
                connection.queued = true;
                self.senders.push_back(port);
            }
            if connection.awaits_shutdown() && !connection.doomed {
                connection.doomed = true;
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

    /// Ends a connection towards the guest; what is buffered is still written.
    fn reset(&mut self, port: u32) {
        if let Some(connection) = self.connections.get_mut(&port)
            && !std::mem::replace(&mut connection.gone, true)
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

    /// Does what is due because a deadline has passed.
    pub fn on_deadline(&mut self, deadline: Deadline, ops: &mut EventOps) {
        match deadline {
            Deadline::Response(port) | Deadline::Shutdown(port) => {
                self.reset(port);
                self.settle(port, ops);
            }
            Deadline::Token(number) => {
                if let Some(claim) = self.claims.take(number) {
                    self.turn_down(claim);
                }
            }
            Deadline::Unclaimed(group) => self.withdraw(|offer| offer.group == Some(group)),
            Deadline::Line(_) | Deadline::Accept => {}
        }
    }

    /// The client that waited for a group has left.
    pub fn orphan(&mut self, group: u32) {
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
        self.turn_down_all(|port| withdrawn.contains_key(&port));
        for group in withdrawn.into_values() {
            self.leave_group(group);
        }
    }

    fn leave_group(&mut self, group: Option<u32>) {
        let Some(number) = group else { return };
        if let Some(group) = self.groups.get_mut(&number) {
            group.streams -= 1; // a stream leaves its group once, when it is taken from its table
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
            Some(Waiter::Nobody) | None => {}
        }
    }

    /// The guest, or its driver, is no more: every connection is as if it had been reset. The loop
    /// must then call [`Self::settle_all`].
    pub fn forget_guest(&mut self) {
        self.turn_down_all(|_| true);
        self.replies.clear();
        for connection in self.connections.values_mut() {
            connection.gone = true;
        }
    }

    /// Nobody will ever dial the ports on offer.
    pub fn withdraw_all(&mut self) {
        self.withdraw(|_| true);
    }

    /// Takes away the connections that have ended.
    pub fn settle_all(&mut self, ops: &mut EventOps) {
        let ports: Vec<_> = self.connections.keys().copied().collect();
        for port in ports {
            self.settle(port, ops);
        }
    }

    /// Whether anything waits to be sent to the guest.
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

    /// The connection whose turn it was has sent something, or can't.
    pub fn sender_served(&mut self, ops: &mut EventOps) {
        if let Some(port) = self.senders.pop_front() {
            if let Some(connection) = self.connections.get_mut(&port) {
                connection.queued = false;
            }
            self.settle(port, ops);
        }
    }

    /// Logs something that the guest can cause, not too often.
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
