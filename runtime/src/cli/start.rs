//! `hull start`: let a created container's process go.

use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context, Started};
use hull_runtime::sandbox::BlockingAgent;
use hull_runtime::store::{ContainerDir, State};

use super::{Error, notify};

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
pub fn run(context: &Context, args: &Start) -> Result<ExitCode, Error> {
    let Started { dir, state, agent } = lifecycle::start(context, &args.id.parse()?)?;
    report_ready(dir, &state, &agent);
    Ok(ExitCode::SUCCESS)
}

/// Where a service manager wants to know, waits until the container says that it is ready, and says so.
/// Meanwhile others may signal, exec and delete.
pub fn report_ready(mut dir: ContainerDir, state: &State, agent: &BlockingAgent) {
    dir.unlock();
    agent.ask(|agent| notify::relay(agent, dir.id(), state.pid().unsigned_abs()));
}
