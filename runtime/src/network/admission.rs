//! What of a guest's frames comes to the host's own stack, in the container's network namespace there, rather than to
//! the network: answers to processes of that namespace that have connected to the container, and nothing else.
//!
//! Filters at the tap's ingress, before the one that redirects everything ([`redirect`]), select packets by what they
//! say, and mark them as the host's (the frame is addressed to the guest's gateway):
//!
//! ```text
//! tc filter add dev TAP ingress pref 26740 protocol ip u32 MATCHES action skbedit ptype host pass
//! ```
//!
//! The guest is hostile. So a packet is IPv4 without options, in one piece, for one address; and it is one of TCP that
//! doesn't open a connection (SYN without ACK), or of UDP for a port of which none is a service's. No socket that
//! listens in the namespace can be connected to. What is left to a guest is what any peer of a process can do: to answer.

use std::net::Ipv4Addr;

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::error::NetlinkError;
use super::netlink::Netlink;
use super::redirect::{self, PREFERENCE as REDIRECTION};

/// The preference of these filters: right before the redirection.
const PREFERENCE: u16 = REDIRECTION - 1;

/// ETH_P_IP of linux/if_ether.h. A frame with a VLAN's tag isn't of it.
const IPV4: u16 = 0x0800;

/// `TCA_SKBEDIT_PARMS` and `TCA_SKBEDIT_PTYPE` of linux/tc_act/tc_skbedit.h.
const SKBEDIT: &str = "skbedit";
const SKBEDIT_PARAMETERS: u16 = 2;
const SKBEDIT_PACKET_TYPE: u16 = 7;

/// `struct tc_skbedit`, all zero: an action of its own, and then TC_ACT_OK.
const PARAMETERS: [u8; 20] = [0; 20];

/// PACKET_HOST of linux/if_packet.h.
const HOST: u16 = 0;

/// SYN and ACK in the flags of TCP (RFC 9293, section 3.1), in the word that they are in.
const SYN: u32 = 0x0002_0000;
const ACK: u32 = 0x0010_0000;

/// The upper half of all ports: where processes get theirs from, unless they say so (`ip_local_port_range`), and no
/// services are.
const HIGH_PORT: u32 = 0x8000;

/// Lets the guest whose tap this is answer to an address of the namespace. The tap has a qdisc at its ingress.
pub(super) fn admit(netlink: &mut Netlink, tap: u32, to: Ipv4Addr) -> Result<(), NetlinkError> {
    remove(netlink, tap)?;
    for selector in selectors(to) {
        let filter = redirect::u32_filter(tap, PREFERENCE, IPV4);
        redirect::add_u32(netlink, filter, selector, to_host())?;
    }
    Ok(())
}

/// Removes what an attempt that has failed may have left.
fn remove(netlink: &mut Netlink, tap: u32) -> Result<(), NetlinkError> {
    let own = u32::from(PREFERENCE);
    let there = redirect::filters(netlink, tap)?;
    if !there
        .iter()
        .any(|filter| redirect::preference(filter) == own)
    {
        return Ok(());
    }
    let filter = redirect::u32_filter(tap, PREFERENCE, IPV4);
    let request = RouteNetlinkMessage::DelTrafficFilter(filter);
    netlink.ask(request, 0).map(drop)
}

/// What is let in: TCP that isn't about a new connection, the answer to one that the host has opened, and UDP.
fn selectors(to: Ipv4Addr) -> [TcU32Selector; 3] {
    let ports_or_flags = [(32, 0, SYN), (32, SYN | ACK, SYN | ACK)];
    let [within, opened] = ports_or_flags.map(|last| selector(to, libc::IPPROTO_TCP, last));
    let udp = selector(to, libc::IPPROTO_UDP, (20, HIGH_PORT, HIGH_PORT));
    [within, opened, udp]
}

/// Each condition is a word at an offset into the packet, what it is to be, and which of its bits count. A key beyond
/// a packet's end ends the search, so the protocol comes before what only one protocol has.
fn selector(to: Ipv4Addr, protocol: i32, last: (i32, u32, u32)) -> TcU32Selector {
    let protocol = protocol.cast_unsigned() << 16;
    let conditions = [
        // Version 4, and a header of five words.
        (0, 0x4500_0000, 0xff00_0000),
        // No more fragments, and none before.
        (4, 0, 0x3fff),
        (8, protocol, 0x00ff_0000),
        (16, to.to_bits(), u32::MAX),
        last,
    ];
    let key = |(offset, value, mask)| {
        let mut key = TcU32Key::default();
        (key.off, key.val, key.mask) = (offset, value, mask);
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = conditions.map(key).to_vec();
    selector.nkeys = 5;
    selector
}

/// Has the stack take a frame whatever hardware address it is for.
fn to_host() -> TcAction {
    let option = |kind, value| TcActionOption::Other(DefaultNla::new(kind, value));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(SKBEDIT.to_owned()),
        TcActionAttribute::Options(vec![
            option(SKBEDIT_PARAMETERS, PARAMETERS.to_vec()),
            option(SKBEDIT_PACKET_TYPE, HOST.to_ne_bytes().to_vec()),
        ]),
    ];
    action
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
    const ACK_ALONE: u8 = 0x10;
    const RESET: u8 = 0x04;
    const OPENING: u8 = 0x02;
    const OPENED: u8 = 0x12;

    /// A packet of 192.0.0.2's, with the ports 80 and `port`.
    fn packet(protocol: u8, port: u16) -> [u8; 40] {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[6] = 0x40; // not to be fragmented
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[192, 0, 0, 2]);
        packet[16..20].copy_from_slice(&OWN.octets());
        packet[21] = 80;
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    }

    fn tcp(flags: u8) -> [u8; 40] {
        let mut packet = packet(6, 22);
        packet[32] = 0x50;
        packet[33] = flags;
        packet
    }

    /// As the kernel's `u32_classify` does for one hash table without offsets.
    fn is_let_in(packet: &[u8]) -> bool {
        for selector in selectors(OWN) {
            assert_eq!(usize::from(selector.nkeys), selector.keys.len());
            let mut matches = true;
            for key in &selector.keys {
                let start = usize::try_from(key.off).expect("within the packet");
                let Some(word) = packet.get(start..start + 4) else {
                    return false;
                };
                let word = u32::from_be_bytes(word.try_into().expect("four bytes"));
                matches = (word ^ key.val) & key.mask == 0;
                if !matches {
                    break;
                }
            }
            if matches {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_guest_answers_and_opens_no_connection() {
        for flags in [ACK_ALONE, RESET, OPENED, ACK_ALONE | RESET, 0x11, 0x18] {
            assert!(is_let_in(&tcp(flags)), "{flags:#x}");
        }
        // Also with a word for congestion, or data.
        for flags in [OPENING, OPENING | 0xc0, OPENING | 0x08, OPENING | RESET] {
            assert!(!is_let_in(&tcp(flags)), "{flags:#x}");
        }
    }

    #[test]
    fn datagrams_come_to_ports_that_are_no_services() {
        assert!(is_let_in(&packet(17, 32768)[..28]), "nothing in it");
        assert!(is_let_in(&packet(17, 60999)));
        assert!(!is_let_in(&packet(17, 53)));
        assert!(!is_let_in(&packet(17, 32767)));
    }

    #[test]
    fn nothing_else_is_let_in() {
        let good = tcp(ACK_ALONE);
        for (offset, value, what) in [
            (0, 0x46, "options"),
            (0, 0x65, "another version"),
            (6, 0x20, "more fragments"),
            (7, 1, "a later fragment"),
            (9, 1, "ICMP"),
            (19, 9, "another address"),
        ] {
            let mut other = good;
            other[offset] = value;
            assert!(!is_let_in(&other), "{what}");
        }
        assert!(!is_let_in(&good[..32]), "cut short");
        assert!(!is_let_in(&[]));
    }
}
