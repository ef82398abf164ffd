//! What the agent is told of a container's network.

use hull_protocol::agent as messages;
use hull_protocol::network as limits;

use crate::network::{Interface, Network, Sysctl, to_bytes};
use crate::store::Nic;

/// A network as the agent is to make it: what was read on the host, and which of the VM's network interfaces is which.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestNetwork(messages::Network);

impl GuestNetwork {
    /// Of a namespace whose interfaces are connected to these. One that isn't connected isn't told of, nor is what
    /// depends on it.
    pub fn of(network: &Network, nics: &[Nic]) -> Self {
        let slot = |index| nics.iter().find(|nic| nic.index == index)?.slot;
        let mut connected = network.clone();
        for interface in &network.interfaces {
            if slot(interface.index).is_none() {
                connected.leave_out(interface.index);
            }
        }
        let network = &connected;
        let interfaces = network
            .interfaces
            .iter()
            .filter_map(|interface| Some(interface_message(interface, slot(interface.index)?)));
        Self(messages::Network {
            interfaces: interfaces.collect(),
            routes: network.routes.iter().map(to_bytes).collect(),
            neighbours: network.neighbours.iter().map(to_bytes).collect(),
            rules: network.rules.iter().map(to_bytes).collect(),
            removed_rules: network.removed_rules.iter().map(to_bytes).collect(),
            loopback_addresses: network.loopback.iter().map(to_bytes).collect(),
            ..Default::default()
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0 == messages::Network::default()
    }

    pub(super) fn into_message(self) -> messages::Network {
        self.0
    }
}

fn interface_message(interface: &Interface, slot: u8) -> messages::Interface {
    messages::Interface {
        name: interface.name.clone(),
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        slot: u32::from(slot) + 1,
        host_index: interface.index,
        addresses: interface.addresses.iter().map(to_bytes).collect(),
        sysctls: interface.sysctls.iter().map(sysctl_message).collect(),
        down: !interface.up,
        no_arp: !interface.arp,
        ..Default::default()
    }
}

fn sysctl_message(sysctl: &Sysctl) -> messages::Sysctl {
    let table = sysctl.table.folder().replace('/', ".");
    messages::Sysctl {
        key: format!("{table}.{}.{}", limits::IFNAME, sysctl.name),
        value: sysctl.value.clone(),
        ..Default::default()
    }
}
