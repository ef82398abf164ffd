//! `hull config`: the configuration in force.

use std::process::ExitCode;

use clap::ValueEnum;
use hull_runtime::lifecycle::Context;

use super::{Error, output};

/// `hull config`.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// The form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "toml")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A configuration's file, with what each key means
    Toml,
    Json,
}

/// Prints it.
///
/// # Errors
/// When the configuration can't be read.
pub fn run(context: &Context, args: &Config) -> Result<ExitCode, Error> {
    let config = context.settings.load()?;
    match args.format {
        Format::Toml => output::text(config.to_string())?,
        Format::Json => output::json(&config)?,
    }
    Ok(ExitCode::SUCCESS)
}
