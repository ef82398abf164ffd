//! `hull check`: what this host has and lacks for running hull, and what to do about it.
//!
//! [`host`] does the looking, one function a line of the report; here is how it is told.

mod host;

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use clap::ValueEnum;
use hull_runtime::lifecycle::Context;
use serde::Serialize;

use super::colour::{Colour, Palette};
use super::{Error, output};

/// `hull check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The form of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Nothing to do.
    Ok,
    /// hull runs, with less than it could have.
    Warning,
    /// hull does not run a container here.
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    status: Status,
    /// What was found, and what it means.
    found: String,
    /// What to do; nothing where nothing is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self {
            name,
            status: Status::Warning,
            found: found.into(),
            remedy,
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Missing,
            ..Self::warning(name, found, remedy)
        }
    }
}

/// The whole report, as JSON has it.
#[derive(Serialize)]
struct Report {
    /// Whether hull can run containers here.
    usable: bool,
    checks: Vec<Finding>,
}

/// Prints the report; the exit code is 1 where hull can't run containers.
///
/// # Errors
/// When standard output is closed.
pub fn run(context: &Context, args: &Check) -> Result<ExitCode, Error> {
    let checks = host::all(context);
    let usable = checks
        .iter()
        .all(|finding| finding.status != Status::Missing);
    match args.format {
        Format::Json => output::json(&Report { usable, checks })?,
        Format::Table => output::text(table(&checks, Palette::of(&io::stdout())))?,
    }
    Ok(if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One line a finding, its remedy below it, and the verdict at the end.
fn table(checks: &[Finding], palette: Palette) -> String {
    let width = checks
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in checks {
        let (word, colour) = match finding.status {
            Status::Ok => ("ok     ", Colour::Green),
            Status::Warning => ("warning", Colour::Yellow),
            Status::Missing => ("missing", Colour::Red),
        };
        let word = palette.paint(colour, word);
        let _ = writeln!(text, "{word}  {:width$}  {}", finding.name, finding.found);
        if let Some(remedy) = &finding.remedy {
            let indent = "warning".len() + 2 + width + 2;
            let _ = writeln!(text, "{:indent$}to do: {remedy}", "");
        }
    }
    let missing: Vec<_> = checks
        .iter()
        .filter(|finding| finding.status == Status::Missing)
        .map(|finding| finding.name)
        .collect();
    let _ = match missing.as_slice() {
        [] => writeln!(text, "\nhull can run containers on this host."),
        names => {
            writeln!(
                text,
                "\nhull cannot run containers on this host: {}.",
                names.join(", ")
            )
        }
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_ends_the_report() {
        let checks = [
            Finding::ok("a", "fine"),
            Finding::missing("long", "gone", "get it"),
        ];
        assert_eq!(
            table(&checks, Palette { colourful: false }),
            "ok       a     fine\n\
             missing  long  gone\n               to do: get it\n\n\
             hull cannot run containers on this host: long.\n"
        );
    }

    #[test]
    fn a_warning_does_not_forbid() {
        let checks = [Finding::warning("a", "slow", "speed it up")];
        assert!(
            table(&checks, Palette { colourful: true })
                .ends_with("hull can run containers on this host.\n")
        );
    }
}
