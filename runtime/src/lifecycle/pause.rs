//! Suspending all processes of a container, and resuming them.
//!
//! The state says `paused` before the guest does, and until after it has resumed: whatever cuts the
//! verb off in between, `resume` sets it right.

use super::{Context, Error, Verb, connect};
use crate::sandbox::BlockingAgent;
use crate::store::Status;
use crate::types::ContainerId;

/// Suspends all processes of a container.
///
/// # Errors
/// When it isn't created or running.
pub fn pause(context: &Context, id: &ContainerId) -> Result<(), Error> {
    let allowed = [Status::Created, Status::Running];
    let (dir, mut state) = context.lock(id, Verb::Pause, &allowed)?;
    let sandbox = dir.sandbox_of(&state.container)?;
    state.container.paused = true;
    dir.save(&state.container)?;
    let paused =
        BlockingAgent::connect(&sandbox).and_then(|agent| agent.ask(|agent| agent.pause(id)));
    // Without an answer they may be suspended: then the state says so, for `resume`.
    if paused.as_ref().is_err_and(|e| !e.is_unknown()) {
        state.container.paused = false;
        dir.save(&state.container)?;
    }
    Ok(paused?)
}

/// Resumes all processes of a container.
///
/// # Errors
/// When it isn't paused.
pub fn resume(context: &Context, id: &ContainerId) -> Result<(), Error> {
    let (dir, mut state) = context.lock(id, Verb::Resume, &[Status::Paused])?;
    connect(&dir, &state)?.ask(|agent| agent.resume(id))?;
    state.container.paused = false;
    Ok(dir.save(&state.container)?)
}
