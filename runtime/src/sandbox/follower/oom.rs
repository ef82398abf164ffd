//! What the follower does about memory: it tells the host when a process in the guest was killed for want of it.
//!
//! The news comes from the guest's agent, as for `hull events`. What is done with it is another process's
//! ([`reporter`](super::reporter)), which hears nothing of the guest but that there is news.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::reporter::Reporter;
use crate::chain::chain;
use crate::sandbox::AgentError;
use crate::sandbox::agent::Agent;
use crate::types::ContainerId;

/// The least time between two reports, as the reporter keeps it, too; each further one has to wait twice as long. What
/// happens in between, which may be the doing of a guest that lies, comes as one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Why kills aren't told any more.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("out-of-memory kills aren't told to the host any more")]
    Agent(#[from] AgentError),
    #[error("out-of-memory kills aren't told to the host")]
    Connect(#[source] AgentError),
    #[error("out-of-memory kills aren't told to the host: the process for it is gone")]
    Reporter(#[source] io::Error),
}

/// The part of a follower that waits for kills.
pub struct OomWatch {
    pub container: ContainerId,
    /// To the agent's port, from before this process was jailed.
    pub connection: Result<UnixStream, AgentError>,
    pub reporter: Reporter,
}

impl OomWatch {
    /// What it has open.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connection = self.connection.iter().map(AsFd::as_fd);
        connection.chain([self.reporter.bell()])
    }

    /// Tells of kills for as long as the agent does. To be called inside a runtime.
    pub async fn watch(self) {
        match self.try_watch().await {
            // The container, or the VM, has ended.
            Ok(()) | Err(Error::Agent(AgentError::Lost(_) | AgentError::NotFound(_))) => {}
            Err(e) => log::warn!("{}", chain(&e)),
        }
    }

    async fn try_watch(self) -> Result<(), Error> {
        let connection = self.connection.map_err(Error::Connect)?;
        let agent = Agent::over(connection).map_err(AgentError::Client)?;
        let (mut known, mut pause) = (0, FIRST_PAUSE);
        loop {
            known = agent.wait_oom(&self.container, known).await?;
            self.reporter.report().map_err(Error::Reporter)?;
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }
}
