//! `hull events`: a container's statistics at an interval, and each time that it runs out of memory;
//! one JSON object a line, as runc has them.

mod duration;
mod stats;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cgroup::HostCgroup;
use crate::cli::Global;
use crate::container::{ContainerError, ContainerId, Status, Store};
use crate::error::Error;
use crate::sandbox::{Agent, AgentError, SandboxError, Stats};
use stats::VmStats;

/// The least time between two messages of a lack of memory. What happens in between, which may be the
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
pub fn run(global: &Global, args: &Events) -> Result<ExitCode, Error> {
    if args.interval.is_zero() {
        let text = "--interval: duration interval must be greater than 0";
        return Err(Error::Usage(text.to_owned()));
    }
    let dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    let state = dir.load()?;
    let status = state.status();
    if matches!(status, Status::Creating | Status::Stopped) {
        let (verb, id) = ("watch", dir.id().clone());
        return Err(ContainerError::WrongState { verb, id, status }.into());
    }
    let agent = Agent::connect(&dir).map_err(SandboxError::from)?;
    let watched = Watched {
        id: dir.id(),
        agent: &agent,
        cgroup: state.cgroup.as_ref().map(HostCgroup::directory),
    };
    let ended = if args.stats {
        agent.block_on(watched.print_stats())
    } else {
        agent.block_on(watched.watch(args.interval))
    };
    match ended {
        // It ended while we watched.
        Err(Error::Sandbox(SandboxError::Agent(AgentError::Lost(_) | AgentError::NotFound(_))))
            if !args.stats => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A container that is watched.
struct Watched<'a> {
    id: &'a ContainerId,
    agent: &'a Agent,
    /// The directory of its VM's cgroup.
    cgroup: Option<PathBuf>,
}

impl Watched<'_> {
    async fn watch(&self, interval: Duration) -> Result<(), Error> {
        // What was before is not news.
        let mut known = self.stats().await?.oom_kills;
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        let next = |known, pause| async move {
            tokio::time::sleep(pause).await;
            self.agent.wait_oom(self.id, known).await
        };
        let mut oom = Box::pin(next(known, Duration::ZERO));
        loop {
            tokio::select! {
                kills = &mut oom => {
                    known = kills.map_err(SandboxError::from)?;
                    print(self.id, "oom", None)?;
                    oom = Box::pin(next(known, OOM_PAUSE));
                }
                _ = ticks.tick() => self.print_stats().await?,
            }
        }
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let stats = self.agent.stats(self.id).await;
        Ok(stats.map_err(SandboxError::from)?)
    }

    async fn print_stats(&self) -> Result<(), Error> {
        let container = self.stats().await?;
        let vm = self.cgroup.as_deref().map(|directory| VmStats {
            cgroup: hull_cgroup::stats::read(directory).into(),
            io: hull_cgroup::stats::io(directory),
        });
        let data = stats::to_json(&container, vm.as_ref());
        print(self.id, "stats", Some(data))
    }
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
