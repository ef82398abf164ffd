//! Letting a created container's process go.

use oci_spec::runtime::Spec;

use super::delete::kill_container;
use super::follower::follow;
use super::hooks::{HookContext, Hooks, Stage};
use super::network::connect_new_interfaces;
use super::resolver::relay_resolver;
use super::state::for_hook;
use super::{Context, Error, Verb, connect};
use crate::chain::chain;
use crate::sandbox::BlockingAgent;
use crate::store::{ContainerDir, Phase, State, Status};
use crate::types::ContainerId;

/// A container that was started.
pub struct Started {
    /// Its folder, still locked.
    pub dir: ContainerDir,
    /// Its state, as it is on disk.
    pub state: State,
    /// The connection to its agent.
    pub agent: BlockingAgent,
}

/// Starts a created container.
///
/// # Errors
/// When it is in another state; otherwise as [`start_created`].
pub fn start(context: &Context, id: &ContainerId) -> Result<Started, Error> {
    let (dir, mut state) = context.lock(id, Verb::Start, &[Status::Created])?;
    let agent = connect(&dir, &state)?;
    start_created(context, &dir, &mut state, &agent)?;
    Ok(Started { dir, state, agent })
}

/// Starts a container that is created and locked.
///
/// # Errors
/// When the agent refuses: then the container is still created. When it doesn't answer: then it may run,
/// and counts as running, so that it is not started again. When a `poststart` hook fails: then it is
/// killed, as with runc.
pub fn start_created(
    context: &Context,
    dir: &ContainerDir,
    state: &mut State,
    agent: &BlockingAgent,
) -> Result<(), Error> {
    connect_new_interfaces(dir, state, agent)?;
    if state.own_network().is_some() {
        relay_resolver(dir.id(), &dir.own_sandbox(), &mut state.sandbox, agent)?;
    }
    let spec = dir.load_config()?;
    follow(context, dir, state, &spec);
    // Before the process runs: if it ends at once, the state must not say `created` ever after.
    state.container.phase = Phase::Running;
    dir.save(&state.container)?;
    let started = agent.ask(|agent| agent.start(dir.id()));
    if started.as_ref().is_err_and(|e| !e.is_unknown()) {
        state.container.phase = Phase::Created;
        dir.save(&state.container)?;
    }
    started.map_err(Error::ContainerProcess)?;
    run_poststart_hooks(&spec, state).inspect_err(|_| {
        if let Err(e) = kill_container(state) {
            log::warn!("{}", chain(&e));
        }
    })
}

fn run_poststart_hooks(spec: &Spec, state: &State) -> Result<(), Error> {
    let hooks = Hooks::of(spec);
    let call = HookContext {
        state: &for_hook(state, Status::Running)?,
        ..HookContext::default()
    };
    hooks.run(Stage::Poststart, call)?;
    Ok(())
}
