//! A container's state machine, and the record of it on disk.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ContainerId, ProcessId};
use crate::cgroup::HostCgroup;
use crate::spec::Sizing;

/// What the last command has brought a container to. `stopped` is not among them: that is read off the
/// VMM process.
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
    /// Created or started, and made to stand still.
    Paused,
    /// Ended.
    Stopped,
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
pub struct State {
    /// The container's id.
    pub id: ContainerId,
    /// How far commands have brought it.
    pub phase: Phase,
    /// Whether its processes stand still.
    pub paused: bool,
    /// The VM's size.
    pub sizing: Sizing,
    /// The VMM process; none until it has been launched.
    pub vmm: Option<ProcessId>,
    /// The host's cgroup that is the VM's alone, from before it is made.
    pub cgroup: Option<HostCgroup>,
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
}

/// What can still be read of a record that isn't whole, or that another version of hull has written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Remains {
    /// The container's id. All else is another container's if this is another id.
    pub id: Option<ContainerId>,
    /// The VMM process.
    pub vmm: Option<ProcessId>,
    /// The VM's cgroup.
    pub cgroup: Option<HostCgroup>,
}

impl State {
    /// What the container's state is now. It has ended when its VMM process knows its exit status, though
    /// that process still has output to write, or is gone.
    pub fn status(&self) -> Status {
        let runs = self.vmm.is_some_and(|vmm| vmm.runs_container());
        match (self.phase, runs) {
            (Phase::Creating, true) => Status::Creating,
            (Phase::Created | Phase::Running, true) if self.paused => Status::Paused,
            (Phase::Created, true) => Status::Created,
            (Phase::Running, true) => Status::Running,
            (_, false) => Status::Stopped,
        }
    }

    /// The pid for the user: the VMM's, or 0 once the container has stopped, as in runc.
    pub fn pid(&self) -> i32 {
        match self.vmm {
            Some(vmm) if vmm.runs_container() => vmm.pid,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase, vmm: Option<ProcessId>) -> State {
        State {
            id: "c".parse().expect("id"),
            phase,
            paused: false,
            sizing: Sizing::SMALLEST,
            vmm,
            cgroup: None,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: String::new(),
            annotations: HashMap::new(),
        }
    }

    #[test]
    fn a_dead_vmm_means_stopped_in_every_phase() {
        let dead = ProcessId {
            pid: 1,
            start_time: u64::MAX,
        };
        for phase in [Phase::Creating, Phase::Created, Phase::Running] {
            let state = state(phase, Some(dead));
            assert_eq!((state.status(), state.pid()), (Status::Stopped, 0));
        }
    }

    #[test]
    fn a_living_vmm_shows_the_phase_and_its_pid() {
        let me = ProcessId::of(std::process::id().cast_signed()).expect("own stat");
        let state = state(Phase::Created, Some(me));
        assert_eq!((state.status(), state.pid()), (Status::Created, me.pid));
        let paused = State {
            paused: true,
            ..state
        };
        assert_eq!(paused.status(), Status::Paused);
    }
}
