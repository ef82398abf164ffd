//! Offers: descriptors of the host that the guest can connect to, by port and token.

use std::os::fd::OwnedFd;

use rustix::rand::{GetRandomFlags, getrandom};

use super::claims::{TOKEN_LENGTH, Token};
use super::endpoint::Endpoint;
use super::{Direction, VsockError};

/// The endpoint of a descriptor that is to be offered.
pub(super) fn take_over(fd: OwnedFd) -> Result<Endpoint, VsockError> {
    Endpoint::new(fd).map_err(|source| VsockError::Io {
        action: "examine a stream's descriptor",
        source,
    })
}

/// A random token.
pub(super) fn new_token() -> Result<Token, VsockError> {
    let mut token = [0; TOKEN_LENGTH];
    // getrandom(2) returns up to 256 bytes at once.
    getrandom(&mut token[..], GetRandomFlags::empty()).map_err(|errno| VsockError::Io {
        action: "choose a stream's token",
        source: errno.into(),
    })?;
    Ok(token)
}

/// A descriptor that is offered on a port, until the guest connects to it.
#[derive(Debug)]
pub(super) struct Offer {
    /// What must be sent first; `None` if any data is accepted.
    pub token: Option<Token>,
    pub direction: Direction,
    pub endpoint: Endpoint,
    pub group: Option<u32>,
}
