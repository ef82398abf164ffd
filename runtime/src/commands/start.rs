//! `hull start`: let a created container's process go.

use std::process::ExitCode;

use super::{delete, notify, state::for_hook};
use crate::cli::Global;
use crate::container::{
    Call, ContainerDir, ContainerError, Hooks, Phase, Stage, State, Status, Store,
};
use crate::error::{Error, chain};
use crate::sandbox::Agent;

/// `hull start`.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Starts a created container.
///
/// # Errors
/// When it is in another state.
pub fn run(global: &Global, args: &Start) -> Result<ExitCode, Error> {
    let mut dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    dir.lock()?;
    let mut state = dir.load()?;
    match state.status() {
        Status::Created => {}
        status => {
            let id = state.id;
            return Err(ContainerError::WrongState {
                verb: "start",
                id,
                status,
            }
            .into());
        }
    }
    let agent = Agent::connect(&dir).map_err(crate::sandbox::SandboxError::from)?;
    start(&dir, &mut state, &agent)?;
    report_ready(dir, &state, &agent);
    Ok(ExitCode::SUCCESS)
}

/// What `start` does to a container that is created and locked, for `run` as well.
///
/// # Errors
/// When the agent refuses: then the container is still created. When it doesn't answer: then it may run,
/// and counts as running, so that it is not started again. When a `poststart` hook fails: then it is
/// killed, as with runc.
pub fn start(dir: &ContainerDir, state: &mut State, agent: &Agent) -> Result<(), Error> {
    // Before the process runs: if it ends at once, the state must not say `created` ever after.
    state.phase = Phase::Running;
    dir.save(state)?;
    let started = agent.start(dir.id());
    if started.as_ref().is_err_and(|e| !e.is_unknown()) {
        state.phase = Phase::Created;
        dir.save(state)?;
    }
    started.map_err(Error::container_process)?;
    run_poststart_hooks(dir, state).inspect_err(|_| {
        if let Err(e) = delete::kill(state) {
            log::warn!("{}", chain(&e));
        }
    })
}

/// Where a service manager wants to know, waits until the container says that it is ready, and says so.
/// Meanwhile others may signal, exec and delete.
pub fn report_ready(mut dir: ContainerDir, state: &State, agent: &Agent) {
    dir.unlock();
    agent.block_on(notify::relay(agent, dir.id(), state.pid().unsigned_abs()));
}

fn run_poststart_hooks(dir: &ContainerDir, state: &State) -> Result<(), Error> {
    let hooks = Hooks::of(&dir.load_config()?);
    let call = Call {
        state: &for_hook(state, Status::Running)?,
        ..Call::default()
    };
    hooks.run(Stage::Poststart, call)?;
    Ok(())
}
