//! What the follower does for a service manager: it tells it that the container is ready, once the container says so by
//! sd_notify(3). Nothing else of what the container says is passed on, and nothing in its own words.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use tokio::net::UnixDatagram;

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
    /// A datagram socket that is connected to the service manager, and non-blocking.
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
            tell(self.manager).await.map_err(Error::Tell)?;
        }
        Ok(())
    }
}

/// Tells the service manager. One that doesn't read is waited for, and nothing else is held up by that.
async fn tell(manager: OwnedFd) -> io::Result<()> {
    let manager = UnixDatagram::from_std(manager.into())?;
    manager.send(READY).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram as Socket;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_manager_that_does_not_read_holds_up_nothing_else() {
        let (manager, ours) = Socket::pair().expect("sockets");
        ours.set_nonblocking(true).expect("a socket");
        let mut unread = 0;
        while ours.send(b"STATUS=busy").is_ok() {
            unread += 1;
        }
        let mut told = std::pin::pin!(tell(ours.into()));
        let waited = timeout(Duration::from_millis(50), &mut told).await;
        assert!(waited.is_err(), "{waited:?}");

        let mut message = [0; 32];
        for _ in 0..unread {
            manager.recv(&mut message).expect("a message");
        }
        let told = timeout(Duration::from_secs(20), told).await;
        told.expect("in time").expect("told");
        let length = manager.recv(&mut message).expect("a message");
        assert_eq!(&message[..length], READY);
    }
}
