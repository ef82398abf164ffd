//! The process that `start` leaves on the host, to pass on what happens while the container runs
//! ([`crate::sandbox::Follower`]): from when on there is one, and its end.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::delete::kill_process;
use super::{Context, Error, service_manager};
use crate::chain::chain;
use crate::host::{Privilege, ProcessId};
use crate::sandbox::{Follower, SandboxError};
use crate::spec::has_memory_limit;
use crate::store::{
    ContainerDir, ContainerRecord, SandboxDir, SandboxNetwork, SandboxRecord, State,
};

/// Has a process of its own pass on what happens from now on, where something can: see [`Followed`]. Without it, the
/// container runs all the same.
pub(super) fn follow(context: &Context, dir: &ContainerDir, state: &mut State, spec: &Spec) {
    let Some(sandbox) = state.own_sandbox() else {
        return;
    };
    let manager = service_manager_to_tell(&state.container);
    let mut followed = Followed::of(sandbox, spec);
    followed.oom &= context.oom_in_cgroup;
    followed.ready = manager.is_some();
    if !Privilege::own().is_some_root() || !followed.is_anything() || is_there(sandbox, followed) {
        return;
    }
    if let Err(e) = start(&dir.own_sandbox(), &mut state.sandbox, followed, manager) {
        log::warn!("{}: {}", followed.what_is_lost(), chain(&e));
    }
}

/// What is to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Followed {
    /// Changes of the network: in a namespace that was given by its path, or in which there is an interface already,
    /// somebody may change something.
    network: bool,
    /// Kills for want of memory: with a limit in config.json that the guest's kernel enforces, they are to be seen in the
    /// cgroup on the host.
    oom: bool,
    /// The container's word that it is ready, for a service manager.
    ready: bool,
}

impl Followed {
    fn of(sandbox: &SandboxRecord, spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let may_change = |own: &SandboxNetwork| own.named.is_some() || !own.nics.is_empty();
        Self {
            network: sandbox.network.as_ref().is_some_and(may_change),
            oom: sandbox.cgroup.is_some() && resources.is_some_and(has_memory_limit),
            ready: false,
        }
    }

    fn is_anything(self) -> bool {
        self.network || self.oom || self.ready
    }

    fn what_is_lost(self) -> String {
        let parts = [
            (
                self.network,
                "what changes in the container's network from now on won't be seen",
            ),
            (
                self.oom,
                "engines won't be told when the container runs out of memory",
            ),
            (
                self.ready,
                "the service manager won't be told when the container is ready",
            ),
        ];
        let lost: Vec<_> = parts
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, what)| *what)
            .collect();
        lost.join(", and ")
    }
}

/// Whether a `start` that failed later has left a process that does this.
fn is_there(sandbox: &SandboxRecord, followed: Followed) -> bool {
    match followed.network {
        true => is_network_followed(sandbox),
        false => is_alive(sandbox),
    }
}

/// Whether a process follows a sandbox's network already.
pub(super) fn is_network_followed(sandbox: &SandboxRecord) -> bool {
    sandbox.network.as_ref().is_some_and(|own| own.followed) && is_alive(sandbox)
}

fn is_alive(sandbox: &SandboxRecord) -> bool {
    sandbox.follower.is_some_and(|follower| follower.is_alive())
}

/// The service manager that is to be told by a process which stays: that of `create`, if this command runs under none.
fn service_manager_to_tell(container: &ContainerRecord) -> Option<&Path> {
    let asked = container.service_manager.as_deref();
    asked.filter(|_| service_manager::of_this_command().is_none())
}

fn start(
    files: &SandboxDir,
    sandbox: &mut SandboxRecord,
    followed: Followed,
    manager: Option<&Path>,
) -> Result<(), Error> {
    // One without the network, from a `start` that failed before there was any.
    end(sandbox.follower)?;
    let Some(vmm) = sandbox.vmm else {
        return Ok(());
    };
    let cgroup = sandbox.cgroup.as_ref();
    let oom_kill = cgroup.filter(|_| followed.oom).map(|own| own.oom_kill());
    let follower = Follower {
        sandbox: files,
        vmm,
        network: sandbox.network.as_ref().filter(|_| followed.network),
        cgroup: cgroup.map(|own| own.open()).transpose()?,
        oom_kill: oom_kill.transpose()?,
        service_manager: manager.and_then(reach),
    };
    let lifeline = follower.spawn()?;
    let process = ProcessId::of(lifeline.pid());
    sandbox.follower = Some(process.map_err(SandboxError::host("see the process"))?);
    if let Some(own) = &mut sandbox.network {
        own.followed = followed.network;
    }
    // It begins once `delete` can find it.
    files.save(sandbox)?;
    Ok(lifeline.begin()?)
}

/// A service manager that is gone keeps no container from running.
fn reach(manager: &Path) -> Option<OwnedFd> {
    let connected = service_manager::connect(manager);
    connected
        .inspect_err(|e| {
            let path = manager.display();
            log::warn!("the service manager (NOTIFY_SOCKET={path}) won't be told when the container is ready: {e}");
        })
        .ok()
}

/// The process, if there is one. Once the container has ended, there is nothing to pass on.
pub fn follower(state: &State) -> Option<ProcessId> {
    state.own_sandbox()?.follower
}

/// Ends it. It would go by itself, a moment after its VM.
///
/// # Errors
/// When it doesn't die.
pub(super) fn end(follower: Option<ProcessId>) -> Result<(), Error> {
    follower.map_or(Ok(()), |follower| kill_process(follower, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Nic, Phase};
    use serde_json::json;

    fn limited(limit: i64) -> Spec {
        let spec = json!({
            "ociVersion": "1.0.0",
            "linux": {"resources": {"memory": {"limit": limit}}}
        });
        serde_json::from_value(spec).expect("a config.json")
    }

    #[test]
    fn what_can_happen_is_followed() {
        let mut sandbox = State::in_tests("web", Phase::Created, None).sandbox;
        let nothing = Followed::of(&sandbox, &limited(1 << 26));
        assert!(!nothing.is_anything(), "{nothing:?}");

        let cgroup = json!({"path": "/pod/web", "scope": null});
        sandbox.cgroup = Some(serde_json::from_value(cgroup).expect("a cgroup"));
        assert!(Followed::of(&sandbox, &limited(1 << 26)).oom);
        assert!(!Followed::of(&sandbox, &limited(-1)).oom);

        let (index, slot) = (2, None);
        let network = |nics: Vec<Nic>| {
            let network = json!({"named": null, "vhost": true, "nics": nics});
            Some(serde_json::from_value(network).expect("a network"))
        };
        sandbox.network = network(Vec::new());
        assert!(!Followed::of(&sandbox, &limited(-1)).network);
        sandbox.network = network(vec![Nic { index, slot }]);
        assert!(Followed::of(&sandbox, &limited(-1)).network);
    }
}
