//! `hull checkpoint` and `hull restore`: known, so that who calls them learns why they fail.

use std::process::ExitCode;

use super::Error;

/// `hull checkpoint` or `hull restore`, whatever its options.
#[derive(Debug, clap::Args)]
pub struct NotYet {
    /// Those of runc
    #[arg(
        value_name = "ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<String>,
}

/// Refuses, as runc does without CRIU.
///
/// # Errors
/// Always.
pub fn run(verb: &str, args: &NotYet) -> Result<ExitCode, Error> {
    log::debug!("{verb} {}", args.arguments.join(" "));
    let text = format!("{verb}: hull does not save and restore containers yet");
    Err(Error::Usage(text))
}
