//! What the follower does for a service manager: it tells it that the container is ready, once the container says so by
//! sd_notify(3). Nothing else of what the container says is passed on, and nothing in its own words.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::chain::chain;
use crate::sandbox::AgentError;
use crate::sandbox::agent::Agent;
use crate::types::ContainerId;

/// What a service manager is told (sd_notify(3)). Which process it is to watch, whoever runs the container tells it.
const READY: &[u8] = b"READY=1";

/// Why it isn't told.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the service manager won't hear when the container is ready")]
    Agent(#[from] AgentError),
    #[error("the service manager can't be told that the container is ready")]
    Tell(#[source] io::Error),
}

/// The part of a follower that waits for the container's word.
pub struct ReadyWatch {
    pub container: ContainerId,
    /// To the agent's port, from before this process was jailed.
    pub connection: Result<UnixStream, AgentError>,
    /// A socket that is connected to the service manager.
    pub manager: OwnedFd,
}

impl ReadyWatch {
    /// What it has open.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connection = self.connection.iter().map(AsFd::as_fd);
        connection.chain([self.manager.as_fd()])
    }

    /// Waits for the container's word, however long that takes, and passes it on. To be called inside a runtime.
    pub async fn watch(self) {
        match self.try_watch().await {
            // The container, or the VM, has ended without it.
            Ok(()) | Err(Error::Agent(AgentError::Lost(_) | AgentError::NotFound(_))) => {}
            Err(e) => log::warn!("{}", chain(&e)),
        }
    }

    async fn try_watch(self) -> Result<(), Error> {
        let agent = Agent::over(self.connection?).map_err(AgentError::Client)?;
        if agent.wait_ready(&self.container).await? {
            rustix::io::write(&self.manager, READY).map_err(|e| Error::Tell(e.into()))?;
        }
        Ok(())
    }
}
