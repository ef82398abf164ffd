//! Noticing that something in a network namespace has changed.
//!
//! It tells that, and not what: whoever wants to know reads the namespace again, and compares. Some of what it tells
//! of is no change in that, as when a carrier comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::{Doing, Error, NetlinkError};
use super::{Namespace, netlink};
use crate::host::wait_readable;

/// Changes that come closer together than this are one: an engine makes several at once.
const QUIET: Duration = Duration::from_millis(20);

/// The longest that changes are taken for one.
const LONGEST: Duration = Duration::from_millis(500);

/// What can change: RTNLGRP_* of linux/rtnetlink.h.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Group {
    Links = libc::RTNLGRP_LINK,
    Ipv4Addresses = libc::RTNLGRP_IPV4_IFADDR,
    Ipv4Routes = libc::RTNLGRP_IPV4_ROUTE,
    Ipv4Rules = libc::RTNLGRP_IPV4_RULE,
    Ipv6Addresses = libc::RTNLGRP_IPV6_IFADDR,
    Ipv6Routes = libc::RTNLGRP_IPV6_ROUTE,
    Ipv6Rules = libc::RTNLGRP_IPV6_RULE,
}

/// Neighbours aren't among them: each that is looked for would be a change.
const ALL: [Group; 7] = [
    Group::Links,
    Group::Ipv4Addresses,
    Group::Ipv4Routes,
    Group::Ipv4Rules,
    Group::Ipv6Addresses,
    Group::Ipv6Routes,
    Group::Ipv6Rules,
];

/// A namespace that is watched. Its descriptor is readable once something has changed.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

/// Watches links, addresses, routes and rules of a namespace from now on. Who reads the namespace after this misses
/// nothing.
///
/// # Errors
/// When there can't be another socket.
pub fn watch(namespace: &Namespace) -> Result<Watch, Error> {
    namespace.within("watch its network", |_| Watch::open(&ALL))
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Watch {
    /// Watches the calling thread's namespace.
    pub(super) fn open(groups: &[Group]) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in groups {
                socket.add_membership(*group as u32)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Socket);
        let socket = socket.doing(|| "watch the container's network on the host".to_owned())?;
        Ok(Self { socket })
    }

    /// Waits until something changes, and then until nothing has changed for 20 ms, or half a second is over.
    /// Returns whether something has: after `timeout` nothing has.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn changed(&mut self, timeout: Duration) -> Result<bool, Error> {
        if !self.wait(Instant::now() + timeout)? {
            return Ok(false);
        }
        let end = Instant::now() + LONGEST;
        while self.wait(end.min(Instant::now() + QUIET))? && Instant::now() < end {}
        Ok(true)
    }

    /// Waits for a change, and takes all that there are.
    pub(super) fn wait(&self, deadline: Instant) -> Result<bool, Error> {
        self.take(deadline)
            .map_err(NetlinkError::Socket)
            .doing(|| "wait for changes of the container's network on the host".to_owned())
    }

    fn take(&self, deadline: Instant) -> io::Result<bool> {
        if !wait_readable(&self.socket, deadline)? {
            return Ok(false);
        }
        let mut buffer = Vec::with_capacity(netlink::LONGEST);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                // More has changed than there was room for: that is a change, too.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
