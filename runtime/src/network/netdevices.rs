//! `linux.netDevices` of config.json (runtime-spec 1.3): interfaces of the host that become the container's.
//!
//! As with runc 1.4, an interface is moved and renamed in one step, so that no name is taken by mistake, with the
//! addresses that are permanent and of global scope, and is up in the end. Other than with runc, its addresses are
//! read before it is set down, which is when the kernel forgets the IPv6 ones; they keep a broadcast address, a
//! peer and a metric; and where the rest fails, the interface goes back.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};

use super::addresses::is_permanent_and_global;
use super::connect::{change_link, set_link};
use super::error::{Doing, Error, NetlinkError};
use super::links::Link;
use super::namespace::UNDO;
use super::netlink::Netlink;
use super::{Namespace, namespace};
use crate::chain::chain;

/// The network namespace of whoever asks.
const OWN: &str = "/proc/thread-self/ns/net";

/// Moves an interface of the caller's network namespace into another one, where it gets `new_name` if there is one.
/// Returns its index there.
///
/// # Errors
/// When there is no such interface, or one of the new name is there already. An interface that can't be moved, or set
/// up there, is where it was, with its addresses; the kernel has forgotten its routes.
pub fn move_into(
    namespace: &Namespace,
    host_name: &str,
    new_name: Option<&str>,
) -> Result<u32, Error> {
    let name = new_name.unwrap_or(host_name);
    for name in [host_name, name] {
        if !is_interface_name(name) {
            return Err(Error::Name(name.to_owned()));
        }
    }
    // A socket stays in the namespace it was opened in.
    let mut host = Netlink::open(namespace::deadline())?;
    let own: OwnedFd = File::open(OWN).map_err(Error::Enter)?.into();
    let target = namespace.try_clone()?;
    let (name, host_name) = (name.to_owned(), host_name.to_owned());
    let what = format!("move interface {host_name} into the container's network namespace");
    let doing = what.clone();
    namespace.within(&what, move |inside| {
        let interface = Moving::of(&mut host, inside, &host_name)?;
        if interface.is_taken(&name) {
            return Err(Error::Taken(name));
        }
        let moved = interface.there(&mut host, inside, &target, &name);
        if moved.is_err() {
            interface.back(&mut host, inside, &own);
        }
        moved.doing(|| doing)
    })
}

/// Whether it can be an interface's name (`dev_valid_name` of Linux), and is no pattern for one.
pub fn is_interface_name(name: &str) -> bool {
    let is_fine = |c: char| !c.is_ascii_whitespace() && !"/:%\0\u{b}".contains(c);
    (1..libc::IFNAMSIZ).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(is_fine)
}

/// An interface that is being moved.
struct Moving {
    link: Link,
    addresses: Vec<AddressMessage>,
    /// The interfaces that were there before.
    others: Vec<Link>,
}

impl Moving {
    fn of(host: &mut Netlink, inside: &mut Netlink, name: &str) -> Result<Self, Error> {
        let doing = || format!("read the addresses of interface {name}");
        let Some(link) = host.link(name).doing(doing)?.map(Link::from) else {
            return Err(Error::NoInterface(name.to_owned()));
        };
        let mut addresses = host.addresses().doing(doing)?;
        addresses.retain(|address| address.header.index == link.index);
        Ok(Self {
            link,
            addresses,
            others: links(inside).doing(doing)?,
        })
    }

    fn is_taken(&self, name: &str) -> bool {
        self.others.iter().any(|other| other.name == name)
    }

    fn there(
        &self,
        host: &mut Netlink,
        inside: &mut Netlink,
        target: &OwnedFd,
        name: &str,
    ) -> Result<u32, NetlinkError> {
        change_link(
            host,
            self.link.index,
            (LinkFlags::empty(), LinkFlags::Up),
            vec![],
        )?;
        give(host, self.link.index, target, name)?;
        let index = index_of(inside, name)?;
        let carried = (self.addresses.iter()).filter(|address| is_permanent_and_global(address));
        // As the next `name` may be another, a label isn't carried along.
        for address in carried {
            add_address(inside, index, address)?;
        }
        set_link(inside, index, LinkFlags::Up, vec![])?;
        Ok(index)
    }

    /// Puts it where it was, as far as that is possible. If its new name was taken after all, it may be there under its
    /// old one.
    fn back(&self, host: &mut Netlink, inside: &mut Netlink, own: &OwnedFd) {
        let end = Instant::now() + UNDO;
        host.set_deadline(end);
        inside.set_deadline(end);
        let mut bring_back = || -> Result<(), NetlinkError> {
            let index = match host.link(&self.link.name)?.map(Link::from) {
                Some(link) => link.index,
                None => {
                    let is_it = |link: &Link| {
                        link.mac == self.link.mac
                            && !self.others.iter().any(|other| other.index == link.index)
                    };
                    let there = links(inside)?.into_iter().find(is_it);
                    let there = there.ok_or_else(|| gone(&self.link.name))?;
                    give(inside, there.index, own, &self.link.name)?;
                    index_of(host, &self.link.name)?
                }
            };
            if self.link.is_up() {
                set_link(host, index, LinkFlags::Up, vec![])?;
            }
            for address in &self.addresses {
                add_address(host, index, address)?;
            }
            Ok(())
        };
        if let Err(e) = bring_back() {
            log::warn!(
                "interface {} isn't as it was: {}",
                self.link.name,
                chain(&e)
            );
        }
    }
}

/// Moves an interface, and renames it at once.
fn give(netlink: &mut Netlink, index: u32, to: &OwnedFd, name: &str) -> Result<(), NetlinkError> {
    let attributes = vec![
        LinkAttribute::NetNsFd(to.as_raw_fd()),
        LinkAttribute::IfName(name.to_owned()),
    ];
    set_link(netlink, index, LinkFlags::empty(), attributes)
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    Ok(netlink.links()?.into_iter().map(Link::from).collect())
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    let link = netlink.link(name)?.ok_or_else(|| gone(name))?;
    Ok(link.header.index)
}

fn gone(name: &str) -> NetlinkError {
    NetlinkError::Refused {
        said: format!("interface {name} is gone"),
        source: io::Error::from_raw_os_error(libc::ENODEV),
    }
}

/// Adds an address to an interface, if it isn't there.
fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: &AddressMessage,
) -> Result<(), NetlinkError> {
    let mut address = address.clone();
    address.header.index = index;
    let is_label = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Label(_));
    address.attributes.retain(|attribute| !is_label(attribute));
    let request = RouteNetlinkMessage::NewAddress(address);
    netlink.ask(request, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for name in ["eth0", "a", "fifteen-bytes-1", "eth0.100", "...", "ü"] {
            assert!(is_interface_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "sixteen-bytes-12",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "eth%d",
            "a\0",
        ] {
            assert!(!is_interface_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_has_what_a_path_or_a_pattern_would_mean(name in ".{0,20}") {
            if is_interface_name(&name) {
                prop_assert!(name.len() < libc::IFNAMSIZ);
                prop_assert!(!name.contains(['/', ':', '%', ' ', '\n', '\0']));
            }
        }
    }
}
