//! An interface of a container's network namespace, connected to a VM: a tap beside it, and all that either of the
//! two receives sent by the other.
//!
//! The guest's interface has the hardware address, the MTU and the name of this one, so to the network it is this
//! one. What the interface receives never comes to the host's own stack any more: netfilter rules and sockets of the
//! namespace see nothing of it.

use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};

use super::error::{Doing, Error, NetlinkError};
use super::links::Link;
use super::namespace::UNDO;
use super::netlink::Netlink;
use super::redirect::{self, Ingress};
use super::turn::Turn;
use super::watch::{Group, Watch};
use super::{Interface, Namespace, local_access, tap};
use crate::chain::chain;

/// How long the tap of a VM process that is being killed may take to go.
const BUSY: Duration = Duration::from_secs(2);

/// What a VM has of an interface: dropped, the tap is gone, and what the interface receives is lost until
/// [`disconnect`].
#[derive(Debug)]
pub struct Connection {
    /// The tap's queues, one descriptor each. They don't block, and aren't inherited. Each frame has a header of
    /// [`HEADER_LENGTH`](super::HEADER_LENGTH) bytes before it.
    pub queues: Vec<OwnedFd>,
    /// The index of the interface.
    pub interface: u32,
    /// The name of the tap.
    pub tap: String,
}

/// Connects an interface to a VM that has that many pairs of queues for it; the kernel takes up to 256.
///
/// # Errors
/// When it is connected already, or has filters of somebody else's; nothing is left of a failure.
pub fn connect(
    namespace: &Namespace,
    interface: &Interface,
    queues: NonZeroU16,
) -> Result<Connection, Error> {
    let what = format!("connect {} to a VM", interface.name);
    let target = Target::of(interface);
    let turn = Turn::of(namespace)?;
    let work = move |netlink: &mut Netlink| target.connect(netlink, queues, &turn);
    namespace.within_or(&what, work, |netlink, made| {
        if let Err(e) = redirect::remove(netlink, made.interface) {
            log::warn!("{}", chain(&e));
        }
    })
}

/// Takes away what is left of a connection on the interface's side, whose index this is. The tap goes with the VM
/// process. To be called once that is gone; it does nothing where there is nothing to do, nor where another VM is
/// connected to the interface meanwhile.
///
/// # Errors
/// When the kernel refuses.
pub fn disconnect(namespace: &Namespace, index: u32) -> Result<(), Error> {
    let what = format!("disconnect interface {index} from a VM");
    let turn = Turn::of(namespace)?;
    namespace.within(&what, move |netlink| remove_remains(netlink, index, &turn))
}

/// Takes away what VMs that are gone have left in a namespace, where nobody knows at which interfaces.
///
/// # Errors
/// As with [`disconnect`].
pub fn disconnect_all(namespace: &Namespace) -> Result<(), Error> {
    let what = "disconnect interfaces from VMs that are gone";
    let turn = Turn::of(namespace)?;
    namespace.within(what, move |netlink| {
        let doing = || what.to_owned();
        for link in netlink.links().doing(doing)? {
            let index = link.header.index;
            let ingress = Ingress::of(netlink, index).doing(doing)?;
            let has_filter = matches!(
                ingress,
                Ingress::Own {
                    has_filter: true,
                    ..
                }
            );
            if has_filter {
                remove_remains(netlink, index, &turn)?;
            }
        }
        Ok(())
    })
}

/// Who has a tap of that name is connected to the interface, or is about to be: it redirects nothing before it has that,
/// nor while this one has its turn.
fn remove_remains(netlink: &mut Netlink, index: u32, turn: &Turn) -> Result<(), Error> {
    let doing = || format!("disconnect interface {index} from a VM");
    let _taken = turn.take()?;
    match netlink.link(&tap::name(index)).doing(doing)? {
        Some(_) => Ok(()),
        None => redirect::remove(netlink, index)
            .and_then(|()| local_access::remove_if_unused(netlink))
            .doing(doing),
    }
}

/// An interface that is being connected.
struct Target {
    index: u32,
    name: String,
    mtu: u32,
    tap: String,
}

impl Target {
    fn of(interface: &Interface) -> Self {
        Self {
            index: interface.index,
            name: interface.name.clone(),
            mtu: interface.mtu,
            tap: tap::name(interface.index),
        }
    }

    /// Everything on the tap's side goes by itself when its descriptors do, so the interface's comes last.
    fn connect(
        self,
        netlink: &mut Netlink,
        queues: NonZeroU16,
        turn: &Turn,
    ) -> Result<Connection, Error> {
        let queues = self.open_tap(queues)?;
        let tap = self.bring_tap_up(netlink, queues.len() > 1)?;
        redirect::add_qdisc(netlink, tap)
            .and_then(|()| redirect::add_filter(netlink, tap, self.index))
            .doing(|| self.while_doing("redirect what the VM sends"))?;
        let taken = turn.take()?;
        self.redirect_received(netlink, tap)?;
        drop(taken);
        Ok(Connection {
            queues,
            interface: self.index,
            tap: self.tap,
        })
    }

    /// Opens the tap. One of a VM process that is being killed is waited for.
    fn open_tap(&self, queues: NonZeroU16) -> Result<Vec<OwnedFd>, Error> {
        let deadline = Instant::now() + BUSY;
        let mut links: Option<Watch> = None;
        loop {
            let source = match tap::open(&self.tap, queues) {
                Ok(tap) => return Ok(tap),
                Err(e) => e,
            };
            let (interface, tap) = (self.name.clone(), self.tap.clone());
            if source.raw_os_error() != Some(libc::EBUSY) {
                return Err(Error::Tap {
                    interface,
                    tap,
                    source,
                });
            }
            match &links {
                // From here on its end isn't missed, so it is tried once more before waiting.
                None => links = Some(Watch::open(&[Group::Links])?),
                Some(links) if links.wait(deadline)? => {}
                Some(_) => {
                    return Err(Error::Busy {
                        interface,
                        tap,
                        seconds: BUSY.as_secs(),
                    });
                }
            }
        }
    }

    /// Gives the tap the interface's MTU and nothing of its own: no ARP, no IPv6 address. Returns its index.
    ///
    /// With several queues it has no qdisc: the kernel would give one to each of the 256 queues that such a tap could
    /// have, which takes megabytes.
    fn bring_tap_up(&self, netlink: &mut Netlink, has_several: bool) -> Result<u32, Error> {
        let mut bring_up = || -> Result<Option<u32>, NetlinkError> {
            let Some(link) = netlink.link(&self.tap)?.map(Link::from) else {
                return Ok(None);
            };
            let mut attributes = vec![LinkAttribute::Mtu(self.mtu)];
            if link.addr_gen_mode.is_some() {
                let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                let family = AfSpecUnspec::Inet6(vec![none]);
                attributes.push(LinkAttribute::AfSpecUnspec(vec![family]));
            }
            // The kernel would bring it up before it looks at the rest.
            set_link(netlink, link.index, LinkFlags::Noarp, attributes)?;
            if has_several {
                redirect::send_at_once(netlink, link.index)?;
            }
            set_link(netlink, link.index, LinkFlags::Up, vec![])?;
            Ok(Some(link.index))
        };
        let up = bring_up().doing(|| self.while_doing("bring up the tap"))?;
        up.ok_or_else(|| Error::NoInterface(self.tap.clone()))
    }

    /// Redirects what the interface receives to the tap, in a place where nobody else does anything with it.
    fn redirect_received(&self, netlink: &mut Netlink, tap: u32) -> Result<(), Error> {
        let doing = || self.while_doing("redirect to the VM what the interface receives");
        let added = match Ingress::of(netlink, self.index).doing(doing)? {
            Ingress::Others(kind) => {
                return Err(Error::Filters {
                    interface: self.name.clone(),
                    kind,
                });
            }
            Ingress::Nothing => redirect::add_qdisc(netlink, self.index),
            // To a tap that is gone: this one's name was free.
            Ingress::Own {
                has_filter: true, ..
            } => redirect::remove_filter(netlink, self.index),
            Ingress::Own { .. } => Ok(()),
        };
        let added = added.and_then(|()| redirect::add_filter(netlink, self.index, tap));
        if added.is_err() {
            netlink.set_deadline(Instant::now() + UNDO);
            if let Err(e) = redirect::remove(netlink, self.index) {
                log::warn!("{}", chain(&e));
            }
        }
        added.doing(doing)
    }

    fn while_doing(&self, what: &str) -> String {
        format!("{what} ({} with the tap {})", self.name, self.tap)
    }
}

/// Sets flags and attributes of an interface.
pub(super) fn set_link(
    netlink: &mut Netlink,
    index: u32,
    flags: LinkFlags,
    attributes: Vec<LinkAttribute>,
) -> Result<(), NetlinkError> {
    change_link(netlink, index, (flags, flags), attributes)
}

/// Changes the flags of the second set to what they are in the first, and sets attributes.
pub(super) fn change_link(
    netlink: &mut Netlink,
    index: u32,
    (flags, changed): (LinkFlags, LinkFlags),
    attributes: Vec<LinkAttribute>,
) -> Result<(), NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.header.flags = flags;
    request.header.change_mask = changed;
    request.attributes = attributes;
    netlink
        .ask(RouteNetlinkMessage::SetLink(request), 0)
        .map(drop)
}
