//! `hull pause` and `hull resume`: all processes of a container stand still, and go on.
//!
//! The state says `paused` before the guest does, and until after it has resumed: whatever cuts the
//! command off in between, `resume` sets it right.

use std::process::ExitCode;

use crate::cli::Global;
use crate::container::{ContainerDir, ContainerError, State, Status, Store};
use crate::error::Error;
use crate::sandbox::{Agent, SandboxError};

/// `hull pause`.
#[derive(Debug, clap::Args)]
pub struct Pause {
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// `hull resume`.
#[derive(Debug, clap::Args)]
pub struct Resume {
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Pauses a container.
///
/// # Errors
/// When it isn't created or running.
pub fn pause(global: &Global, args: &Pause) -> Result<ExitCode, Error> {
    let allowed = [Status::Created, Status::Running];
    let (dir, mut state) = find(global, &args.id, "pause", &allowed)?;
    state.paused = true;
    dir.save(&state)?;
    let paused = Agent::connect(&dir).and_then(|agent| agent.pause(dir.id()));
    // Without an answer they may stand still: then the state says so, for `resume`.
    if paused.as_ref().is_err_and(|e| !e.is_unknown()) {
        state.paused = false;
        dir.save(&state)?;
    }
    paused.map_err(SandboxError::from)?;
    Ok(ExitCode::SUCCESS)
}

/// Resumes a container.
///
/// # Errors
/// When it isn't paused.
pub fn resume(global: &Global, args: &Resume) -> Result<ExitCode, Error> {
    let (dir, mut state) = find(global, &args.id, "resume", &[Status::Paused])?;
    Agent::connect(&dir)
        .and_then(|agent| agent.resume(dir.id()))
        .map_err(SandboxError::from)?;
    state.paused = false;
    dir.save(&state)?;
    Ok(ExitCode::SUCCESS)
}

fn find(
    global: &Global,
    id: &str,
    verb: &'static str,
    allowed: &[Status],
) -> Result<(ContainerDir, State), Error> {
    let mut dir = Store::open(&global.root)?.find(&id.parse()?)?;
    dir.lock()?;
    let state = dir.load()?;
    let status = state.status();
    if allowed.contains(&status) {
        return Ok((dir, state));
    }
    let id = state.id;
    Err(ContainerError::WrongState { verb, id, status }.into())
}
