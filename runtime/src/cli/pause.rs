//! `hull pause` and `hull resume`: suspend all processes of a container, and resume them.

use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context};

use super::Error;

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
pub fn pause(context: &Context, args: &Pause) -> Result<ExitCode, Error> {
    lifecycle::pause(context, &args.id.parse()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Resumes a container.
///
/// # Errors
/// When it isn't paused.
pub fn resume(context: &Context, args: &Resume) -> Result<ExitCode, Error> {
    lifecycle::resume(context, &args.id.parse()?)?;
    Ok(ExitCode::SUCCESS)
}
