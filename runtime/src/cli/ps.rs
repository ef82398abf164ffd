//! `hull ps`: the processes of a container, as `ps -ef` would show them.
//!
//! There is no ps in the guest, and the host's can't look into it: the agent reads what is shown.
//!
//! Engines take the JSON for pids of the host: docker shows of the host's `ps` what has one of them (`docker top`),
//! and the guest's may be those of processes that have nothing to do with the container. So they get the host's.

use std::process::ExitCode;

use clap::ValueEnum;
use hull_runtime::lifecycle::{self, Context};
use hull_runtime::sandbox::ProcessInfo;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use super::table::table;
use super::{Error, output};

/// `hull ps`.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// The form of the list: a table, or the pids that are the container's on the host as a JSON array
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Options of ps(1): only -ef, which is the default
    #[arg(
        value_name = "PS-OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

const HEAD: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// Prints the list. A stopped container has no processes, on the host either, which is no error.
///
/// # Errors
/// When there is no such container.
pub fn run(context: &Context, args: &Ps) -> Result<ExitCode, Error> {
    if let Some(option) = args.options.iter().find(|option| *option != "-ef") {
        let text = format!("ps {option}: only -ef is supported, as there is no ps in the guest");
        return Err(Error::Usage(text));
    }
    let id = args.id.parse()?;
    match args.format {
        Format::Json => output::json_line(&lifecycle::host_pids(context, &id)?)?,
        Format::Table => {
            let processes = lifecycle::processes(context, &id)?;
            let now = OffsetDateTime::now_utc();
            let rows: Vec<_> = processes.iter().map(|process| row(process, now)).collect();
            output::text(table(HEAD.map(str::to_owned), &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(process: &ProcessInfo, now: OffsetDateTime) -> [String; 8] {
    let terminal = match process.terminal.as_str() {
        "" => "?",
        name => name,
    };
    // Other names are the container's business, whose files aren't read here.
    let user = match process.uid {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    };
    [
        user,
        process.pid.to_string(),
        process.parent.to_string(),
        utilization(process).to_string(),
        start_time(process, now),
        terminal.to_owned(),
        cpu_time(process),
        process.command.clone(),
    ]
}

/// The share of its life that a process has spent on a CPU, in percent.
fn utilization(process: &ProcessInfo) -> u64 {
    (process.cpu_ms.saturating_mul(100) / process.age_ms.max(1)).min(99)
}

/// The time of day, or for what is older than a day, the date.
fn start_time(process: &ProcessInfo, now: OffsetDateTime) -> String {
    let age = i64::try_from(process.age_ms).unwrap_or(i64::MAX);
    let Some(start) = now.checked_sub(Duration::milliseconds(age)) else {
        return "?".to_owned();
    };
    let format = if start.date() == now.date() {
        format_description!("[hour]:[minute]")
    } else {
        format_description!("[month repr:short][day]")
    };
    start.format(format).unwrap_or_default()
}

fn cpu_time(process: &ProcessInfo) -> String {
    let seconds = process.cpu_ms / 1000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn process(age_ms: u64) -> ProcessInfo {
        ProcessInfo {
            pid: 7,
            parent: 1,
            uid: 0,
            cpu_ms: 3_661_000,
            age_ms,
            terminal: String::new(),
            command: "sleep 1".to_owned(),
        }
    }

    #[test]
    fn a_row_looks_as_in_ps() {
        let now = datetime!(2026-01-02 03:04:05 UTC);
        let cells = row(&process(7_200_000), now);
        assert_eq!(
            cells,
            ["root", "7", "1", "50", "01:04", "?", "01:01:01", "sleep 1"]
        );
        assert_eq!(start_time(&process(86_400_000), now), "Jan01");
    }

    #[test]
    fn no_age_is_too_great() {
        let now = datetime!(2026-01-02 03:04:05 UTC);
        assert_eq!(start_time(&process(u64::MAX), now), "?");
        assert_eq!(utilization(&process(0)), 99);
    }
}
