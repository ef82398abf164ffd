//! `hull list`: all containers under `--root`.

use std::process::ExitCode;

use clap::ValueEnum;
use hull_runtime::lifecycle::{self, Context, OciState};

use super::table::table;
use super::{Error, output};

/// `hull list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// The form of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

const HEAD: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];

/// Prints the list.
///
/// # Errors
/// When `--root` can't be read.
pub fn run(context: &Context, args: &List) -> Result<ExitCode, Error> {
    let states = lifecycle::list(context)?;
    match (args.quiet, args.format) {
        (true, _) => {
            let lines = states.iter().map(|state| format!("{}\n", state.id));
            output::text(lines.collect::<String>())?;
        }
        (false, Format::Json) => output::json_line(&states)?,
        (false, Format::Table) => {
            let rows: Vec<_> = states.iter().map(row).collect();
            output::text(table(HEAD.map(str::to_owned), &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(state: &OciState) -> [String; 6] {
    [
        state.id.clone(),
        state.pid.to_string(),
        state.status.clone(),
        state.bundle.display().to_string(),
        state.created.clone(),
        state.owner.clone(),
    ]
}
