//! The memory of a VM with several containers: what they may use together, as they come, change, and go.
//!
//! It follows from the config.json of those that live, as with `update` of a single one, so nothing of it is on disk. The
//! sandbox's folder is locked meanwhile: who comes second counts what the first has added.

use oci_spec::runtime::{LinuxResources, Spec};

use super::resizing::Resizing;
use super::update::follow;
use super::{Context, Error};
use crate::cgroup;
use crate::host::ProcessId;
use crate::spec::{self, Demand};
use crate::store::{State, Status};
use crate::types::ContainerId;

/// Gives the VM of a sandbox as much as its containers may use, as far as it can grow; takes back what they may use no
/// more, as far as the guest gives it. `changed` is a container's config.json as it is to be.
///
/// # Errors
/// When the guest doesn't take what it is to have: then all is as it was.
pub(super) fn fit(
    context: &Context,
    sandbox: &ContainerId,
    vmm: ProcessId,
    changed: Option<(&ContainerId, &Spec)>,
) -> Result<(), Error> {
    let mut first = context.find(sandbox)?;
    let can_grow =
        |state: &State| state.sandbox.vmm == Some(vmm) && state.sandbox.sizing.growth_mib > 0;
    if !can_grow(&first.load()?) {
        return Ok(());
    }
    first.lock()?;
    let state = first.load()?;
    let config = (context.settings).for_container(&state.container.annotations)?;
    let sizing = state.sandbox.sizing;
    let wanted = spec::memory_for_all(sizing, demand(context, vmm, changed)?, &config);
    let Some(resizing) = Resizing::of(first.own_sandbox(), sizing, wanted)? else {
        return Ok(());
    };
    let limits = cgroup::Limits {
        resources: &memory_of(&first.load_config()?),
        sizing,
        plugged_mib: resizing.most_mib(),
        config: &config,
    };
    let limited = state.own_cgroup().map(|cgroup| cgroup.limit(&limits));
    let limited = limited.transpose()?;
    if let Err(e) = resizing.grow() {
        // A VM that keeps what it has been given must not be held to less.
        if let Some(limited) = limited.filter(|_| resizing.put_back()) {
            limited.undo();
        }
        return Err(e);
    }
    if let Some(plugged_mib) = resizing.shrink() {
        follow(&state, &limits, plugged_mib);
    }
    Ok(())
}

/// What the containers in a VM that live may use together, in which one's config.json may be about to change.
///
/// # Errors
/// When the containers can't be listed. One whose config.json can't be read counts for nothing.
pub(super) fn demand(
    context: &Context,
    vmm: ProcessId,
    changed: Option<(&ContainerId, &Spec)>,
) -> Result<Demand, Error> {
    let store = context.store()?;
    let mut states = store.list()?.states;
    states.retain(|state| state.sandbox.vmm == Some(vmm) && state.status() != Status::Stopped);
    let mut demand = Demand::default();
    for state in states {
        let id = &state.container.id;
        match changed {
            Some((changed, spec)) if changed == id => demand.add(spec),
            _ => {
                let spec = store.find(id).and_then(|dir| dir.load_config());
                spec.iter().for_each(|spec| demand.add(spec));
            }
        }
    }
    Ok(demand)
}

/// The limits of memory of a config.json, which are there even if none is.
fn memory_of(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| *resources.memory());
    let mut of_memory = LinuxResources::default();
    of_memory.set_memory(Some(memory.unwrap_or_default()));
    of_memory
}
