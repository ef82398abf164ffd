//! The service manager that hull runs under, systemd(1) say: once the container says by sd_notify(3) that it
//! is ready, the service manager hears so from hull, as from runc.
//!
//! Of what the container says nothing else is passed on, and nothing in its own words.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use hull_runtime::chain::chain;
use hull_runtime::lifecycle;
use hull_runtime::sandbox::Agent;
use hull_runtime::types::ContainerId;

/// How long the service manager may take to read what it was told.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the container is ready or has ended, however long that takes, and tells the service manager
/// that it is ready, and which process to watch. Does nothing where nobody wants to know.
///
/// A failure is only told: the container runs.
pub async fn relay(agent: &Agent, id: &ContainerId, watched: u32) {
    if lifecycle::service_manager().is_none() {
        return;
    }
    match agent.wait_ready(id).await {
        Ok(true) => {
            let told = tokio::task::spawn_blocking(move || tell(watched)).await;
            if let Err(e) = told.map_err(io::Error::other).flatten() {
                log::warn!(
                    "cannot tell the service manager (NOTIFY_SOCKET) that the container is ready: {e}"
                );
            }
        }
        Ok(false) => log::debug!("the container ended without saying that it is ready"),
        Err(e) => log::warn!("cannot hear when the container is ready: {}", chain(&e)),
    }
}

/// Tells the service manager, and waits until it has read that: it asks the kernel who said so, and must do
/// that while this process is there.
fn tell(watched: u32) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready, NotifyState::MainPid(watched)])?;
    let (theirs, ours) = std::os::unix::net::UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    ours.set_read_timeout(Some(BARRIER_TIMEOUT))?;
    match (&ours).read(&mut [0]) {
        // One that doesn't know of barriers keeps it open, or reads nothing at all.
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            log::debug!(
                "the service manager took longer than {} s",
                BARRIER_TIMEOUT.as_secs()
            );
            Ok(())
        }
        read => read.map(drop),
    }
}
