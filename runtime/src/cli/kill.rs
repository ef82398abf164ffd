//! `hull kill`: send a signal to a container's process.

use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context};

use super::{Error, signal};

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
pub fn run(context: &Context, args: &Kill) -> Result<ExitCode, Error> {
    let signal = signal::parse(&args.signal)?;
    lifecycle::kill(context, &args.id.parse()?, signal, args.all)?;
    Ok(ExitCode::SUCCESS)
}
