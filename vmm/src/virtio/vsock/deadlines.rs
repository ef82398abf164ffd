//! What the muxer waits for, with time limits.

use std::time::Duration;

/// What a deadline limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// The guest's answer to a `REQUEST` on this host port.
    Response(u32),
    /// The guest's answer to a `SHUTDOWN` of both directions on this host port.
    Shutdown(u32),
    /// The token of the claim with this number.
    Token(u64),
    /// A control client's request line.
    RequestLine(u32),
    /// The guest's connections to the remaining offered ports of this group, whose client has left.
    Unclaimed(u32),
    /// The next attempt to accept control clients after one failed.
    Accept,
}

/// The time limits of the muxer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// The guest's answer to a `REQUEST`.
    pub response: Duration,
    /// The guest's answer to a `SHUTDOWN` of both directions.
    pub shutdown: Duration,
    /// The token of a claim.
    pub token: Duration,
    /// The guest's connection to an offered port whose client has left.
    pub unclaimed: Duration,
    /// A client's request line.
    pub request_line: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // Long, since a client should reach a time limit of its own first: it then knows what
            // it waited for. If this limit is reached instead, the client can't tell a slow guest
            // from one that refuses.
            response: Duration::from_secs(60),
            // Short, since nobody waits for the connection any more.
            shutdown: Duration::from_secs(2),
            // The intended process sends it as soon as it is connected.
            token: Duration::from_secs(5),
            unclaimed: Duration::from_secs(30),
            request_line: Duration::from_secs(30),
        }
    }
}
