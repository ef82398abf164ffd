//! `hull delete`: remove what a container has left on the host.

use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context};

use super::Error;

/// `hull delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Kill the container first if it runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Deletes a container.
///
/// # Errors
/// When it runs and may not be killed.
pub fn run(context: &Context, args: &Delete) -> Result<ExitCode, Error> {
    lifecycle::delete(context, &args.id.parse()?, args.force)?;
    Ok(ExitCode::SUCCESS)
}
