//! Network interfaces that a VM process gets while it runs.
//!
//! `NIC <MAC address> <MTU>`, with a tap's descriptor for each pair of queues that the VM's network interfaces have, and
//! maybe as many of /dev/vhost-net for the host's kernel to move the packets. The address is that of no other interface of the VM. `REMOVE-NIC <slot>` takes it away again: the VM
//! process closes them then, whatever the guest does with its end.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hull_vmm::virtio::net::{MAX_PAIRS, MacAddress, Nic, NicConfig};
use hull_vmm::virtio::slot::SlotHandle;

use super::{DeviceLine, hand, read_answer};
use crate::sandbox::AgentError;
use crate::sandbox::socket::{self, CALL_TIMEOUT};

/// What is said of a network interface.
pub struct NicLine(NicConfig);

impl DeviceLine for NicLine {
    type Backend = Nic;

    const VERB: &'static str = "NIC";
    const WHAT: &'static str = "network interface";
    const MOST_DESCRIPTORS: usize = 2 * MAX_PAIRS;
    const REMOVAL: Option<&'static str> = Some("REMOVE-NIC");
    const NO_SLOTS: &'static str =
        "its VM has no slots for network interfaces (nic_slots of hull.toml, before it is created)";

    fn parse(words: &str) -> Result<Self, &'static str> {
        let expected = "expected NIC, a MAC address of one host, and an MTU of 68 to 65535";
        let (mac, mtu) = words.split_once(' ').ok_or(expected)?;
        let mac: MacAddress = mac.parse().map_err(|_| expected)?;
        let mtu = mtu.parse().map_err(|_| expected)?;
        let config = NicConfig::new(mac, mtu).map_err(|_| expected)?;
        Ok(Self(config))
    }

    fn name(&self) -> String {
        self.0.mac().to_string()
    }

    fn send(&self, slot: &SlotHandle<Nic>, descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        slot.send_nic(self.0, &descriptors)
    }
}

/// Hands a network interface to the VMM at that control socket: the queues of its tap, and as many times
/// /dev/vhost-net if the host's kernel is to move its packets. Returns the number of the slot that it is in from then on, which the agent has to be
/// told.
///
/// # Errors
/// When the VMM doesn't answer, has no empty slot, or refuses it.
pub fn hand_nic(
    socket: &Path,
    mac: [u8; 6],
    mtu: u32,
    descriptors: &[BorrowedFd<'_>],
) -> Result<u8, AgentError> {
    // A NIC's MTU has 16 bits (VIRTIO 1.3, 5.1.4); an Ethernet interface's could be greater.
    let mtu = mtu.min(u16::MAX.into());
    let words = format!("{} {mtu}", MacAddress(mac));
    hand::<NicLine>(socket, &words, descriptors)
}

/// Has the VMM at that control socket empty the slot of a network interface, which the guest has released.
///
/// # Errors
/// When the VMM doesn't answer, or has none in that slot.
pub fn remove_nic(socket: &Path, slot: u8) -> Result<(), AgentError> {
    let failed = |what| socket::failed(what, CALL_TIMEOUT);
    let mut vmm = socket::dial(socket, CALL_TIMEOUT)?;
    let verb = NicLine::REMOVAL.unwrap_or_default();
    writeln!(vmm, "{verb} {slot}").map_err(failed("remove a device"))?;
    read_answer::<NicLine>(vmm, "remove a device from its slot").map(drop)
}
