//! Measures OCI runtimes side by side, on the same bundle, in the same run: how long they take, and
//! what an idle sandbox costs. `tests/bench/run` builds this, and has each case of each runtime measured
//! on a KVM host of its own; their results become one report.
//!
//! It is a compiled program because on an emulated host an interpreter's own time would drown what is
//! measured. It knows runtimes by their command line only.

mod bundle;
mod cases;
mod engine;
mod memory;
mod network;
mod process;
mod report;
mod runtime;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser};

use cases::Case;
use report::Report;
use runtime::Runtime;

/// Measures OCI runtimes side by side.
#[derive(Debug, Parser)]
enum Cli {
    /// Measure one case of one runtime
    Measure(MeasureArgs),
    /// Join what was measured into a report, and print its table
    Report(ReportArgs),
    /// What `measure` runs in a container: do what the driver at this address says
    #[command(hide = true)]
    Peer { driver: SocketAddr },
}

#[derive(Debug, Args)]
struct MeasureArgs {
    /// The runtime, with options to give it before each verb
    #[arg(long, value_name = "NAME=PATH [OPTION…]")]
    runtime: Runtime,
    /// What is measured
    #[arg(long, value_enum)]
    case: Case,
    /// The root file system of the containers: needs /bin/true and /bin/sleep
    #[arg(long, value_name = "DIR")]
    rootfs: PathBuf,
    /// Where the bundle and the runtime's state are put: best a tmpfs
    #[arg(long, value_name = "DIR", default_value = "/tmp/hull-bench")]
    work: PathBuf,
    /// How often it is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Seconds, by the clock that measures, that no single command takes
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,
    /// Write what was measured to this file, once all of it is
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// What the clock counts
    #[arg(long, value_name = "TEXT", default_value = "wall")]
    clock: String,
    /// What the host is
    #[arg(long, value_name = "TEXT", default_value = "")]
    host: String,
    /// Write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    /// The files that `measure` has written
    #[arg(value_name = "FRAGMENT", required = true)]
    fragments: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Measure(args) => measure(&args),
        Cli::Report(args) => report(&args),
        Cli::Peer { driver } => network::run_peer(driver),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &MeasureArgs) -> Result<()> {
    ensure!(args.repeats > 0, "--repeats must be at least 1");
    let limit = Duration::from_secs(args.limit);
    let runtime = args.runtime.with(args.work.join("state"), limit)?;
    let measured = args
        .case
        .measure(&runtime, &args.rootfs, &args.work, args.repeats)?;
    report::write_fragment(&args.output, &measured)
}

fn report(args: &ReportArgs) -> Result<()> {
    let report = Report::join(&args.clock, &args.host, &args.fragments)?;
    report.write(&args.json)?;
    print!("{report}");
    Ok(())
}
