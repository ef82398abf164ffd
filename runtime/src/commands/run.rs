//! `hull run`: create, start, wait, delete.

use std::process::ExitCode;

use super::{create, delete, foreground, start};
use crate::cli::Global;
use crate::error::Error;

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
pub fn run(global: &Global, args: &Run) -> Result<ExitCode, Error> {
    let create::Created {
        mut dir,
        mut state,
        agent,
        mut vmm,
    } = create::create(global, &args.options, &args.id)?;
    if let Err(e) = start::start(&dir, &mut state, &agent) {
        let _ = vmm.kill();
        let _ = vmm.wait();
        delete::undo(dir, &state);
        return Err(e);
    }
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    // Others may signal, exec and delete while this waits.
    dir.unlock();
    let code = foreground::wait_for_vmm(&agent, dir.id(), &mut vmm)?;
    if !args.keep && dir.lock().is_ok() {
        delete::undo(dir, &state);
    }
    Ok(code)
}
