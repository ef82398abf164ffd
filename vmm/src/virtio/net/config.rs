//! The properties of a NIC that its driver sees: the configuration space and the features.

use std::fmt;
use std::mem::offset_of;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_S_LINK_UP, virtio_net_config,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::taps::Taps;

/// The smallest MTU: what IPv4 requires of a link (RFC 791).
const MIN_MTU: u16 = 68;

/// The size of the configuration space, without the fields of features that are not offered.
pub(super) const CONFIG_SIZE: usize = offset_of!(virtio_net_config, speed);

/// The features of the rings and of the receive buffers, which whoever serves the queues has to
/// implement: [`Net`](super::Net), or vhost-net.
pub(super) const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Checksum and TCP segmentation offload in both directions, which every tap has.
const TAP_FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// UDP segmentation offload in both directions, which taps have since Linux 6.2.
const USO_FEATURES: u64 =
    1 << VIRTIO_NET_F_HOST_USO | 1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6;

/// Several pairs of queues, and the queue for the command that says how many are in use.
const MULTIQUEUE_FEATURES: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;

/// The features offered in addition to [`RING_FEATURES`], over these queues of a tap.
///
/// `VIRTIO_NET_F_STATUS` is not offered: without it, the driver takes the link for always up, as it
/// is, and doesn't read the status, which takes an exit.
pub(super) fn features(taps: &Taps) -> u64 {
    let own = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU;
    let uso = if taps.has_uso() { USO_FEATURES } else { 0 };
    let multiqueue = match taps.pairs() {
        1 => 0,
        _ => MULTIQUEUE_FEATURES,
    };
    own | TAP_FEATURES | uso | multiqueue
}

/// Why no NIC can have these properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The MAC address is a multicast address or all zeroes.
    #[error("MAC address: {0} is not the address of a single NIC")]
    MacAddress(MacAddress),
    /// The MTU is too small.
    #[error("MTU: {0} is less than {MIN_MTU} bytes")]
    Mtu(u16),
}

/// A MAC address: six bytes, in the order in which they are sent. As text: `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address must be six pairs of hexadecimal digits, separated by colons")]
pub struct MacParseError;

impl FromStr for MacAddress {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or(MacParseError)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacParseError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacParseError)?;
        }
        match pairs.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(MacParseError),
        }
    }
}

/// The properties of a NIC, which don't change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    mac: MacAddress,
    mtu: u16,
}

impl NicConfig {
    /// A NIC with this MAC address and this MTU, in bytes, 68 to 65535. The MTU is the size of the
    /// largest packet that the guest sends; what it receives is not checked against it, so the
    /// tap's interface should have the same.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(mac: MacAddress, mtu: u16) -> Result<Self, ConfigError> {
        let is_multicast = mac.0[0] & 1 != 0;
        if is_multicast || mac.0 == [0; 6] {
            return Err(ConfigError::MacAddress(mac));
        }
        if mtu < MIN_MTU {
            return Err(ConfigError::Mtu(mtu));
        }
        Ok(Self { mac, mtu })
    }

    /// The MAC address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The MTU in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The configuration space: `struct virtio_net_config` (virtio 1.3, 5.1.4), of a link that is
    /// up, with this many pairs of queues.
    pub(super) fn config_space(&self, pairs: usize) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        let mut put = |offset: usize, bytes: &[u8]| {
            space[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let link_up = VIRTIO_NET_S_LINK_UP as u16;
        let pairs = pairs as u16; // at most MAX_PAIRS
        put(offset_of!(virtio_net_config, mac), &self.mac.0);
        put(
            offset_of!(virtio_net_config, status),
            &link_up.to_le_bytes(),
        );
        put(
            offset_of!(virtio_net_config, max_virtqueue_pairs),
            &pairs.to_le_bytes(),
        );
        put(offset_of!(virtio_net_config, mtu), &self.mtu.to_le_bytes());
        space
    }

    /// The property in which another NIC differs, if there is one.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.mac != other.mac {
            Some("MAC address")
        } else if self.mtu != other.mtu {
            Some("MTU")
        } else {
            None
        }
    }
}

/// What is saved of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicState {
    /// The properties that its configuration space shows.
    pub(super) config: NicConfig,
    /// How many pairs of queues the driver uses, the first ones; 1 if there is none.
    pub(super) pairs_in_use: u16,
}

impl NicState {
    pub(super) fn new(config: NicConfig, pairs_in_use: usize) -> Self {
        Self {
            config,
            pairs_in_use: pairs_in_use as u16, // at most MAX_PAIRS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    #[test]
    fn an_address_is_parsed_as_it_is_displayed() {
        assert_eq!("52:54:00:12:34:56".parse(), Ok(MAC));
        assert_eq!(MAC.to_string(), "52:54:00:12:34:56");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52-54-00-12-34-56",
            "52:54:00:12:34:ü",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacParseError), "{text}");
        }
    }

    #[test]
    fn addresses_and_sizes_that_no_nic_has_are_refused() {
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let refused = NicConfig::new(MacAddress(mac), 1500);
            assert_eq!(refused, Err(ConfigError::MacAddress(MacAddress(mac))));
        }
        assert_eq!(NicConfig::new(MAC, 67), Err(ConfigError::Mtu(67)));
        assert!(NicConfig::new(MAC, 68).is_ok());
        assert!(NicConfig::new(MAC, 65535).is_ok());
    }

    #[test]
    fn the_driver_finds_address_status_pairs_and_mtu() {
        let config = NicConfig::new(MAC, 9000).expect("a NIC");
        let space = [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0x28, 0x23];
        assert_eq!(config.config_space(1), space);
        assert_eq!(config.config_space(4)[8..10], [4, 0]);
    }
}
