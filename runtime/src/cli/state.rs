//! `hull state`: a container's state, as runtime.md ("State") has it.

use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context};

use super::{Error, output};

/// `hull state`.
#[derive(Debug, clap::Args)]
pub struct State {
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Prints a container's state as JSON.
///
/// # Errors
/// When there is no such container.
pub fn run(context: &Context, args: &State) -> Result<ExitCode, Error> {
    output::json(&lifecycle::state(context, &args.id.parse()?)?)?;
    Ok(ExitCode::SUCCESS)
}
