//! Looking at a container that runs: its processes, and a connection for its statistics.

use std::path::PathBuf;

use super::{Context, Error, allow, connect};
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
    allow("watch", &state, &Status::WITH_PROCESSES)?;
    Ok(Watched {
        id: id.clone(),
        agent: connect(&dir, &state)?,
        cgroup: state.own_cgroup().map(HostCgroup::directory),
    })
}
