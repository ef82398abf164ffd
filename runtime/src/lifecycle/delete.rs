//! Removing what a container has left on the host.

use std::time::Duration;

use super::follower;
use super::hooks::Hooks;
use super::network::disconnect_interfaces;
use super::state::for_hook;
use super::{Context, Error, Verb, WrongState, ask_aside, damaged, vm_memory};
use crate::cgroup::HostCgroup;
use crate::chain::chain;
use crate::host::ProcessId;
use crate::sandbox::{SandboxError, remove_shares};
use crate::store::{ContainerDir, State, Status, Store, StoreError};
use crate::types::ContainerId;

/// How long a killed process may take to go: its memory has to be given back.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the process of a container that has ended may take to write the container's output out.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the guest may take to forget a container that is deleted by force.
const AGENT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the news that a container has ended may be on its way from the guest, on a busy host.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// Deletes a container; with `force` also one that runs, and it is no error then if there is none.
///
/// # Errors
/// When it runs and may not be killed, or something of it can't be removed.
pub fn delete(context: &Context, id: &ContainerId, force: bool) -> Result<(), Error> {
    let store = context.store()?;
    store.sweep();
    match delete_known(context, &store, id, force) {
        // Its VM may run all the same.
        Err(Error::Store(StoreError::Missing(_) | StoreError::Damaged { .. })) if force => {
            damaged::delete(&store, id)
        }
        result => result,
    }
}

fn delete_known(
    context: &Context,
    store: &Store,
    id: &ContainerId,
    force: bool,
) -> Result<(), Error> {
    let mut dir = store.find(id)?;
    if force {
        // First the process, then the lock: a `create` that holds the lock waits for the process, and
        // cleans up after it.
        end(&dir.load()?)?;
        dir.lock_by_force()?;
    } else {
        dir.lock()?;
    }
    let state = dir.load()?;
    if state.status() == Status::Running
        && !force
        && let Some(process) = state.process()
    {
        // What is about to be refused has a moment for its end: with runc the process of a container and
        // its end are the host's own, here a guest has to tell.
        let _ = process.wait(NEWS_TIMEOUT);
    }
    match state.status() {
        // As in runc: a container that was never started needs no force.
        Status::Stopped | Status::Created => end(&state)?,
        Status::Creating | Status::Running | Status::Paused if force => end(&state)?,
        status => {
            let (verb, id) = (Verb::Delete, id.clone());
            return Err(Error::WrongState(WrongState { verb, id, status }));
        }
    }
    destroy(context, dir, &state, force)
}

/// Removes what is left of a container that has stopped and is locked: its cgroup, or its part of another's sandbox,
/// and its folder; and runs the `poststop` hooks, which may find nothing of it.
///
/// # Errors
/// When that can't be removed: its folder stays then, so that it isn't forgotten. Or when the folder can't be.
fn destroy(context: &Context, dir: ContainerDir, state: &State, force: bool) -> Result<(), Error> {
    leave(&dir, state, force)?;
    follower::end(state.own_sandbox().and_then(|own| own.follower))?;
    disconnect_interfaces(state.own_network(), &dir.own_sandbox())?;
    remove_cgroup(state)?;
    let hooks = match dir.load_config() {
        Ok(config) => Hooks::of(&config),
        // Cut off before it was written.
        Err(StoreError::Missing(_)) => Hooks::default(),
        Err(e) => {
            log::warn!("no poststop hook is run: {}", chain(&e));
            Hooks::default()
        }
    };
    dir.remove()?;
    match for_hook(state, Status::Stopped) {
        Ok(state) => hooks.run_poststop(&state),
        Err(e) => log::warn!("no poststop hook is run: {}", chain(&e)),
    }
    // What the container could use, the others of its sandbox don't need.
    let joined = state.container.joined.as_ref();
    if let Some(joined) = joined.filter(|joined| joined.vmm.runs_container())
        && let Err(e) = vm_memory::fit(context, &joined.sandbox, joined.vmm, None)
    {
        log::debug!("the VM's memory stays as it is: {}", chain(&e));
    }
    Ok(())
}

/// Removes the host's cgroup that was made for the process of a container that has stopped.
///
/// # Errors
/// When it can't be removed.
pub(super) fn remove_cgroup(state: &State) -> Result<(), Error> {
    if let Some(cgroup) = state.cgroup_of_process() {
        // A process that the state doesn't name yet ends by itself, soon.
        cgroup.remove(state.process().is_some())?;
    }
    Ok(())
}

/// Removes what is left of a container that has stopped and is locked, where another error is what the user is to learn.
pub fn undo(context: &Context, dir: ContainerDir, state: &State) {
    if let Err(e) = destroy(context, dir, state, true) {
        log::warn!("{}", chain(&e));
    }
}

/// Takes a container whose process has ended out of the sandbox of another one: from its agent, and from the shares,
/// whatever the agent says. A sandbox that has ended, or begins with this container, has nothing of it to take out.
///
/// # Errors
/// When the shares can't be removed. Without `force`, when the agent doesn't do it, though its VM runs.
pub(super) fn leave(dir: &ContainerDir, state: &State, force: bool) -> Result<(), Error> {
    let joined = state.container.joined.as_ref();
    // Not by what the VM process says of itself: its shares are taken from it for as long as it lives.
    let Some(joined) = joined.filter(|joined| joined.vmm.is_alive()) else {
        return Ok(());
    };
    let answer = ask_aside(dir, state, |agent, id| agent.ask(|agent| agent.delete(id)));
    let limit = match force || !joined.vmm.runs_container() {
        true => AGENT_TIMEOUT,
        false => Duration::MAX,
    };
    let deleted = answer.recv_timeout(limit);
    remove_shares(joined.vmm, &joined.folder)?;
    let why = match deleted {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(e)) if e.is_not_found() => return Ok(()),
        _ if !joined.vmm.runs_container() => return Ok(()),
        Ok(Err(e)) if !force => return Err(e),
        Ok(Err(e)) => chain(&e),
        Err(_) => format!("no answer within {} s", AGENT_TIMEOUT.as_secs()),
    };
    log::warn!(
        "the guest may still run container {}, without its shares: {why}",
        dir.id()
    );
    Ok(())
}

/// Waits for the end of the process of a container that has ended, so that no output of it is lost;
/// kills it if that takes too long, and one whose container runs at once.
fn end(state: &State) -> Result<(), Error> {
    match state.process() {
        Some(process)
            if state.status() == Status::Stopped && process.wait(OUTPUT_TIMEOUT).is_ok() =>
        {
            Ok(())
        }
        _ => kill_container(state),
    }
}

/// Kills the process of the host that stands for a container, its VM's or a stand-in, and waits until it is gone.
///
/// # Errors
/// When it doesn't die.
pub(super) fn kill_container(state: &State) -> Result<(), Error> {
    match state.process() {
        Some(process) => kill_process(process, state.own_cgroup()),
        None => Ok(()),
    }
}

/// Kills a container's process, which is in that cgroup, and waits until it is gone.
///
/// # Errors
/// When it doesn't die.
pub(super) fn kill_process(process: ProcessId, cgroup: Option<&HostCgroup>) -> Result<(), Error> {
    if let Some(cgroup) = cgroup {
        cgroup.lift_cpu_limits();
    }
    (process.kill(KILL_TIMEOUT))
        .map_err(|e| SandboxError::host("see the container's process die")(e).into())
}
