//! All containers, those that nobody can read included.

use super::state::OciState;
use super::{Context, Error, damaged};
use crate::sandbox::{Purpose, RunningProcess};
use crate::store::{Store, StoreError};
use crate::types::ContainerId;

/// The state of each container. One whose state can't be read is `damaged`, with the pid of its process if that runs.
///
/// # Errors
/// When the store can't be read.
pub fn list(context: &Context) -> Result<Vec<OciState>, Error> {
    let store = context.store()?;
    // First: whose folder is gone afterwards runs without one.
    let mut processes = damaged::of_store(&store)?;
    processes.retain(|running| running.purpose != Purpose::Follower);
    let listed = store.list()?;
    let mut states: Vec<OciState> = listed.states.into_iter().map(OciState::from).collect();
    states.extend(unreadable(&store, listed.damaged, &processes));
    Ok(states)
}

fn unreadable(
    store: &Store,
    damaged: Vec<ContainerId>,
    processes: &[RunningProcess],
) -> Vec<OciState> {
    let gone = |running: &&RunningProcess| {
        let found = store.find(&running.id);
        matches!(found, Err(StoreError::Missing(_))) && running.process.is_alive()
    };
    let mut ids = damaged;
    for running in processes.iter().filter(gone) {
        log::warn!(
            "the folder of container {} is gone, and its process {} runs; delete it with --force",
            running.id,
            running.process.pid
        );
        ids.push(running.id.clone());
    }
    ids.sort();
    ids.dedup();
    let pid = |id: &ContainerId| processes.iter().find(|running| running.id == *id);
    ids.into_iter()
        .map(|id| {
            let pid = pid(&id).map_or(0, |running| running.process.pid);
            OciState::damaged(id, pid)
        })
        .collect()
}
