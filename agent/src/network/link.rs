//! Links, as rtnetlink calls interfaces: their attributes in a dump, and the requests that change them.
//!
//! The attributes are not parsed into the enum of netlink-packet-route: that has those of every kind of link, and adds
//! 300 KiB of code to the agent, of which six attributes are needed.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NlasIterator};
use netlink_packet_route::link::{LinkFlags, LinkHeader};

use super::rtnetlink::{Refusal, Rtnetlink};

/// The length of the header, `struct ifinfomsg`.
const HEADER: usize = 16;

/// A pattern from which the kernel makes a name that is free, with a number in the place of `%d`. With a plain name
/// that is taken, the kernel would move a link to another namespace and then refuse the name.
const ANY_NAME: &str = "eth%d";

/// A link, as a dump shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index in its network namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// Its MAC address.
    pub mac: Vec<u8>,
    /// The MAC address of its device. Only the device's driver can set it.
    pub permanent_mac: Option<Vec<u8>>,
    /// The name of its device, like `virtio3`, the same in every namespace. Nobody can set it.
    pub device: Option<String>,
}

impl Link {
    /// Reads the body of an RTM_NEWLINK.
    fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let mut link = Self {
            index: LinkHeader::parse(body)?.index,
            ..Self::default()
        };
        for attribute in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = value.to_vec(),
                libc::IFLA_PERM_ADDRESS => link.permanent_mac = Some(value.to_vec()),
                libc::IFLA_PARENT_DEV_NAME => link.device = Some(text(value)),
                _ => {}
            }
        }
        Ok(link)
    }
}

fn text(value: &[u8]) -> String {
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(text).into_owned()
}

/// The links of the socket's namespace for which `matches` holds.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn find(socket: &mut Rtnetlink, matches: impl Fn(&Link) -> bool) -> Result<Vec<Link>, Refusal> {
    let parse = |body: &[u8]| Link::parse(body).ok().filter(&matches);
    socket.dump(libc::RTM_GETLINK, &LinkHeader::default(), parse)
}

/// A change to a link.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Its name.
    Name(&'a str),
    /// Its MAC address.
    Mac(&'a [u8]),
    /// Its MTU.
    Mtu(u32),
    /// Whether it is up.
    Up(bool),
    /// Whether it resolves neighbours (by ARP, for IPv4).
    Arp(bool),
    /// Its network namespace, and its name there. Without one, the kernel gives it one that is free.
    Namespace(BorrowedFd<'a>, Option<&'a str>),
}

/// Changes a link of the socket's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn change(socket: &mut Rtnetlink, index: u32, change: Change<'_>) -> Result<(), Refusal> {
    let mut request = Request::default();
    request.header.index = index;
    match change {
        Change::Name(name) => request.set(libc::IFLA_IFNAME, null_terminated(name)),
        Change::Mac(mac) => request.set(libc::IFLA_ADDRESS, mac.to_vec()),
        Change::Mtu(mtu) => request.set(libc::IFLA_MTU, mtu.to_ne_bytes().to_vec()),
        Change::Up(up) => request.set_flag(LinkFlags::Up, up),
        Change::Arp(arp) => request.set_flag(LinkFlags::Noarp, !arp),
        Change::Namespace(namespace, name) => {
            let fd = namespace.as_raw_fd().to_ne_bytes();
            request.set(libc::IFLA_NET_NS_FD, fd.to_vec());
            let name = name.unwrap_or(ANY_NAME);
            request.set(libc::IFLA_IFNAME, null_terminated(name));
        }
    }
    socket.request(libc::RTM_SETLINK, 0, &request)
}

fn null_terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The body of an RTM_SETLINK.
#[derive(Default)]
struct Request {
    header: LinkHeader,
    attributes: Vec<DefaultNla>,
}

impl Request {
    fn set(&mut self, attribute: u16, value: Vec<u8>) {
        self.attributes.push(DefaultNla::new(attribute, value));
    }

    fn set_flag(&mut self, flag: LinkFlags, value: bool) {
        self.header.change_mask = flag;
        self.header.flags = if value { flag } else { LinkFlags::empty() };
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER);
        self.header.emit(header);
        self.attributes.as_slice().emit(attributes);
    }
}
