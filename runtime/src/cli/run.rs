//! `hull run`: create, start, wait, delete.

use std::process::ExitCode;

use hull_runtime::chain::chain;
use hull_runtime::lifecycle::{self, Context, Created};
use hull_runtime::store::StoreError;

use super::terminal::{Relay, RunningRelay};
use super::{Error, create, foreground, start};

/// `hull run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    options: create::Options,
    /// Do not wait for the container's end
    #[arg(short, long)]
    detach: bool,
    /// Keep the container's state after its end
    #[arg(long)]
    keep: bool,
    /// Accepted: hull never makes itself a subreaper
    #[arg(long)]
    no_subreaper: bool,
    /// The container's id: unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Creates and starts a container; without `--detach`, exits as it exits and deletes it.
///
/// # Errors
/// Every failure undoes what was made.
pub fn run(context: &Context, args: &Run) -> Result<ExitCode, Error> {
    let (created, relay) = create::create(context, &args.options, &args.id, args.detach)?;
    let Created {
        mut dir,
        mut state,
        agent,
        mut process,
    } = created;
    let started = start_relay(relay).and_then(|relay| {
        lifecycle::start_created(context, &dir, &mut state, &agent)?;
        Ok(relay)
    });
    let relay = match started {
        Ok(relay) => relay,
        Err(e) => {
            let _ = process.kill();
            let _ = process.wait();
            lifecycle::undo(context, dir, &state);
            return Err(e);
        }
    };
    if args.detach {
        start::report_ready(dir, &state, &agent);
        return Ok(ExitCode::SUCCESS);
    }
    // Others may signal, exec and delete while this waits.
    dir.unlock();
    let sizes = relay.as_ref().map(RunningRelay::sizes);
    let follower = lifecycle::follower(&state);
    let code = foreground::wait_for(&agent, dir.id(), &mut process, sizes, follower)?;
    if let Some(relay) = relay {
        relay.finish();
    }
    if !args.keep {
        match dir.lock() {
            Ok(()) => lifecycle::undo(context, dir, &state),
            // Somebody else was faster.
            Err(StoreError::Missing(_)) => {}
            Err(e) => log::warn!("{}", chain(&e)),
        }
    }
    Ok(code)
}

/// The user's terminal becomes the container's before its process can ask for anything.
fn start_relay(relay: Option<Relay>) -> Result<Option<RunningRelay>, Error> {
    Ok(relay.map(Relay::start).transpose()?)
}
