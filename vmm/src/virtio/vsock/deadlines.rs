//! What the muxer waits for, and how long.

use std::time::Duration;

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// The guest's answer to a `REQUEST` on this host port.
    Response(u32),
    /// The guest's answer to a complete `SHUTDOWN` on this host port.
    Shutdown(u32),
    /// The token of the claim with this number.
    Token(u64),
    /// A control client's request line.
    Line(u32),
    /// A stream group without a client: its ports that the guest hasn't dialled.
    Unclaimed(u32),
    /// The next attempt to accept control clients after one failed.
    Accept,
}

/// How long the muxer waits, for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// The guest's answer to a `REQUEST`.
    pub response: Duration,
    /// The guest's answer to a `SHUTDOWN` of both directions.
    pub shutdown: Duration,
    /// The token of a claim.
    pub token: Duration,
    /// The guest's dialling of a port whose client has left.
    pub unclaimed: Duration,
    /// A client's request line.
    pub line: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // A client that cannot wait so long leaves, and knows what it waited for. Who hears of this
            // limit instead can't tell a guest that is slow from one that refuses.
            response: Duration::from_secs(60),
            // Nobody waits for it any more.
            shutdown: Duration::from_secs(2),
            // It is sent as soon as the connection is there.
            token: Duration::from_secs(5),
            unclaimed: Duration::from_secs(30),
            line: Duration::from_secs(30),
        }
    }
}
