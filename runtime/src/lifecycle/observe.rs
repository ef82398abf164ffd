//! Looking at a container that runs: its processes, and a connection for its statistics.

use std::path::PathBuf;

use super::{Context, Error, Verb, allow, connect};
use crate::cgroup::HostCgroup;
use crate::sandbox::{BlockingAgent, ProcessInfo};
use crate::store::Status;
use crate::types::ContainerId;

/// The processes of a container. A stopped one has none, which is no error.
///
/// # Errors
/// When there is no such container.
pub fn processes(context: &Context, id: &ContainerId) -> Result<Vec<ProcessInfo>, Error> {
    let dir = context.find(id)?;
    let state = dir.load()?;
    if !Status::WITH_PROCESSES.contains(&state.status()) {
        return Ok(Vec::new());
    }
    let agent = connect(&dir, &state)?;
    Ok(agent.ask(|agent| agent.processes(id))?)
}

/// The host's processes that are the container's: the one that stands for it, which runs its VM or waits for it in
/// another's. Those of the guest have numbers that on the host may be somebody else's.
///
/// # Errors
/// When there is no such container.
pub fn host_pids(context: &Context, id: &ContainerId) -> Result<Vec<i32>, Error> {
    let pid = context.find(id)?.load()?.pid();
    Ok(Some(pid).filter(|pid| *pid > 0).into_iter().collect())
}

/// A container whose statistics can be asked for.
pub struct Watched {
    /// The container's id.
    pub id: ContainerId,
    /// The connection to its agent.
    pub agent: BlockingAgent,
    /// The directory of its VM's cgroup, where that is its own.
    pub cgroup: Option<PathBuf>,
}

/// Connects to a container to watch it.
///
/// # Errors
/// When it doesn't run.
pub fn watch(context: &Context, id: &ContainerId) -> Result<Watched, Error> {
    let dir = context.find(id)?;
    let state = dir.load()?;
    allow(Verb::Watch, &state, &Status::WITH_PROCESSES)?;
    Ok(Watched {
        id: id.clone(),
        agent: connect(&dir, &state)?,
        cgroup: state.own_cgroup().map(HostCgroup::directory),
    })
}
