//! The resolver that an engine has put into a container's network namespace on the host: the container reaches it as the
//! processes there would.
//!
//! Docker's user-defined networks have one, at 127.0.0.11. It begins to listen when docker connects the container to a
//! network: so it is looked for when interfaces are. Once the container runs, the follower does that.

use super::Error;
use super::network::namespace_of_vm;
use crate::network::{Namespace, connect_to_resolver};
use crate::sandbox::{BlockingAgent, RESOLVER_SOCKETS, WaitingRelay};
use crate::store::{SandboxDir, SandboxRecord};
use crate::types::ContainerId;

/// Has a container, the first of its sandbox, reach the resolver that is in its network namespace, if there is one and it
/// doesn't reach it yet.
///
/// # Errors
/// When the namespace can't be looked into, or the VM process or the agent refuse.
pub(super) fn relay_resolver(
    id: &ContainerId,
    files: &SandboxDir,
    sandbox: &mut SandboxRecord,
    agent: &BlockingAgent,
) -> Result<(), Error> {
    if sandbox.network.as_ref().is_none_or(|own| own.resolver) {
        return Ok(());
    }
    let namespace = Namespace::from(namespace_of_vm(sandbox).map_err(Error::NetworkNamespace)?);
    let sockets = connect_to_resolver(&namespace, RESOLVER_SOCKETS)?;
    if sockets.is_empty() {
        return Ok(());
    }
    let relay = WaitingRelay::make(&files.socket_path(), &sockets)?;
    agent
        .ask(|agent| agent.relay_resolver(id, relay.stream()))
        .map_err(Error::ContainerProcess)?;
    if let Some(own) = &mut sandbox.network {
        own.resolver = true;
    }
    Ok(files.save(sandbox)?)
}
