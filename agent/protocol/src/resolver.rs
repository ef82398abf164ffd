//! DNS messages between the agent and the VM process: what the container asks the resolver that docker has for it in the
//! container's network namespace on the host, and what that answers.
//!
//! They are on a stream of their own, in both directions as on a TCP connection of DNS (RFC 1035, 4.2.2): each message
//! has its length, a big-endian u16, before it. What is no message is dropped. To the resolver each is a datagram, and may
//! be lost as such; answers come in any order, and have the ids of their questions.

use std::net::Ipv4Addr;

/// Docker's resolver has this address in each container's network namespace, whatever else is there.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The port at which it is asked. Docker's has another, to which it redirects what is sent to this one.
pub const PORT: u16 = 53;

/// The length of the length, in bytes.
pub const PREFIX: usize = 2;

/// The longest message, in bytes. The resolver gets none that is longer than [`MAX_DATAGRAM`].
pub const MAX_MESSAGE: usize = u16::MAX as usize;

/// The longest message that is a datagram (RFC 768), in bytes.
pub const MAX_DATAGRAM: usize = MAX_MESSAGE - 28;
