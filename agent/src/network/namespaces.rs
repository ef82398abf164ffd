//! The two network namespaces that setting up a container's network involves: the guest's own, where NICs are that were
//! there at boot, and the container's. They may be the same.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Error;
use super::link::{self, Change, Link};
use super::rtnetlink::{Events, Refusal, Rtnetlink};

/// How long a request's NICs, all together, may take to appear in the guest's own network namespace. Usually they are
/// there.
pub const NIC_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// The namespaces, for a thread that is in the container's.
#[derive(Debug)]
pub struct Namespaces<'a> {
    /// A socket in the container's.
    pub container: Rtnetlink,
    /// The guest's own, unless it is the container's.
    guest: Option<Guest<'a>>,
    /// Until when NICs are waited for.
    deadline: Instant,
}

#[derive(Debug)]
struct Guest<'a> {
    socket: Rtnetlink,
    namespace: OwnedFd,
    container: BorrowedFd<'a>,
}

impl<'a> Namespaces<'a> {
    /// Moves the calling thread from the guest's own namespace into the container's, if that is another.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(container: Option<BorrowedFd<'a>>) -> Result<Self, Error> {
        let enter = || -> io::Result<Self> {
            let guest = container.map(|container| -> io::Result<Guest<'a>> {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let guest = Guest {
                    socket: Rtnetlink::open()?,
                    namespace: openat(CWD, "/proc/thread-self/ns/net", flags, Mode::empty())?,
                    container,
                };
                set_namespace(container)?;
                Ok(guest)
            });
            Ok(Self {
                guest: guest.transpose()?,
                container: Rtnetlink::open()?,
                deadline: Instant::now() + NIC_TIMEOUT,
            })
        };
        enter().map_err(Error::io("enter the container's network namespace"))
    }

    /// Waits until a link for which `matches` holds is in the guest's own namespace. It may come from a namespace that
    /// the kernel is just removing. `None` once [`NIC_TIMEOUT`] is over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_for_link(
        &mut self,
        matches: impl Fn(&Link) -> bool,
    ) -> Result<Option<Link>, Refusal> {
        if let Some(link) = self.find_in_guest(&matches)? {
            return Ok(Some(link));
        }
        let events = self.subscribe_in_guest()?;
        loop {
            // Listed again now that changes are reported: the link may have appeared before that.
            if let Some(link) = self.find_in_guest(&matches)? {
                return Ok(Some(link));
            }
            if !events.wait(self.deadline)? {
                return Ok(None);
            }
        }
    }

    /// A matching link of the guest's own namespace. One whose MAC address is its device's comes before one that
    /// somebody has given that address.
    fn find_in_guest(&mut self, matches: impl Fn(&Link) -> bool) -> Result<Option<Link>, Refusal> {
        let socket = self.guest.as_mut().map(|guest| &mut guest.socket);
        let links = link::find(socket.unwrap_or(&mut self.container), matches)?;
        let is_devices = |link: &Link| link.permanent_mac.is_some();
        Ok(links.into_iter().max_by_key(is_devices))
    }

    fn subscribe_in_guest(&self) -> io::Result<Events> {
        self.within_guest(|| Events::subscribe(libc::RTMGRP_LINK.cast_unsigned()))?
    }

    /// Does something in the guest's own namespace.
    ///
    /// # Errors
    /// When the kernel refuses to have the calling thread in one of the two.
    pub fn within_guest<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let Some(guest) = &self.guest else {
            return Ok(work());
        };
        set_namespace(guest.namespace.as_fd())?;
        let done = work();
        set_namespace(guest.container)?;
        Ok(done)
    }

    /// Moves a link from the guest's own namespace to the container's, if that is another. It has this name there,
    /// if that is free: a change of the name takes the kernel as long as the move.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_to_container(&mut self, index: u32, name: &str) -> Result<(), Refusal> {
        let Some(guest) = &mut self.guest else {
            return Ok(());
        };
        let namesakes = link::find(&mut self.container, |link| link.name == name)?;
        let mut change = |name| {
            let change = Change::Namespace(guest.container, name);
            link::change(&mut guest.socket, index, change)
        };
        if !namesakes.is_empty() {
            return change(None);
        }
        match change(Some(name)) {
            // The container has taken the name since: the link was moved before that was seen, or it wasn't.
            Err(refusal) if refusal.is(libc::EEXIST) => match change(None) {
                Err(refusal) if refusal.is(libc::ENODEV) => Ok(()),
                moved => moved,
            },
            moved => moved,
        }
    }

    /// Moves a link of the container's namespace to the guest's own. If they are the same, it is only set down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_to_guest(&mut self, index: u32) -> Result<(), Refusal> {
        let change = match &self.guest {
            Some(guest) => Change::Namespace(guest.namespace.as_fd(), None),
            None => Change::Up(false),
        };
        link::change(&mut self.container, index, change)
    }
}

fn set_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace,
        Some(LinkNameSpaceType::Network),
    )?)
}
