//! Requests to the kernel by rtnetlink(7), one after the other, each with its answer.
//!
//! netlink-packet-route knows the messages and netlink-sys the socket. What is between, the exchange, is here and
//! not rtnetlink's and netlink-proto's, since these log and pass over an answer that they can't decode and take a
//! dump for whole that a change has cut short (NLM_F_DUMP_INTR): a container would lack a route, and nobody would
//! know. Nothing here waits for two things at once, so it is blocking, with a deadline for all of it.

use std::io;
use std::time::Instant;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use netlink_packet_route::neighbour_table::NeighbourTableMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::{Doing, Error, NetlinkError};
use crate::host::wait_readable;

/// The families of addresses that a container has.
pub(super) const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// How often a dump is read that changes cut short.
const READINGS: u32 = 10;

/// More than the kernel puts into one datagram (32 KiB since Linux 4.9).
pub(super) const LONGEST: usize = 64 << 10;

/// The text in an extended acknowledgement (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The header of a netlink message (linux/netlink.h, `struct nlmsghdr`), which an error repeats.
const HEADER: usize = 16;

/// A socket of the namespace in which it was opened, from whichever thread it is used.
pub(super) struct Netlink {
    socket: Socket,
    deadline: Instant,
    /// Of the last request.
    sequence: u32,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    is_complete: bool,
    was_cut_short: bool,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    /// When there can't be another socket.
    pub(super) fn open(deadline: Instant) -> Result<Self, Error> {
        let open = || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Socket);
        Ok(Self {
            socket: socket.doing(|| "talk to the host's kernel about its network".to_owned())?,
            deadline,
            sequence: 0,
            buffer: Vec::with_capacity(LONGEST),
        })
    }

    /// Until when answers are waited for from now on.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Has the kernel do or tell one thing. `flags` are NLM_F_*.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        Ok(self.exchange(message, flags | NLM_F_ACK)?.messages)
    }

    /// Has the kernel list all things of a kind.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..READINGS {
            let answer = self.exchange(message.clone(), NLM_F_DUMP)?;
            if !answer.was_cut_short {
                return Ok(answer.messages);
            }
        }
        Err(NetlinkError::Changing { times: READINGS })
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer, NetlinkError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(NetlinkError::Socket)?;
        let mut answer = Answer::default();
        while !answer.is_complete {
            self.receive(&mut answer)?;
        }
        Ok(answer)
    }

    /// Adds a datagram to an answer.
    fn receive(&mut self, answer: &mut Answer) -> Result<(), NetlinkError> {
        if !wait_readable(&self.socket, self.deadline).map_err(NetlinkError::Socket)? {
            return Err(NetlinkError::TimedOut);
        }
        self.buffer.clear();
        let length = (self.socket)
            .recv(&mut self.buffer, libc::MSG_TRUNC)
            .map_err(NetlinkError::Socket)?;
        if length > self.buffer.len() {
            let why = format!("a datagram of {length} bytes");
            return Err(NetlinkError::Socket(io::Error::other(why)));
        }
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(NetlinkError::Decode)?;
            let length = header.length() as usize;
            let message =
                NetlinkMessage::deserialize(&rest[..length]).map_err(NetlinkError::Decode)?;
            if message.header.sequence_number == self.sequence {
                answer.add(message)?;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Answer {
    fn add(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Result<(), NetlinkError> {
        self.was_cut_short |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => self.messages.push(inner),
            NetlinkPayload::Error(error) => {
                self.is_complete = true;
                if error.code.is_some() {
                    let has_more = message.header.flags & NLM_F_ACK_TLVS != 0;
                    let said = has_more.then(|| text_of(&error.header)).flatten();
                    let (said, source) = (said.unwrap_or_default(), error.to_io());
                    return Err(NetlinkError::Refused { said, source });
                }
            }
            NetlinkPayload::Done(done) => {
                self.is_complete = true;
                if done.code != 0 {
                    let (said, number) = (String::new(), done.code.saturating_abs());
                    let source = io::Error::from_raw_os_error(number);
                    return Err(NetlinkError::Refused { said, source });
                }
            }
            NetlinkPayload::Overrun(_) => self.was_cut_short = true,
            _ => {}
        }
        Ok(())
    }
}

/// What the kernel says of an error, which follows the header of the request.
fn text_of(error: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(error.get(HEADER..)?);
    let text = (attributes.filter_map(Result::ok)).find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches('\0').to_owned())
}

/// The messages of one kind, of all that came.
macro_rules! only {
    ($messages:expr, $kind:ident) => {
        ($messages.into_iter())
            .filter_map(|message| match message {
                RouteNetlinkMessage::$kind(inner) => Some(inner),
                _ => None,
            })
            .collect()
    };
}

/// What is in the namespace. A family that the kernel lacks has nothing: asked for it, it may list another's.
impl Netlink {
    /// All interfaces, without their statistics.
    pub(super) fn links(&mut self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let mut request = LinkMessage::default();
        let no_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        request.attributes.push(no_statistics);
        Ok(only!(
            self.dump(&RouteNetlinkMessage::GetLink(request))?,
            NewLink
        ))
    }

    /// The interface of that name, if there is one.
    pub(super) fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut request = LinkMessage::default();
        request
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(request), 0) {
            Ok(links) => Ok(one(only!(links, NewLink))),
            Err(e) if e.is(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All addresses of all interfaces, in the kernel's order.
    pub(super) fn addresses(&mut self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut request = AddressMessage::default();
            request.header.family = family;
            let listed = self.dump(&RouteNetlinkMessage::GetAddress(request))?;
            let addresses: Vec<AddressMessage> = only!(listed, NewAddress);
            all.extend((addresses.into_iter()).filter(|address| address.header.family == family));
        }
        Ok(all)
    }

    /// All routes of all tables.
    pub(super) fn routes(&mut self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let listed = self.dump(&RouteNetlinkMessage::GetRoute(request))?;
            let routes: Vec<RouteMessage> = only!(listed, NewRoute);
            all.extend((routes.into_iter()).filter(|route| route.header.address_family == family));
        }
        Ok(all)
    }

    /// All neighbours, and the addresses that an interface answers for (`ip neigh show proxy`).
    pub(super) fn neighbours(&mut self) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            for flags in [NeighbourFlags::empty(), NeighbourFlags::Proxy] {
                let mut request = NeighbourMessage::default();
                request.header.family = family;
                request.header.flags = flags;
                let listed = self.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
                let neighbours: Vec<NeighbourMessage> = only!(listed, NewNeighbour);
                all.extend(
                    (neighbours.into_iter()).filter(|neighbour| neighbour.header.family == family),
                );
            }
        }
        Ok(all)
    }

    /// What all interfaces' neighbours are looked for with, of both families.
    pub(super) fn neighbour_tables(&mut self) -> Result<Vec<NeighbourTableMessage>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbourTable(NeighbourTableMessage::default());
        Ok(only!(self.dump(&request)?, NewNeighbourTable))
    }

    /// All rules for the choice of a routing table.
    pub(super) fn rules(&mut self) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let listed = self.dump(&RouteNetlinkMessage::GetRule(request))?;
            let rules: Vec<RuleMessage> = only!(listed, NewRule);
            all.extend((rules.into_iter()).filter(|rule| rule.header.family == family));
        }
        Ok(all)
    }
}

fn one<T>(list: Vec<T>) -> Option<T> {
    list.into_iter().next()
}
