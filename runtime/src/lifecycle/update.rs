//! Changing the limits of a container that exists.

use serde_json::Value;

use super::{Context, Error, Verb, allow, connect};
use crate::cgroup;
use crate::spec::{self, SpecError};
use crate::store::Status;
use crate::types::ContainerId;

/// Changes limits, given as a `linux.resources` object: in the guest, on the host, and in the container's
/// config.json.
///
/// # Errors
/// When one is refused; then none is changed in the guest.
pub fn update(context: &Context, id: &ContainerId, changes: Value) -> Result<(), Error> {
    let mut dir = context.find(id)?;
    dir.lock()?;
    let state = dir.load()?;
    let config = (context.settings).for_container(&state.container.annotations)?;
    allow(Verb::Update, &state, &Status::WITH_PROCESSES)?;
    let sandbox = &state.sandbox;
    let update = spec::update(&dir.load_config()?, sandbox.sizing, &config, changes)?;
    let limits = cgroup::Limits {
        resources: &update.host,
        sizing: sandbox.sizing,
        config: &config,
    };
    if update.cpus.is_some() && state.own_sandbox().is_none() {
        return Err(Error::OfTheSandbox {
            field: "linux.resources.cpu.cpus",
            sandbox: state.sandbox.id.clone(),
        });
    }
    // The guest comes last of all that may fail: the rest can be taken back without asking anybody.
    let staged = dir.stage_config(&update.config)?;
    // None of the host's limits is below what the guest's allow (see `cgroup`), so between the two no
    // container has less than one of them.
    let on_host = match state.own_cgroup() {
        Some(cgroup) => Some(cgroup.limit(&limits)?),
        None => {
            cgroup::without(&update.host)?;
            None
        }
    };
    let pinned = match (update.cpus, sandbox.vmm, &sandbox.cgroup) {
        (Some(cpus), Some(vmm), None) => {
            let pinned = cpus.pin_process(vmm.pid);
            Some(pinned.map_err(|source| SpecError::Cpus { source })?)
        }
        _ => None,
    };
    let in_guest = connect(&dir, &state)
        .and_then(|agent| Ok(agent.ask(|agent| agent.update(id, update.guest))?));
    if let Err(e) = in_guest {
        if let Some(applied) = on_host {
            applied.undo();
        }
        if let Some(pinned) = pinned {
            pinned.undo();
        }
        return Err(e);
    }
    dir.keep_config(staged)?;
    Ok(())
}
