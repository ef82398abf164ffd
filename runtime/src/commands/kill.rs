//! `hull kill`: send a signal to a container's process.

use std::process::ExitCode;

use super::signal;
use crate::cli::Global;
use crate::container::{ContainerError, Status, Store};
use crate::error::Error;
use crate::sandbox::{Agent, AgentError, SandboxError};

/// `hull kill`.
#[derive(Debug, clap::Args)]
pub struct Kill {
    /// To every process of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// A name or a number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
}

/// Sends the signal.
///
/// # Errors
/// When the container doesn't run. With `--all` a stopped one is no error, as in runc.
pub fn run(global: &Global, args: &Kill) -> Result<ExitCode, Error> {
    let signal = signal::parse(&args.signal)?;
    let dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    let state = dir.load()?;
    let not_running = |id| -> Result<ExitCode, Error> {
        if args.all {
            return Ok(ExitCode::SUCCESS);
        }
        let status = Status::Stopped;
        Err(ContainerError::WrongState {
            verb: "signal",
            id,
            status,
        }
        .into())
    };
    if state.status() == Status::Stopped {
        return not_running(state.id);
    }
    if signal == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let sent = Agent::connect(&dir).and_then(|agent| agent.signal(dir.id(), signal, args.all));
    match sent {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(AgentError::NotFound(_)) => not_running(state.id),
        // It ended while we were asking.
        Err(_) if dir.load()?.status() == Status::Stopped => not_running(state.id),
        Err(e) => Err(SandboxError::from(e).into()),
    }
}
