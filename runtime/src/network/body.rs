//! Messages as bytes, for the way to the guest: the body of an RTM_NEW* message, without the netlink header, in this
//! machine's byte order, which is the guest's too.

use netlink_packet_core::Emitable;
#[cfg(test)]
use netlink_packet_core::{DecodeError, Parseable};

/// The bytes of an address, a route, a neighbour or a rule.
pub fn to_bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// An address, a route, a neighbour or a rule of its bytes, as whoever gets them reads them.
#[cfg(test)]
pub fn from_bytes<T: Parseable<[u8]>>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::parse(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::AddressMessage;
    use netlink_packet_route::neighbour::NeighbourMessage;
    use netlink_packet_route::route::RouteMessage;
    use netlink_packet_route::rule::RuleMessage;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fmt::Debug;

    /// Whatever is taken for a message means the same after another round.
    fn is_stable<T: Parseable<[u8]> + Emitable + PartialEq + Debug>(bytes: &[u8]) {
        if let Ok(message) = from_bytes::<T>(bytes) {
            let again = from_bytes::<T>(&to_bytes(&message)).expect("its own bytes");
            assert_eq!(again, message);
        }
    }

    /// A header of zeroes and the family, then attributes of any kind with any content.
    fn body(header: usize) -> impl Strategy<Value = Vec<u8>> {
        let attribute = (1..32_u16, vec(any::<u8>(), 0..24));
        (prop_oneof![Just(2_u8), Just(10)], vec(attribute, 0..6)).prop_map(
            move |(family, attributes)| {
                let mut bytes = vec![0; header];
                bytes[0] = family;
                for (kind, value) in attributes {
                    let length = u16::try_from(value.len() + 4).expect("short");
                    bytes.extend(length.to_ne_bytes());
                    bytes.extend(kind.to_ne_bytes());
                    bytes.extend(value);
                    bytes.resize(bytes.len().next_multiple_of(4), 0);
                }
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            let _ = from_bytes::<AddressMessage>(&bytes);
            let _ = from_bytes::<RouteMessage>(&bytes);
            let _ = from_bytes::<NeighbourMessage>(&bytes);
            let _ = from_bytes::<RuleMessage>(&bytes);
        }

        #[test]
        fn addresses_survive(bytes in body(8)) {
            is_stable::<AddressMessage>(&bytes);
        }

        #[test]
        fn routes_survive(bytes in body(12)) {
            is_stable::<RouteMessage>(&bytes);
        }

        #[test]
        fn neighbours_survive(bytes in body(12)) {
            is_stable::<NeighbourMessage>(&bytes);
        }

        #[test]
        fn rules_survive(bytes in body(12)) {
            is_stable::<RuleMessage>(&bytes);
        }
    }
}
