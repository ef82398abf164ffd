//! Changes the network of a container from what was set up before to what the host asks for.
//!
//! The host's last request is compared with this one; the addresses and routes that the container has are not listed.
//! So what the container has changed stays changed until the host wants something else there, and what it already has
//! is not taken over, nor removed later.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

use super::Error;
use super::desired::{Desired, Interface};
use super::entries::{Entry, Indexes, UnknownIndex, same_address};
use super::link;
use super::namespaces::Namespaces;
use super::nic::Nic;
use super::rtnetlink::Rtnetlink;

/// Errors for what doesn't exist: it has gone with its interface, or the container has removed it.
const NOT_FOUND: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::ENODEV, libc::EADDRNOTAVAIL];

/// The field of the addresses of `lo`, in the text of an error.
const LOOPBACK_ADDRESSES: &str = "loopback_addresses";

/// What was set up, and is to be removed again. Its messages have the host's indexes.
#[derive(Debug, Default)]
pub struct Applied {
    nics: Vec<Nic>,
    loopback_addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
    rules: Vec<RuleMessage>,
    removed_rules: Vec<RuleMessage>,
    /// Whether the kernel may have removed some of it as an effect of a change, and it was not yet added again.
    may_lack_entries: bool,
}

impl Applied {
    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.nics.is_empty()
            && self.loopback_addresses.is_empty()
            && self.routes.is_empty()
            && self.neighbours.is_empty()
            && self.rules.is_empty()
            && self.removed_rules.is_empty()
    }

    fn indexes(&self) -> Indexes {
        let nics = self.nics.iter();
        let pairs = nics.filter_map(|nic| Some((nic.host_index, nic.link.as_ref()?.index)));
        Indexes(pairs.collect())
    }
}

/// Sets up the network of a container. The calling thread is in the guest's own network namespace, and is moved into
/// the container's, if that is another.
///
/// # Errors
/// Names the first thing that can't be done. The rest is done all the same: one interface that can't be as it should
/// keeps no other from it. What was done is in `applied`.
pub fn apply(
    container: Option<BorrowedFd<'_>>,
    desired: &Desired,
    applied: &mut Applied,
) -> Result<(), Error> {
    let mut namespaces = Namespaces::enter(container)?;
    let located = locate_nics(&mut namespaces.container, applied);
    if !desired.is_empty() {
        located?;
        remove(&mut namespaces, desired, applied)?;
    } else {
        // NICs are released from their slots even if the container keeps its interfaces from being listed.
        return remove(&mut namespaces, desired, applied).and(located);
    }
    let mut result = Ok(());
    for interface in &desired.interfaces {
        result = result.and(set_up(&mut namespaces, interface, applied));
    }
    let mut adding = Adding {
        socket: &mut namespaces.container,
        indexes: &applied.indexes(),
        interfaces: &desired.interfaces,
        field: None,
        again: applied.may_lack_entries,
    };
    result = result.and(adding.add(&desired.neighbours, &mut applied.neighbours));
    result = result.and(adding.add(&desired.routes, &mut applied.routes));
    result = result.and(adding.add(&desired.rules, &mut applied.rules));
    applied.may_lack_entries &= result.is_err();
    adding.field = Some(LOOPBACK_ADDRESSES);
    let addresses = &desired.loopback_addresses;
    result = result.and(adding.replace(addresses, &mut applied.loopback_addresses));
    result = result.and(adding.add(addresses, &mut applied.loopback_addresses));
    let socket = &mut namespaces.container;
    let removed_rules = &mut applied.removed_rules;
    result.and(remove_default_rules(
        socket,
        &desired.removed_rules,
        removed_rules,
    ))
}

/// Finds the NICs in the container's network namespace. Without a list of its interfaces, they count as elsewhere: a
/// known index may be another interface's by now.
fn locate_nics(socket: &mut Rtnetlink, applied: &mut Applied) -> Result<(), Error> {
    if applied.nics.is_empty() {
        return Ok(());
    }
    let nics = &applied.nics;
    let listed = link::find(socket, |link| nics.iter().any(|nic| nic.has(link)));
    let links = listed.as_deref().unwrap_or_default();
    for nic in &mut applied.nics {
        nic.link = links.iter().find(|link| nic.has(link)).cloned();
    }
    listed
        .map(drop)
        .map_err(Error::refused("list the container's interfaces"))
}

/// Removes what is no longer wanted. Goes on after an error, and returns the first.
fn remove(
    namespaces: &mut Namespaces,
    desired: &Desired,
    applied: &mut Applied,
) -> Result<(), Error> {
    let indexes = applied.indexes();
    let mut removing = Removing {
        socket: &mut namespaces.container,
        indexes: &indexes,
    };
    let mut result = restore_default_rules(
        removing.socket,
        &desired.removed_rules,
        &mut applied.removed_rules,
    );
    result = result.and(removing.remove(&desired.rules, &mut applied.rules));
    result = result.and(removing.remove(&desired.routes, &mut applied.routes));
    result = result.and(removing.remove(&desired.neighbours, &mut applied.neighbours));
    let addresses = &mut applied.loopback_addresses;
    result = result.and(removing.remove_addresses(&desired.loopback_addresses, addresses));
    let is_wanted = |nic: &Nic| desired.interfaces.iter().any(|wanted| nic.is_of(wanted));
    applied.nics.retain_mut(|nic| {
        if is_wanted(nic) {
            return true;
        }
        // If the NIC stays in the namespace, its addresses would stay as well.
        let mut removing = Removing {
            socket: &mut namespaces.container,
            indexes: &indexes,
        };
        let removed = removing.remove(&[], &mut nic.addresses);
        let released = removed.and(nic.release(namespaces));
        let is_kept = released.is_err();
        if let (Ok(()), Err(error)) = (&result, released) {
            result = Err(error);
        }
        is_kept
    });
    result
}

/// Sets up an interface and its addresses.
fn set_up(
    namespaces: &mut Namespaces,
    interface: &Interface,
    applied: &mut Applied,
) -> Result<(), Error> {
    // A NIC that the container has moved elsewhere is attached again, if it has come back.
    applied
        .nics
        .retain(|nic| !nic.is_of(interface) || nic.link.is_some());
    if !applied.nics.iter().any(|nic| nic.is_of(interface)) {
        // Recorded first, so that it is released even if it can't be attached.
        applied.nics.push(Nic::new(interface));
        if let Some(nic) = applied.nics.last_mut() {
            nic.attach(namespaces, interface)?;
        }
    }
    let indexes = applied.indexes();
    let Applied {
        nics,
        may_lack_entries,
        ..
    } = applied;
    let Some(nic) = nics.iter_mut().find(|nic| nic.is_of(interface)) else {
        return Ok(());
    };
    let socket = &mut namespaces.container;
    nic.configure(socket, interface, may_lack_entries)?;
    let addresses = &interface.addresses;
    let count = nic.addresses.len();
    let mut removing = Removing {
        socket: &mut *socket,
        indexes: &indexes,
    };
    let removed = removing.remove_addresses(addresses, &mut nic.addresses);
    *may_lack_entries |= nic.addresses.len() != count;
    removed?;
    let field = interface.field();
    let mut adding = Adding {
        socket,
        indexes: &indexes,
        interfaces: &[],
        field: Some(&field),
        again: *may_lack_entries,
    };
    adding.replace(addresses, &mut nic.addresses)?;
    adding.add(addresses, &mut nic.addresses)
}

/// Removes rules that the kernel has made.
fn remove_default_rules(
    socket: &mut Rtnetlink,
    desired: &[RuleMessage],
    applied: &mut Vec<RuleMessage>,
) -> Result<(), Error> {
    for rule in desired {
        if applied.contains(rule) {
            continue;
        }
        match socket.request(RuleMessage::REMOVE, 0, rule) {
            Ok(()) => applied.push(rule.clone()),
            Err(refusal) if is_not_found(&refusal) => {}
            Err(refusal) => {
                let what = format!("removed_rules: rule {}", rule.describe());
                return Err(Error::refused(what)(refusal));
            }
        }
    }
    Ok(())
}

/// Adds rules again that the kernel has made and that were removed.
fn restore_default_rules(
    socket: &mut Rtnetlink,
    desired: &[RuleMessage],
    applied: &mut Vec<RuleMessage>,
) -> Result<(), Error> {
    let mut result = Ok(());
    applied.retain(|rule| {
        if desired.contains(rule) {
            return true;
        }
        match socket.request(RuleMessage::ADD, RuleMessage::ADD_FLAGS, rule) {
            Err(refusal) if !refusal.is(libc::EEXIST) => {
                let what = format!("removed_rules: rule {}: restore it", rule.describe());
                result = Err(Error::refused(what)(refusal));
                true
            }
            _ => false,
        }
    });
    result
}

fn is_not_found(refusal: &super::Refusal) -> bool {
    NOT_FOUND.iter().any(|errno| refusal.is(*errno))
}

/// How entries are removed.
struct Removing<'a> {
    socket: &'a mut Rtnetlink,
    indexes: &'a Indexes,
}

impl Removing<'_> {
    /// Removes what was added and is no longer wanted, in the reverse order. It is no error if the kernel or the
    /// container has removed it. Goes on after another error, and returns the first.
    fn remove<E: Entry>(&mut self, desired: &[E], applied: &mut Vec<E>) -> Result<(), Error> {
        self.remove_unless(|entry| desired.contains(entry), applied)
    }

    /// The same, but what differs in its lifetime or flags stays.
    fn remove_addresses(
        &mut self,
        desired: &[AddressMessage],
        applied: &mut Vec<AddressMessage>,
    ) -> Result<(), Error> {
        let is_wanted = |old: &AddressMessage| desired.iter().any(|new| same_address(old, new));
        self.remove_unless(is_wanted, applied)
    }

    fn remove_unless<E: Entry>(
        &mut self,
        is_wanted: impl Fn(&E) -> bool,
        applied: &mut Vec<E>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for position in (0..applied.len()).rev() {
            let Some(entry) = applied.get(position).filter(|entry| !is_wanted(entry)) else {
                continue;
            };
            // Without its interface it doesn't exist either.
            if let Ok(message) = entry.translated(self.indexes)
                && let Err(refusal) = self.socket.request(E::REMOVE, 0, &message.to_remove())
                && !is_not_found(&refusal)
            {
                let what = format!("{} {}: remove it", E::NAME, entry.describe());
                result = result.and(Err(Error::refused(what)(refusal)));
                continue;
            }
            applied.remove(position);
        }
        result
    }
}

/// How entries are added.
struct Adding<'a> {
    socket: &'a mut Rtnetlink,
    indexes: &'a Indexes,
    /// The interfaces, for their names.
    interfaces: &'a [Interface],
    /// The field that the entries are in, if not in one of their kind.
    field: Option<&'a str>,
    /// Whether to add again what was added before: the kernel may have removed it since.
    again: bool,
}

impl Adding<'_> {
    /// Adds what is wanted and was not added before. What the container already has is not taken over.
    fn add<E: Entry>(&mut self, desired: &[E], applied: &mut Vec<E>) -> Result<(), Error> {
        let mut keys = HashSet::new();
        for entry in desired {
            // Several of the host's routes may differ in their gateways alone. The first of them is the one that is used.
            let key = entry.route_key();
            let others = applied.iter().filter(|other| *other != entry);
            let is_before_own =
                key.is_some() && others.into_iter().any(|other| other.route_key() == key);
            let is_further = key.is_some_and(|key| !keys.insert(key));
            let is_new = !applied.contains(entry);
            if !is_new && !self.again {
                continue;
            }
            let flags = match (is_further, is_before_own) {
                (true, _) => (E::ADD_FLAGS & !NLM_F_EXCL) | NLM_F_APPEND,
                (false, true) => E::ADD_FLAGS & !NLM_F_EXCL,
                (false, false) => E::ADD_FLAGS,
            };
            let message = self.translate(entry)?;
            match self.socket.request(E::ADD, flags, &message) {
                Ok(()) if is_new => applied.push(entry.clone()),
                Ok(()) => {}
                Err(refusal) if refusal.is(libc::EEXIST) => {}
                Err(refusal) => return Err(Error::refused(self.describe(entry))(refusal)),
            }
        }
        Ok(())
    }

    /// Replaces the addresses whose lifetime or flags are to change. If they were removed, routes would go with them.
    fn replace(
        &mut self,
        desired: &[AddressMessage],
        applied: &mut [AddressMessage],
    ) -> Result<(), Error> {
        for old in applied {
            let Some(new) = desired.iter().find(|new| same_address(old, new)) else {
                continue;
            };
            if new == old {
                continue;
            }
            let message = self.translate(new)?;
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            self.socket
                .request(AddressMessage::ADD, flags, &message)
                .map_err(Error::refused(self.describe(new)))?;
            *old = new.clone();
        }
        Ok(())
    }

    fn translate<E: Entry>(&self, entry: &E) -> Result<E, Error> {
        let message = entry.translated(self.indexes);
        message.map_err(|UnknownIndex(index)| Error::UnknownIndex {
            field: self.describe(entry),
            index,
        })
    }

    fn describe<E: Entry>(&self, entry: &E) -> String {
        let text = format!("{} {}", E::NAME, entry.describe());
        let mut interfaces = self.interfaces.iter();
        let interface = interfaces.find(|interface| interface.host_index == entry.host_index());
        match (self.field, interface) {
            (Some(field), _) => format!("{field}: {text}"),
            (None, Some(interface)) => format!("{text} dev {}", interface.name),
            (None, None) => text,
        }
    }
}
