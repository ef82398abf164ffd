//! `hull events`: a container's statistics at an interval, and each time that it runs out of memory;
//! one JSON object a line, as runc has them.

mod duration;
mod stats;

use std::process::ExitCode;
use std::time::Duration;

use hull_runtime::lifecycle::{self, Context, Watched};
use hull_runtime::sandbox::{Agent, AgentError, SandboxError, Stats};
use hull_runtime::types::ContainerId;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Error, output};
use stats::VmStats;

/// The least time between two out-of-memory events. What happens in between, which may be the
/// doing of a guest that lies, comes as one.
const OOM_PAUSE: Duration = Duration::from_secs(1);

/// `hull events`.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// How often statistics are shown: a number with its unit, like 500ms or 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    interval: Duration,
    /// Show the statistics once
    #[arg(long)]
    stats: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Prints the events, until the container ends.
///
/// # Errors
/// When it doesn't run.
pub fn run(context: &Context, args: &Events) -> Result<ExitCode, Error> {
    if args.interval.is_zero() {
        let text = "--interval: duration interval must be greater than 0";
        return Err(Error::Usage(text.to_owned()));
    }
    let watched = lifecycle::watch(context, &args.id.parse()?)?;
    let ended = if args.stats {
        (watched.agent).ask(|agent| print_stats(agent, &watched))
    } else {
        (watched.agent).ask(|agent| follow(agent, &watched, args.interval))
    };
    match ended {
        // It ended while we watched.
        Err(Error::Lifecycle(lifecycle::Error::Sandbox(SandboxError::Agent(
            AgentError::Lost(_) | AgentError::NotFound(_),
        )))) if !args.stats => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints statistics at the interval, and each time that the container has run out of memory.
async fn follow(agent: &Agent, watched: &Watched, interval: Duration) -> Result<(), Error> {
    // What was before is not news.
    let mut known = stats(agent, watched).await?.oom_kills;
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    let next = |known, pause| async move {
        tokio::time::sleep(pause).await;
        agent.wait_oom(&watched.id, known).await
    };
    let mut oom = Box::pin(next(known, Duration::ZERO));
    // A sandbox's first container takes the agent with it, another one doesn't.
    let mut ended = Box::pin(agent.wait(&watched.id, "", false));
    loop {
        tokio::select! {
            end = &mut ended => return Ok(end.map(drop)?),
            kills = &mut oom => {
                known = kills?;
                print(&watched.id, "oom", None)?;
                oom = Box::pin(next(known, OOM_PAUSE));
            }
            _ = ticks.tick() => print_stats(agent, watched).await?,
        }
    }
}

async fn stats(agent: &Agent, watched: &Watched) -> Result<Stats, Error> {
    Ok(agent.stats(&watched.id).await?)
}

async fn print_stats(agent: &Agent, watched: &Watched) -> Result<(), Error> {
    let container = stats(agent, watched).await?;
    let vm = watched.cgroup.as_deref().map(|directory| VmStats {
        cgroup: hull_cgroup::stats::read(directory).into(),
        io: hull_cgroup::stats::io(directory),
    });
    let data = stats::to_json(&container, vm.as_ref());
    print(&watched.id, "stats", Some(data))
}

fn print(id: &ContainerId, kind: &str, data: Option<Value>) -> Result<(), Error> {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    output::json_line(&event)
}
