//! What the follower does: it compares what is in its network namespace with what the VM has, whenever something has
//! changed.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::jail::SOCKET;
use crate::chain::chain;
use crate::host::{async_readable, wait_readable};
use crate::network::{
    self, Interface, Namespace, Network, connect_to_resolver, read_possible, update_local_access,
    watch,
};
use crate::sandbox::agent::{Agent, open_connection};
use crate::sandbox::nics::{NicError, connect_nic};
use crate::sandbox::{AgentError, GuestNetwork, RESOLVER_SOCKETS, WaitingRelay, remove_nic};
use crate::store::{ConnectedInterfaces, Nic};
use crate::types::ContainerId;

/// How long the next attempt waits after one that has failed, without a change. Each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause: a guest that takes nothing costs nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why the VM's network isn't what it is on the host.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error("interface {name} isn't connected to the VM")]
    Nic {
        name: String,
        #[source]
        source: NicError,
    },
    #[error("the guest's network isn't what it is on the host")]
    Agent(#[from] AgentError),
    #[error("write down which interfaces are connected")]
    List(#[source] io::Error),
    #[error("wait for changes of the network")]
    Wait(#[source] io::Error),
}

/// What the queues of the VM's network interfaces are.
#[derive(Clone, Copy)]
pub struct Queues {
    /// Whether the host's kernel moves the packets, where it can.
    pub vhost: bool,
    /// How many pairs each has.
    pub pairs: NonZeroU8,
}

/// The part of a follower that follows the network's changes, in its jail.
pub struct NetworkWatch {
    container: ContainerId,
    /// This process's own.
    namespace: Namespace,
    nics: Vec<Nic>,
    queues: Queues,
    list: ConnectedInterfaces,
    /// Until it breaks.
    agent: Option<Agent>,
    /// What the agent was told last and has made.
    told: Option<GuestNetwork>,
    /// Whether the container reaches a resolver that is in the namespace.
    resolver: bool,
    /// Whether processes of the namespace are to reach the container.
    local_access: bool,
}

impl NetworkWatch {
    pub fn new(
        container: ContainerId,
        namespace: Namespace,
        nics: Vec<Nic>,
        queues: Queues,
        list: ConnectedInterfaces,
        resolver: bool,
        local_access: bool,
    ) -> Self {
        Self {
            container,
            namespace,
            nics,
            queues,
            list,
            agent: None,
            told: None,
            resolver,
            local_access,
        }
    }

    /// Follows changes for as long as the VM's process runs. To be called inside a runtime.
    pub async fn follow(mut self, vmm: &OwnedFd) {
        if let Err(e) = self.try_follow(vmm).await {
            log::error!("network: changes aren't followed any more: {}", chain(&e));
        }
    }

    async fn try_follow(&mut self, vmm: &OwnedFd) -> Result<(), Error> {
        // From here on no change is missed.
        let mut changes = watch(&self.namespace)?;
        let changed = changes.as_fd().try_clone_to_owned();
        let changed = changed.and_then(async_readable).map_err(Error::Wait)?;
        let (mut said, mut pause) = (String::new(), FIRST_PAUSE);
        loop {
            let mut attempt = None;
            match self.update().await {
                Ok(()) => (said, pause) = (String::new(), FIRST_PAUSE),
                Err(e) => {
                    if has_ended(vmm)? {
                        return Ok(());
                    }
                    let why = chain(&e);
                    if why != said {
                        log::warn!("network: {why}");
                        said = why;
                    }
                    attempt = Some(Instant::now() + pause);
                    pause = LONGEST_PAUSE.min(2 * pause);
                }
            }
            wait(&changed, attempt).await?;
            // All that an engine changes at once.
            changes.changed(Duration::ZERO)?;
        }
    }

    /// Has the VM's network be what it is on the host now. One interface that can't be connected keeps no other back.
    async fn update(&mut self) -> Result<(), Error> {
        let connected: Vec<u32> = self.nics.iter().map(|nic| nic.index).collect();
        let (there, all_can_be) = read_possible(&self.namespace, &connected)?;
        self.release_gone(&there).await?;
        let mut failure = all_can_be.map_err(Error::from);
        for interface in &there.interfaces {
            let connected = self.connect(interface);
            failure = failure.and(connected);
        }
        if self.local_access {
            let updated = update_local_access(&self.namespace, &there.interfaces);
            failure = failure.and(updated.map_err(Error::from));
        }
        self.tell(GuestNetwork::of(&there, &self.nics)).await?;
        let relayed = self.relay_resolver().await;
        failure.and(relayed)
    }

    /// Has the guest release interfaces that are gone, and then empties their slots: a driver that still had one
    /// would take the next one for it.
    async fn release_gone(&mut self, there: &Network) -> Result<(), Error> {
        let is_there = |nic: &&Nic| there.interfaces.iter().any(|one| one.index == nic.index);
        let gone: Vec<Nic> = (self.nics.iter())
            .filter(|nic| !is_there(nic))
            .copied()
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.tell(GuestNetwork::of(there, &self.nics)).await?;
        for nic in gone {
            if let Some(slot) = nic.slot {
                remove_nic(Path::new(SOCKET), slot)?;
            }
            self.nics.retain(|other| other.index != nic.index);
        }
        self.write_list()
    }

    /// Connects an interface, if it isn't.
    fn connect(&mut self, interface: &Interface) -> Result<(), Error> {
        let index = interface.index;
        let known = self.nics.iter().find(|nic| nic.index == index);
        if known.is_some_and(|nic| nic.slot.is_some()) {
            return Ok(());
        }
        if known.is_none() {
            self.nics.push(Nic { index, slot: None });
            // Before anything is made, so that `delete` knows of it, whatever becomes of this process.
            self.write_list()?;
        }
        let (socket, Queues { vhost, pairs }) = (Path::new(SOCKET), self.queues);
        let connected = connect_nic(socket, &self.namespace, interface, vhost, pairs);
        let slot = connected.map_err(|source| Error::Nic {
            name: interface.name.clone(),
            source,
        })?;
        for nic in self.nics.iter_mut().filter(|nic| nic.index == index) {
            nic.slot = Some(slot);
        }
        Ok(())
    }

    fn write_list(&self) -> Result<(), Error> {
        let indexes = self.nics.iter().map(|nic| nic.index).collect();
        self.list.write(indexes).map_err(Error::List)
    }

    /// Has the container reach the resolver that an engine has put into the namespace along with an interface, if it
    /// reaches none yet.
    async fn relay_resolver(&mut self) -> Result<(), Error> {
        if self.resolver {
            return Ok(());
        }
        let sockets = connect_to_resolver(&self.namespace, RESOLVER_SOCKETS)?;
        if sockets.is_empty() {
            return Ok(());
        }
        let relay = WaitingRelay::make(Path::new(SOCKET), &sockets)?;
        let agent = self.agent()?;
        let relayed = agent.relay_resolver(&self.container, relay.stream());
        relayed.await?;
        (self.agent, self.resolver) = (Some(agent), true);
        Ok(())
    }

    /// Tells the agent, if it doesn't know.
    async fn tell(&mut self, network: GuestNetwork) -> Result<(), Error> {
        if self.told.as_ref() == Some(&network) {
            return Ok(());
        }
        let agent = self.agent()?;
        self.told = None;
        let told = agent.update_network(&self.container, network.clone());
        told.await?;
        (self.agent, self.told) = (Some(agent), Some(network));
        Ok(())
    }

    /// The connection to the agent, to be kept for next time if it serves.
    fn agent(&mut self) -> Result<Agent, Error> {
        Ok(match self.agent.take() {
            Some(agent) => agent,
            None => {
                let connection = open_connection(Path::new(SOCKET))?;
                Agent::over(connection).map_err(AgentError::Client)?
            }
        })
    }
}

/// Waits until something has changed, no longer than until the next attempt.
async fn wait(changed: &AsyncFd<OwnedFd>, attempt: Option<Instant>) -> Result<(), Error> {
    let readable = changed.readable();
    let readable = match attempt {
        None => readable.await,
        Some(attempt) => match tokio::time::timeout_at(attempt.into(), readable).await {
            Ok(readable) => readable,
            Err(_) => return Ok(()),
        },
    };
    // What is there now is taken next, all of it.
    readable.map_err(Error::Wait)?.clear_ready();
    Ok(())
}

fn has_ended(vmm: &OwnedFd) -> Result<bool, Error> {
    wait_readable(vmm, Instant::now()).map_err(Error::Wait)
}
