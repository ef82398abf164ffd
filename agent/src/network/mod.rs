//! A container's network: for each interface of the network namespace that the container has on the host, the guest has
//! a NIC, and here that becomes an interface of the same name, with the same MTU, addresses, routes and sysctls.
//!
//! Each request of the host describes the whole network (`desired`). `apply` compares it with what was set up
//! before, and changes only the difference; what the container has set up itself is left alone. NICs come from the
//! guest's own network namespace, or out of their slots, and go back there (`nic`). All of this happens on a thread
//! that enters the container's network namespace and then ends, so no other thread of the agent is ever in one. Packets
//! don't pass through here: they are the kernel's and the device's.

mod apply;
mod desired;
mod entries;
mod error;
mod link;
mod namespaces;
mod nic;
mod resolver;
mod rtnetlink;
mod sysctl;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::thread;
use std::time::Duration;

use hull_protocol::agent;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

pub use error::Error;
pub use rtnetlink::Refusal;

use crate::transport::Stream;
use apply::Applied;
use desired::Desired;
use resolver::Resolver;

/// How long a request may take: longer than its NICs are waited for.
const TIMEOUT: Duration = Duration::from_secs(40);

/// What is set up in a network namespace, and how many containers have that as their network.
#[derive(Clone, Debug, Default)]
pub struct NamespaceState {
    applied: Arc<Mutex<Applied>>,
    containers: Arc<AtomicUsize>,
}

/// The network of a container.
#[derive(Debug)]
pub struct Network {
    /// The container's network namespace, unless that is the guest's own.
    namespace: Option<Arc<OwnedFd>>,
    state: NamespaceState,
    /// Whether the container is being deleted. Changes only while `applied` is locked.
    released: AtomicBool,
    /// What stands for the host's resolver in the namespace.
    resolver: StdMutex<Option<Resolver>>,
}

impl Network {
    /// The network of a container whose first process waits to be started. With `own` the container has a network
    /// namespace of its own, which stays its network's even if that process leaves it. Otherwise it shares the guest's
    /// own with all such containers, and `guest` is the state of that.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn of(process: i32, own: bool, guest: &NamespaceState) -> Result<Self, Error> {
        if !own {
            return Ok(Self::new(None, guest.clone()));
        }
        let path = format!("/proc/{process}/ns/net");
        let namespace = File::open(&path).map_err(Error::io(format!("open {path}")))?;
        let namespace = Arc::new(namespace.into());
        Ok(Self::new(Some(namespace), NamespaceState::default()))
    }

    /// That of a further container in the same network namespace. What is set up there stays until the last of them is
    /// released.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self::new(self.namespace.clone(), self.state.clone())
    }

    fn new(namespace: Option<Arc<OwnedFd>>, state: NamespaceState) -> Self {
        state.containers.fetch_add(1, Ordering::Relaxed);
        Self {
            namespace,
            state,
            released: AtomicBool::new(false),
            resolver: StdMutex::default(),
        }
    }

    /// Sets up the network of the container of this id for the first time. If that fails, nothing of it is left.
    ///
    /// # Errors
    /// As with [`update`](Self::update).
    pub async fn set_up(&self, id: &str, network: &agent::Network) -> Result<(), Error> {
        let updated = self.update(network).await;
        if updated.is_err() {
            self.release(id).await;
        }
        updated
    }

    /// Changes the network to what the request describes. Once it has begun, that goes on even if the caller drops the future.
    ///
    /// # Errors
    /// Names the first thing that can't be done. What was done is recorded, so the same request can be made again.
    pub async fn update(&self, network: &agent::Network) -> Result<(), Error> {
        let desired = Desired::read(network)?;
        with_timeout(async {
            let applied = Arc::clone(&self.state.applied).lock_owned().await;
            if self.released.load(Ordering::Relaxed) {
                return Err(Error::Released);
            }
            self.apply(desired, applied).await
        })
        .await
    }

    /// Has the container reach the resolver that the host has for it, on that stream. An earlier one is left.
    ///
    /// # Errors
    /// When the kernel refuses, or the container is being deleted.
    pub async fn relay_resolver(&self, host: Box<dyn Stream>) -> Result<(), Error> {
        with_timeout(async {
            let _applied = self.state.applied.lock().await;
            if self.released.load(Ordering::Relaxed) {
                return Err(Error::Released);
            }
            drop(self.replace_resolver(None));
            let resolver = Resolver::start(self.namespace.clone(), host).await?;
            self.replace_resolver(Some(resolver));
            Ok(())
        })
        .await
    }

    fn replace_resolver(&self, resolver: Option<Resolver>) -> Option<Resolver> {
        let mut current = (self.resolver.lock()).unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, resolver)
    }

    /// Removes all that was set up, so that the NICs can be used again; in the guest's own network namespace, the last
    /// container does that. Logs an error, after which still everything else is removed. Called when the container of
    /// this id has ended; every [`update`](Self::update) afterwards is refused.
    pub async fn release(&self, id: &str) {
        if let Err(e) = self.try_release().await {
            log::error!("release the network of container {id}: {e}");
        }
    }

    async fn try_release(&self) -> Result<(), Error> {
        with_timeout(async {
            let applied = Arc::clone(&self.state.applied).lock_owned().await;
            if self.released.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            self.replace_resolver(None);
            if self.state.containers.fetch_sub(1, Ordering::Relaxed) > 1 {
                return Ok(());
            }
            self.apply(Desired::default(), applied).await
        })
        .await
    }

    async fn apply(
        &self,
        desired: Desired,
        mut applied: OwnedMutexGuard<Applied>,
    ) -> Result<(), Error> {
        if desired.is_empty() && applied.is_empty() {
            return Ok(());
        }
        let namespace = self.namespace.clone();
        let (done, outcome) = oneshot::channel();
        let work = move || {
            let namespace = namespace.as_deref().map(AsFd::as_fd);
            let result = apply::apply(namespace, &desired, &mut applied);
            drop(applied);
            let _ = done.send(result); // the caller may have gone
        };
        let thread = thread::Builder::new().name("network".into()).spawn(work);
        thread.map_err(Error::io("start the thread that sets up the network"))?;
        let panicked = |_| std::io::Error::other("it has panicked");
        let outcome = outcome.await.map_err(panicked);
        outcome.map_err(Error::io("await the thread that sets up the network"))?
    }
}

async fn with_timeout(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let done = tokio::time::timeout(TIMEOUT, work).await;
    done.unwrap_or(Err(Error::Timeout(TIMEOUT.as_secs())))
}
