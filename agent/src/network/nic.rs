//! A NIC of the guest that a container has as an interface: where it comes from, what was set on it, and where it goes.
//!
//! It is identified by its virtio device, in every network namespace and under every name that the container gives it.

use std::path::Path;

use netlink_packet_route::address::AddressMessage;

use super::Error;
use super::desired::{Interface, Sysctl};
use super::link::{self, Change, Link};
use super::namespaces::{NIC_TIMEOUT, Namespaces};
use super::rtnetlink::Rtnetlink;
use super::sysctl;
use crate::slots;

/// A NIC.
#[derive(Debug)]
pub struct Nic {
    /// The host's index of the interface.
    pub host_index: u32,
    /// The NIC's link, if it is in the container's network namespace.
    pub link: Option<Link>,
    /// The addresses that were added to it.
    pub addresses: Vec<AddressMessage>,
    /// The slot by which the host has named it.
    slot: Option<u32>,
    /// The slot that its device is in.
    device_slot: Option<u32>,
    /// The state that was set last. The container may have changed it since.
    name: String,
    mac: Vec<u8>,
    mtu: Option<u32>,
    arp: bool,
    up: bool,
    sysctls: Vec<Sysctl>,
}

impl Nic {
    /// An interface's NIC, which is still to be [attached](Self::attach).
    pub fn new(interface: &Interface) -> Self {
        Self {
            host_index: interface.host_index,
            link: None,
            addresses: Vec::new(),
            slot: interface.slot,
            device_slot: interface.slot,
            name: interface.name.clone(),
            mac: Vec::new(),
            mtu: None,
            arp: true,
            up: false,
            sysctls: Vec::new(),
        }
    }

    /// Finds the NIC in the container's network namespace, where the guest's kernel makes it when its slot is bound, or
    /// moves it there.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(
        &mut self,
        namespaces: &mut Namespaces,
        interface: &Interface,
    ) -> Result<(), Error> {
        let field = interface.field();
        let device = interface.slot.map(|slot| bind(&field, slot)).transpose()?;
        let here = match &device {
            Some(device) => {
                let is_its = |link: &Link| link.device.as_ref() == Some(device);
                let found = link::find(&mut namespaces.container, is_its);
                found.map_err(Error::refused(format!("{field}: find its NIC")))?
            }
            None => Vec::new(),
        };
        let link = match here.into_iter().next() {
            Some(link) => link,
            None => self.fetch(namespaces, interface, device.as_deref())?,
        };
        self.name.clone_from(&link.name);
        self.mac.clone_from(&link.mac);
        self.link = Some(link);
        Ok(())
    }

    /// Moves the NIC from the guest's own network namespace into the container's: one that was there at boot, or where
    /// the kernel is one that makes all of them there.
    fn fetch(
        &mut self,
        namespaces: &mut Namespaces,
        interface: &Interface,
        device: Option<&str>,
    ) -> Result<Link, Error> {
        let field = interface.field();
        let matches = |link: &Link| match device {
            Some(device) => link.device.as_deref() == Some(device),
            None => link.permanent_mac.as_ref().unwrap_or(&link.mac) == &interface.mac,
        };
        let nic = || describe(device, interface);
        let finding = || Error::refused(format!("{field}: find its NIC"));
        let found = namespaces.wait_for_link(matches).map_err(finding())?;
        let link = found.ok_or_else(|| Error::NoNic {
            field: field.clone(),
            nic: nic(),
            seconds: NIC_TIMEOUT.as_secs(),
        })?;
        if let Some(device) = &link.device {
            let slot = slots::slot_of(Path::new(slots::VIRTIO_DEVICES), device);
            self.device_slot = slot.map_err(Error::io(format!("{field}: find its slot")))?;
        }
        let moving = format!("{field}: move {} to the container", link.name);
        namespaces
            .move_to_container(link.index, &interface.name)
            .map_err(Error::refused(moving))?;
        // Its index and name may be others there.
        let moved = link::find(&mut namespaces.container, |other| is_same(&link, other));
        let moved = moved.map_err(finding())?.into_iter().next();
        moved.ok_or_else(|| Error::NicMoved {
            field: field.clone(),
            nic: nic(),
        })
    }

    /// Whether it is the NIC of this interface.
    pub fn is_of(&self, interface: &Interface) -> bool {
        self.host_index == interface.host_index && self.slot == interface.slot
    }

    /// Whether a link of the container's network namespace is this NIC's.
    pub fn has(&self, link: &Link) -> bool {
        self.link.as_ref().is_some_and(|ours| match &ours.device {
            Some(_) => ours.device == link.device,
            None => ours.index == link.index,
        })
    }

    /// Sets what differs from what was set before: name, MAC address, MTU, ARP, sysctls, and whether it is up. If
    /// anything does, sets `may_lack_entries`: with such a change the kernel may have removed addresses and routes.
    ///
    /// # Errors
    /// When the kernel refuses. What was set is recorded.
    pub fn configure(
        &mut self,
        socket: &mut Rtnetlink,
        interface: &Interface,
        may_lack_entries: &mut bool,
    ) -> Result<(), Error> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let field = interface.field();
        let mut set = |change: Change<'_>, what: String| {
            *may_lack_entries = true;
            link::change(socket, link.index, change)
                .map_err(Error::refused(format!("{field}: {what}")))
        };
        if self.name != interface.name {
            let what = format!("name: rename it from {}", self.name);
            set(Change::Name(&interface.name), what)?;
            self.name.clone_from(&interface.name);
            link.name.clone_from(&interface.name);
        }
        if self.mac != interface.mac {
            set(Change::Mac(&interface.mac), "mac".into())?;
            self.mac.clone_from(&interface.mac);
        }
        if let Some(mtu) = interface.mtu
            && self.mtu != Some(mtu)
        {
            set(Change::Mtu(mtu), format!("mtu: set it to {mtu}"))?;
            self.mtu = Some(mtu);
        }
        if self.arp != interface.arp {
            set(Change::Arp(interface.arp), "no_arp".into())?;
            self.arp = interface.arp;
        }
        let sysctls = set_sysctls(&mut self.sysctls, &link.name, interface)?;
        if self.up != interface.up {
            let what = if interface.up { "up" } else { "down" };
            set(Change::Up(interface.up), format!("set it {what}"))?;
            self.up = interface.up;
        }
        *may_lack_entries |= sysctls;
        Ok(())
    }

    /// Takes the NIC away from the container, wherever in the guest that has moved it: its driver is unbound from its
    /// slot. If the host has not named the slot, it is bound again, which makes a new link in the guest's own network
    /// namespace, where the NIC can be found again. With its driver all state that the container has given it is gone.
    ///
    /// A link without a virtio device is moved back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&self, namespaces: &mut Namespaces) -> Result<(), Error> {
        let field = format!("interfaces[{}]", self.name);
        let Some(slot) = self.device_slot else {
            let index = self.link.as_ref().map(|link| link.index);
            let moved = index.map(|index| namespaces.move_to_guest(index));
            return moved
                .unwrap_or(Ok(()))
                .map_err(Error::refused(format!("{field}: release its NIC")));
        };
        slots::unbind(Path::new(slots::DRIVER_UNBIND), slot)
            .map_err(Error::io(format!("{field}: unbind slot {slot}")))?;
        match self.slot {
            Some(_) => Ok(()),
            // Where the kernel makes it in the namespace of who binds it, that is to be the guest's own.
            None => namespaces
                .within_guest(|| bind(&field, slot).map(drop))
                .map_err(Error::io(format!(
                    "{field}: enter the guest's network namespace"
                )))?,
        }
    }
}

/// Whether a link of the container's network namespace is the one that was moved there.
fn is_same(moved: &Link, other: &Link) -> bool {
    match &moved.device {
        Some(_) => moved.device == other.device,
        None => moved.mac == other.mac,
    }
}

/// Has the driver probe a slot, and returns the name of the device in it.
fn bind(field: &str, slot: u32) -> Result<String, Error> {
    let what = || format!("{field}: bind slot {slot}");
    slots::bind(Path::new(slots::DRIVER_BIND), slot).map_err(Error::io(what()))?;
    let device = slots::device(Path::new(slots::PLATFORM_DEVICES), slot);
    device
        .map_err(Error::io(what()))?
        .ok_or_else(|| Error::EmptySlot {
            field: field.to_owned(),
            slot,
        })
}

fn describe(device: Option<&str>, interface: &Interface) -> String {
    match device {
        Some(device) => format!("the NIC {device}"),
        None => {
            let mac = interface.mac.iter().map(|byte| format!("{byte:02x}"));
            format!("the NIC {}", mac.collect::<Vec<_>>().join(":"))
        }
    }
}

/// Sets the sysctls that are new or have another value, and returns whether there were any. Those that the host no
/// longer names stay as they are.
fn set_sysctls(
    done: &mut Vec<Sysctl>,
    link_name: &str,
    interface: &Interface,
) -> Result<bool, Error> {
    let mut changed = false;
    for sysctl in &interface.sysctls {
        if done.contains(sysctl) {
            continue;
        }
        sysctl::set(link_name, sysctl).map_err(Error::io(format!(
            "{}: sysctls[{}]: set it to {:?}",
            interface.field(),
            sysctl.key(),
            sysctl.value
        )))?;
        changed = true;
        done.retain(|known| !known.is_same(sysctl));
        done.push(sysctl.clone());
    }
    Ok(changed)
}
