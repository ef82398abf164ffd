//! Changing the limits of a container that exists.

use serde_json::Value;

use super::resizing::Resizing;
use super::{Context, Error, Verb, allow, connect, vm_memory};
use crate::cgroup;
use crate::chain::chain;
use crate::config::Config;
use crate::host::ProcessId;
use crate::spec::{self, PinnedProcess, SpecError, Update, VmMemory};
use crate::store::{State, Status};
use crate::types::ContainerId;

/// Changes limits, given as a `linux.resources` object: in the guest, on the host, and in the container's
/// config.json. The VM grows and shrinks with a limit of its container's memory.
///
/// # Errors
/// When one is refused; then none is changed in the guest.
pub fn update(context: &Context, id: &ContainerId, changes: Value) -> Result<(), Error> {
    let mut dir = context.find(id)?;
    dir.lock()?;
    let state = dir.load()?;
    let config = (context.settings).for_container(&state.container.annotations)?;
    allow(Verb::Update, &state, &Status::WITH_PROCESSES)?;
    let sizing = state.sandbox.sizing;
    let mut update = spec::update(&dir.load_config()?, sizing, &config, changes)?;
    if update.cpus.is_some() && state.own_sandbox().is_none() {
        return Err(Error::OfTheSandbox {
            field: "linux.resources.cpu.cpus",
            sandbox: state.sandbox.id.clone(),
        });
    }
    if let (Some(_), Some(vmm)) = (&update.vm_memory, state.sandbox.vmm) {
        update.vm_memory = of_all(context, &state, vmm, &update, &config)?;
    }
    let resizing = (update.vm_memory)
        .map(|memory| Resizing::of(dir.own_sandbox(), sizing, memory))
        .transpose()?
        .flatten();
    // The guest comes last of all that may fail: the rest can be taken back without asking anybody.
    let staged = dir.stage_config(&update.config)?;
    let limits = cgroup::Limits {
        resources: &update.host,
        sizing,
        plugged_mib: resizing.as_ref().map_or(0, Resizing::most_mib),
        config: &config,
    };
    let host = OnHost::apply(&state, &update, &limits)?;
    let grown = resizing.as_ref().map_or(Ok(()), Resizing::grow);
    let in_guest = grown.and_then(|()| {
        let agent = connect(&dir, &state)?;
        Ok(agent.ask(|agent| agent.update(id, update.guest.clone()))?)
    });
    if let Err(e) = in_guest {
        // A VM that keeps what it has been given must not be held to less.
        if resizing.is_none_or(|resizing| resizing.put_back()) {
            host.undo();
        }
        return Err(e);
    }
    dir.keep_config(staged)?;
    if let Some(plugged_mib) = resizing.and_then(|resizing| resizing.shrink()) {
        follow(&state, &limits, plugged_mib);
    }
    Ok(())
}

/// The memory that a VM is to have from now on for all of its containers. That of one that has joined is given to it here.
fn of_all(
    context: &Context,
    state: &State,
    vmm: ProcessId,
    update: &Update,
    config: &Config,
) -> Result<Option<VmMemory>, Error> {
    let changed = Some((&state.container.id, &update.config));
    if let Some(joined) = &state.container.joined {
        vm_memory::fit(context, &joined.sandbox, vmm, changed)?;
        return Ok(None);
    }
    let demand = vm_memory::demand(context, vmm, changed)?;
    let may_shrink = update.vm_memory.is_none_or(|memory| memory.may_shrink);
    let of_all = spec::memory_for_all(state.sandbox.sizing, demand, config);
    Ok(Some(VmMemory {
        may_shrink,
        ..of_all
    }))
}

/// Has the host's limits be those of a VM that has shrunk.
pub(super) fn follow(state: &State, limits: &cgroup::Limits<'_>, plugged_mib: u32) {
    let limits = cgroup::Limits {
        plugged_mib,
        ..*limits
    };
    if let Some(cgroup) = state.own_cgroup()
        && let Err(e) = cgroup.limit(&limits)
    {
        log::warn!("the host's limits stay those of a larger VM: {}", chain(&e));
    }
}

/// What was changed on the host, and can be taken back.
struct OnHost<'a> {
    limited: Option<cgroup::Limited<'a>>,
    pinned: Option<PinnedProcess>,
}

impl<'a> OnHost<'a> {
    /// None of the host's limits is below what the guest's allow (see `cgroup`), so between the two no container has
    /// less than one of them.
    fn apply(
        state: &'a State,
        update: &Update,
        limits: &cgroup::Limits<'_>,
    ) -> Result<Self, Error> {
        let limited = match state.own_cgroup() {
            Some(cgroup) => Some(cgroup.limit(limits)?),
            None => {
                cgroup::without(&update.host)?;
                None
            }
        };
        let sandbox = &state.sandbox;
        let pinned = match (&update.cpus, sandbox.vmm, &sandbox.cgroup) {
            (Some(cpus), Some(vmm), None) => {
                let pinned = cpus.pin_process(vmm.pid);
                Some(pinned.map_err(|source| SpecError::Cpus { source })?)
            }
            _ => None,
        };
        Ok(Self { limited, pinned })
    }

    fn undo(self) {
        if let Some(limited) = self.limited {
            limited.undo();
        }
        if let Some(pinned) = self.pinned {
            pinned.undo();
        }
    }
}
