//! A container's record on disk, and the state machine that it and its sandbox's make up.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{SandboxNetwork, SandboxRecord};
use crate::cgroup::HostCgroup;
use crate::host::ProcessId;
use crate::types::ContainerId;

/// What the last command has brought a container to. `stopped` is not among them: that is read off the
/// container's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `create` is at work, or was cut off.
    Creating,
    /// Waiting for `start`.
    Created,
    /// Started.
    Running,
}

/// A container's status, in the words of the runtime-spec (runtime.md, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being created.
    Creating,
    /// Created, not started.
    Created,
    /// Started, not ended.
    Running,
    /// Created or started, and suspended.
    Paused,
    /// Ended.
    Stopped,
}

impl Status {
    /// Those in which the container has a process in the guest.
    pub const WITH_PROCESSES: [Self; 3] = [Self::Created, Self::Running, Self::Paused];
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The record on disk: `state.json` in the container's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container's id.
    pub id: ContainerId,
    /// How far commands have brought it.
    pub phase: Phase,
    /// Whether its processes are suspended.
    pub paused: bool,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// When it was created: RFC 3339, UTC.
    pub created: String,
    /// The user who created it.
    pub owner: String,
    /// config.json's annotations.
    pub annotations: HashMap<String, String>,
    /// The socket of the service manager that `create` ran under, or that its engine has for the container: it is to hear
    /// when the container is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_manager: Option<PathBuf>,
    /// The sandbox that it has joined; without it, it is the first container of one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
}

/// A container's place in the sandbox of another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The sandbox's id, which is its first container's.
    pub sandbox: ContainerId,
    /// The sandbox's VM process: another sandbox of that id is another one.
    pub vmm: ProcessId,
    /// The folder of the VM's shared tree that this container's shares are in. No other container has had it: the guest
    /// may remember for a while what it has found there.
    pub folder: String,
    /// The process that stands for this container on the host; none until it has been started.
    pub stand_in: Option<ProcessId>,
    /// The host's cgroup that this process is in, from before it is made; none that config.json hasn't asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<HostCgroup>,
}

/// A container and the sandbox that it is in, as the last commands have left them.
#[derive(Clone, Debug)]
pub struct State {
    /// The container.
    pub container: ContainerRecord,
    /// Its sandbox. If that is gone, what is known of it: its VM process, which is dead.
    pub sandbox: SandboxRecord,
}

impl State {
    /// The process of the host that ends as the container does: the VM process for a sandbox's first one, a stand-in
    /// for one that has joined.
    pub fn process(&self) -> Option<ProcessId> {
        match &self.container.joined {
            None => self.sandbox.vmm,
            Some(joined) => joined.stand_in,
        }
    }

    /// The sandbox, if it begins and ends with this container.
    pub fn own_sandbox(&self) -> Option<&SandboxRecord> {
        self.container.joined.is_none().then_some(&self.sandbox)
    }

    /// The network of the sandbox that begins and ends with this container.
    pub fn own_network(&self) -> Option<&SandboxNetwork> {
        self.own_sandbox()?.network.as_ref()
    }

    /// The cgroup on the host that begins and ends with this container.
    pub fn own_cgroup(&self) -> Option<&HostCgroup> {
        self.own_sandbox()?.cgroup.as_ref()
    }

    /// The host's cgroup that was made for the container's process there: the VM's, or a stand-in's.
    pub fn cgroup_of_process(&self) -> Option<&HostCgroup> {
        match &self.container.joined {
            None => self.own_cgroup(),
            Some(joined) => joined.cgroup.as_ref(),
        }
    }

    /// What the container's state is now. It has ended when its process knows its exit status, though
    /// that process still has output to write, or is gone.
    pub fn status(&self) -> Status {
        let runs = self
            .process()
            .is_some_and(|process| process.runs_container());
        match (self.container.phase, runs) {
            (Phase::Creating, true) => Status::Creating,
            (Phase::Created | Phase::Running, true) if self.container.paused => Status::Paused,
            (Phase::Created, true) => Status::Created,
            (Phase::Running, true) => Status::Running,
            (_, false) => Status::Stopped,
        }
    }

    /// The pid for the user: its process's, or 0 once the container has stopped, as in runc.
    pub fn pid(&self) -> i32 {
        match self.process() {
            Some(process) if process.runs_container() => process.pid,
            _ => 0,
        }
    }
}

#[cfg(test)]
impl State {
    /// A container in tests that are not about the rest.
    pub(crate) fn in_tests(id: &str, phase: Phase, vmm: Option<ProcessId>) -> Self {
        let id: ContainerId = id.parse().expect("id");
        Self {
            sandbox: SandboxRecord {
                id: id.clone(),
                sizing: crate::types::Sizing::SMALLEST,
                vmm,
                cgroup: None,
                network: None,
                follower: None,
                volume_sockets: false,
            },
            container: ContainerRecord {
                id,
                phase,
                paused: false,
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                created: String::new(),
                owner: String::new(),
                annotations: HashMap::new(),
                service_manager: None,
                joined: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_vm_process_means_stopped_in_every_phase() {
        let dead = ProcessId {
            pid: 1,
            start_time: u64::MAX,
        };
        for phase in [Phase::Creating, Phase::Created, Phase::Running] {
            let state = State::in_tests("c", phase, Some(dead));
            assert_eq!((state.status(), state.pid()), (Status::Stopped, 0));
        }
    }

    #[test]
    fn one_that_has_joined_lives_as_long_as_its_stand_in() {
        let me = ProcessId::of(std::process::id().cast_signed()).expect("own stat");
        let dead = ProcessId {
            start_time: u64::MAX,
            ..me
        };
        let mut state = State::in_tests("c", Phase::Running, Some(me));
        let joined = |stand_in| Joined {
            sandbox: "pod".parse().expect("id"),
            vmm: me,
            folder: "f".to_owned(),
            stand_in,
            cgroup: None,
        };
        for (stand_in, status) in [
            (None, Status::Stopped),
            (Some(dead), Status::Stopped),
            (Some(me), Status::Running),
        ] {
            state.container.joined = Some(joined(stand_in));
            assert_eq!(state.status(), status);
            assert!(state.own_sandbox().is_none());
        }
    }

    #[test]
    fn a_living_vm_process_shows_the_phase_and_its_pid() {
        let me = ProcessId::of(std::process::id().cast_signed()).expect("own stat");
        let mut state = State::in_tests("c", Phase::Created, Some(me));
        assert_eq!((state.status(), state.pid()), (Status::Created, me.pid));
        state.container.paused = true;
        assert_eq!(state.status(), Status::Paused);
    }
}
