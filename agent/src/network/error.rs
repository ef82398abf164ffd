//! Why a container's network can't be set up. The text begins with the field of the request, a message of rtnetlink in
//! the words of ip(8).

use std::io;

use netlink_packet_core::DecodeError;
use ttrpc::Code;

use super::rtnetlink::Refusal;
use crate::error::Strerror;

/// Why a container's network isn't as the request says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is invalid.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// A field isn't the body of an rtnetlink message of its kind.
    #[error("{field}: {source}")]
    Message {
        /// The field.
        field: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A message names an interface that the request doesn't have.
    #[error("{field}: no interface of the request has the host_index {index}")]
    UnknownIndex {
        /// The message.
        field: String,
        /// The interface's index on the host.
        index: u32,
    },
    /// An interface's NIC is not where it is taken from.
    #[error("{field}: {nic} has not appeared in the guest's network namespace within {seconds} s")]
    NoNic {
        /// The interface.
        field: String,
        /// The NIC.
        nic: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Somebody else has moved an interface's NIC on, just after it was moved into the container's network namespace.
    #[error("{field}: {nic} has been moved out of the container's network namespace")]
    NicMoved {
        /// The interface.
        field: String,
        /// The NIC.
        nic: String,
    },
    /// No device is in an interface's slot.
    #[error("{field}: slot: no device is in slot {slot}")]
    EmptySlot {
        /// The interface.
        field: String,
        /// The slot's number.
        slot: u32,
    },
    /// The kernel refused a request of rtnetlink.
    #[error("{what}: {source}")]
    Refused {
        /// The field, and what was attempted.
        what: String,
        /// Why.
        source: Refusal,
    },
    /// The kernel refused something else.
    #[error("{what}: {}", Strerror(.source))]
    Io {
        /// The field, and what was attempted.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The container is being deleted, or was.
    #[error("the container is being deleted")]
    Released,
    /// It took too long.
    #[error("setting up the interfaces, addresses and routes took longer than {0} s")]
    Timeout(u64),
}

impl Error {
    /// A refused request, with the field and what was attempted.
    pub(super) fn refused(what: impl Into<String>) -> impl FnOnce(Refusal) -> Self {
        let what = what.into();
        move |source| Self::Refused { what, source }
    }

    /// An I/O error, with the field and what was attempted.
    pub(super) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// The status code, by which the host can tell errors apart without reading their text.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::Message { .. } | Self::UnknownIndex { .. } => {
                Code::INVALID_ARGUMENT
            }
            Self::NoNic { .. } | Self::NicMoved { .. } | Self::EmptySlot { .. } => Code::NOT_FOUND,
            Self::Released => Code::FAILED_PRECONDITION,
            Self::Refused { .. } | Self::Io { .. } => Code::INTERNAL,
            // Not DEADLINE_EXCEEDED: that is the host's own limit.
            Self::Timeout(_) => Code::ABORTED,
        }
    }
}
