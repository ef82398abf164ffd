//! `hull delete`: remove what a container has left on the host.

use std::process::ExitCode;
use std::time::Duration;

use super::damaged;
use super::state::for_hook;
use crate::cli::Global;
use crate::container::{ContainerDir, ContainerError, ContainerId, Hooks, State, Status, Store};
use crate::error::{Error, chain};
use crate::sandbox::SandboxError;

/// How long a killed VMM process may take to go: its memory has to be given back.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the VMM process of a container that has ended may take to write the container's output out.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the news that a container has ended may be on its way from the guest, on a busy host.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// `hull delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Kill the container first if it runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Deletes a container.
///
/// # Errors
/// When it runs and may not be killed.
pub fn run(global: &Global, args: &Delete) -> Result<ExitCode, Error> {
    let store = Store::open(&global.root)?;
    store.sweep();
    let id = args.id.parse()?;
    match delete(&store, &id, args.force) {
        // Its VM may run all the same.
        Err(Error::Container(ContainerError::Missing(_) | ContainerError::Damaged { .. }))
            if args.force =>
        {
            damaged::delete(&store, &id)?;
        }
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}

fn delete(store: &Store, id: &ContainerId, force: bool) -> Result<(), Error> {
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
        && let Some(vmm) = state.vmm
    {
        // What is about to be refused has a moment for its end: with runc the process of a container and
        // its end are the host's own, here a guest has to tell.
        let _ = vmm.wait(NEWS_TIMEOUT);
    }
    match state.status() {
        // As in runc: a container that was never started needs no force.
        Status::Stopped | Status::Created => end(&state)?,
        Status::Creating | Status::Running | Status::Paused if force => end(&state)?,
        status => {
            return Err(ContainerError::WrongState {
                verb: "delete",
                id: state.id,
                status,
            }
            .into());
        }
    }
    destroy(dir, &state)
}

/// Removes what is left of a container that has stopped and is locked, its cgroup and its folder, and
/// runs the `poststop` hooks, which may find nothing of it.
///
/// # Errors
/// When its cgroup can't be removed: its folder stays then, so that the cgroup isn't forgotten. Or when the folder
/// can't be.
pub fn destroy(dir: ContainerDir, state: &State) -> Result<(), Error> {
    if let Some(cgroup) = &state.cgroup {
        // A process that the state doesn't name yet ends by itself, soon.
        cgroup.remove(state.vmm.is_some())?;
    }
    let hooks = match dir.load_config() {
        Ok(config) => Hooks::of(&config),
        // Cut off before it was written.
        Err(ContainerError::Missing(_)) => Hooks::default(),
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
    Ok(())
}

/// As [`destroy`], where another error is what the user is to learn.
pub fn undo(dir: ContainerDir, state: &State) {
    if let Err(e) = destroy(dir, state) {
        log::warn!("{}", chain(&e));
    }
}

/// Waits for the end of the VMM process of a container that has ended, so that no output of it is lost;
/// kills it if that takes too long, and one whose container runs at once.
fn end(state: &State) -> Result<(), Error> {
    match state.vmm {
        Some(vmm) if state.status() == Status::Stopped && vmm.wait(OUTPUT_TIMEOUT).is_ok() => {
            Ok(())
        }
        _ => kill(state),
    }
}

/// Kills a container's VMM process and waits until it is gone.
///
/// # Errors
/// When it doesn't die.
pub fn kill(state: &State) -> Result<(), Error> {
    let Some(vmm) = state.vmm else { return Ok(()) };
    vmm.kill(KILL_TIMEOUT)
        .map_err(|e| SandboxError::host("see the VMM process die")(e).into())
}
