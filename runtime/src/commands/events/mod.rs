//! `hull events`: a container's statistics at an interval, and each time that it runs out of memory;
//! one JSON object a line, as runc has them.

mod duration;
mod stats;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::Global;
use crate::container::{ContainerError, ContainerId, Status, Store};
use crate::error::Error;
use crate::sandbox::{Agent, AgentError, SandboxError, Stats};

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
pub fn run(global: &Global, args: &Events) -> Result<ExitCode, Error> {
    if args.interval.is_zero() {
        let text = "--interval: duration interval must be greater than 0";
        return Err(Error::Usage(text.to_owned()));
    }
    let dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    let status = dir.load()?.status();
    if matches!(status, Status::Creating | Status::Stopped) {
        let (verb, id) = ("watch", dir.id().clone());
        return Err(ContainerError::WrongState { verb, id, status }.into());
    }
    let agent = Agent::connect(&dir).map_err(SandboxError::from)?;
    let ended = if args.stats {
        agent.block_on(async {
            print_stats(
                dir.id(),
                &agent.stats(dir.id()).await.map_err(SandboxError::from)?,
            )
        })
    } else {
        agent.block_on(watch(&agent, dir.id(), args.interval))
    };
    match ended {
        // It ended while we watched.
        Err(Error::Sandbox(SandboxError::Agent(AgentError::Lost(_) | AgentError::NotFound(_))))
            if !args.stats => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(agent: &Agent, id: &ContainerId, interval: Duration) -> Result<(), Error> {
    // What was before is not news.
    let mut known = agent.stats(id).await.map_err(SandboxError::from)?.oom_kills;
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    let mut oom = Box::pin(agent.wait_oom(id, known));
    loop {
        tokio::select! {
            kills = &mut oom => {
                known = kills.map_err(SandboxError::from)?;
                print(id, "oom", None)?;
                oom = Box::pin(agent.wait_oom(id, known));
            }
            _ = ticks.tick() => {
                print_stats(id, &agent.stats(id).await.map_err(SandboxError::from)?)?;
            }
        }
    }
}

fn print_stats(id: &ContainerId, stats: &Stats) -> Result<(), Error> {
    print(id, "stats", Some(stats::to_json(stats)))
}

fn print(id: &ContainerId, kind: &str, data: Option<Value>) -> Result<(), Error> {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{event}")?;
    out.flush()?;
    Ok(())
}
