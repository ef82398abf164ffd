//! All containers, those that nobody can read included.

use super::state::OciState;
use super::{Context, Error, damaged};
use crate::sandbox::RunningVmm;
use crate::store::{Store, StoreError};
use crate::types::ContainerId;

/// The state of each container. One whose state can't be read is `damaged`, with the pid of its VM if that runs.
///
/// # Errors
/// When the store can't be read.
pub fn list(context: &Context) -> Result<Vec<OciState>, Error> {
    let store = context.store()?;
    // First: whose folder is gone afterwards runs without one.
    let vms = damaged::of_store(&store)?;
    let listed = store.list()?;
    let mut states: Vec<OciState> = listed.states.into_iter().map(OciState::from).collect();
    states.extend(unreadable(&store, listed.damaged, &vms));
    Ok(states)
}

fn unreadable(store: &Store, damaged: Vec<ContainerId>, vms: &[RunningVmm]) -> Vec<OciState> {
    let gone = |vmm: &&RunningVmm| {
        let found = store.find(&vmm.id);
        matches!(found, Err(StoreError::Missing(_))) && vmm.process.is_alive()
    };
    let mut ids = damaged;
    for vmm in vms.iter().filter(gone) {
        log::warn!(
            "the folder of container {} is gone, and its VM runs as process {}; delete it with --force",
            vmm.id,
            vmm.process.pid
        );
        ids.push(vmm.id.clone());
    }
    ids.sort();
    ids.dedup();
    let pid = |id: &ContainerId| vms.iter().find(|vmm| vmm.id == *id);
    ids.into_iter()
        .map(|id| {
            let pid = pid(&id).map_or(0, |vmm| vmm.process.pid);
            OciState::damaged(id, pid)
        })
        .collect()
}
