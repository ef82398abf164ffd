//! The namespaces of other containers of the sandbox that a container is to have, as the host asks for them.
//!
//! They are entered by the processes' pidfds, and so are those that these processes are in now: nothing here has a
//! path, and no process that has got a pid again is taken for another.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hull_protocol::agent::SharedNamespaces;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Container;
use super::namespaces::Shared;
use crate::error::Error;
use crate::network::{self, NamespaceState, Network};

/// Containers with the kinds of namespaces (`CLONE_NEW*`) that a further one is to have of them.
#[derive(Debug, Default)]
pub struct JoinedNamespaces(Vec<Other>);

#[derive(Debug)]
struct Other {
    container: Arc<Container>,
    process: OwnedFd,
    kinds: u32,
}

impl JoinedNamespaces {
    /// Finds the containers that a request names.
    ///
    /// # Errors
    /// When there is none of that id, or it has ended.
    pub fn find(
        asked: &SharedNamespaces,
        find: impl Fn(&str) -> Result<Arc<Container>, Error>,
    ) -> Result<Self, Error> {
        let mut found = Self::default();
        let kinds = [
            (&asked.network, libc::CLONE_NEWNET),
            (&asked.ipc, libc::CLONE_NEWIPC),
            (&asked.uts, libc::CLONE_NEWUTS),
            (&asked.pid, libc::CLONE_NEWPID),
            (&asked.user, libc::CLONE_NEWUSER),
        ];
        for (id, kind) in kinds.into_iter().filter(|(id, _)| !id.is_empty()) {
            let kind = kind.cast_unsigned();
            match found.0.iter_mut().find(|other| other.container.id == *id) {
                Some(other) => other.kinds |= kind,
                None => found.0.push(Other::new(find(id)?, kind)?),
            }
        }
        Ok(found)
    }

    /// Whether the network is another container's.
    pub fn has_network(&self) -> bool {
        self.network().is_some()
    }

    /// The network of the container with this first process: another's, or as [`Network::of`] has it.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn network_of(
        &self,
        process: i32,
        own: bool,
        guest: &NamespaceState,
    ) -> Result<Network, network::Error> {
        match self.network() {
            Some(network) => Ok(network.shared()),
            None => Network::of(process, own, guest),
        }
    }

    fn network(&self) -> Option<&Network> {
        let kind = libc::CLONE_NEWNET.cast_unsigned();
        let of_network = self.0.iter().find(|other| other.kinds & kind != 0);
        of_network.map(|other| &other.container.network)
    }

    /// What the helper is told of them.
    pub fn for_helper(&self) -> Vec<Shared> {
        let shared = |other: &Other| Shared {
            process: other.process.as_raw_fd(),
            kinds: other.kinds,
        };
        self.0.iter().map(shared).collect()
    }

    /// What the helper is to inherit.
    pub fn inherited(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|other| other.process.as_fd()).collect()
    }
}

impl Other {
    fn new(container: Arc<Container>, kinds: u32) -> Result<Self, Error> {
        let process = container.open_init()?;
        Ok(Self {
            container,
            process,
            kinds,
        })
    }
}

impl Container {
    /// Opens its first process, by which its namespaces are entered.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open_init(&self) -> Result<OwnedFd, Error> {
        let ended = || Error::ProcessEnded(format!("the first process of {}", self.id));
        if self.init.completion.exit.status().is_some() {
            return Err(ended());
        }
        let pid = Pid::from_raw(self.init.pid).ok_or_else(ended)?;
        pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| Error::io(format!("open container {}", self.id))(e.into()))
    }
}
