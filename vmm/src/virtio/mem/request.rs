//! Requests of the driver's and their responses, as they lie in guest memory (virtio 1.3, 5.15.6.2;
//! linux/virtio_mem.h).

/// The size of a request: `struct virtio_mem_req`.
pub(super) const REQUEST_SIZE: usize = 24;
/// The size of a response: `struct virtio_mem_resp`.
pub(super) const RESPONSE_SIZE: usize = 10;

/// Blocks one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The guest physical address of the first one.
    pub(super) address: u64,
    /// How many.
    pub(super) blocks: u16,
}

/// A request. Nothing in it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `VIRTIO_MEM_REQ_PLUG`
    Plug(Range),
    /// `VIRTIO_MEM_REQ_UNPLUG`
    Unplug(Range),
    /// `VIRTIO_MEM_REQ_UNPLUG_ALL`
    UnplugAll,
    /// `VIRTIO_MEM_REQ_STATE`
    State(Range),
    /// None that the specification has.
    Unknown,
}

impl Request {
    pub(super) fn parse(bytes: &[u8; REQUEST_SIZE]) -> Self {
        let [
            t0,
            t1,
            ..,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            n0,
            n1,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = *bytes;
        let range = Range {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            blocks: u16::from_le_bytes([n0, n1]),
        };
        match u16::from_le_bytes([t0, t1]) {
            0 => Self::Plug(range),
            1 => Self::Unplug(range),
            2 => Self::UnplugAll,
            3 => Self::State(range),
            _ => Self::Unknown,
        }
    }
}

/// Whether blocks are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// All of them: `VIRTIO_MEM_STATE_PLUGGED`.
    Plugged,
    /// None of them: `VIRTIO_MEM_STATE_UNPLUGGED`.
    Unplugged,
    /// Some of them: `VIRTIO_MEM_STATE_MIXED`.
    Mixed,
}

/// The response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// It was done: `VIRTIO_MEM_RESP_ACK`.
    Ack,
    /// More than is requested would be plugged: `VIRTIO_MEM_RESP_NACK`.
    Nack,
    /// The request makes no sense: `VIRTIO_MEM_RESP_ERROR`.
    Error,
    /// The answer to [`Request::State`].
    State(State),
}

impl Response {
    pub(super) fn to_bytes(self) -> [u8; RESPONSE_SIZE] {
        let (kind, state) = match self {
            Self::Ack | Self::State(State::Plugged) => (0, 0),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_has_its_fields_where_the_header_has_them() {
        let mut bytes = [0xff; REQUEST_SIZE];
        bytes[8..16].copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
        bytes[16..18].copy_from_slice(&0x99aa_u16.to_le_bytes());
        let range = Range {
            address: 0x1122_3344_5566_7788,
            blocks: 0x99aa,
        };
        for (kind, expected) in [
            (0_u16, Request::Plug(range)),
            (1, Request::Unplug(range)),
            (2, Request::UnplugAll),
            (3, Request::State(range)),
            (4, Request::Unknown),
            (0x100, Request::Unknown),
        ] {
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            assert_eq!(Request::parse(&bytes), expected);
        }
    }

    #[test]
    fn a_response_says_what_the_header_says() {
        for (response, kind, state) in [
            (Response::Ack, 0, 0),
            (Response::Nack, 1, 0),
            (Response::Error, 3, 0),
            (Response::State(State::Plugged), 0, 0),
            (Response::State(State::Unplugged), 0, 1),
            (Response::State(State::Mixed), 0, 2),
        ] {
            let bytes = response.to_bytes();
            assert_eq!((bytes[0], bytes[8]), (kind, state), "{response:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_some_request(bytes in any::<[u8; REQUEST_SIZE]>()) {
            let _ = Request::parse(&bytes);
        }
    }
}
