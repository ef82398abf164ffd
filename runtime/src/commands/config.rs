//! `hull config`: the configuration in force.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;

use crate::cli::Global;
use crate::error::Error;

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
pub fn run(global: &Global, args: &Config) -> Result<ExitCode, Error> {
    let config = global.config()?;
    let mut out = io::stdout().lock();
    match args.format {
        Format::Toml => write!(out, "{config}")?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &config).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
