//! Measures OCI runtimes side by side, on the same bundle, in the same run: how long they take, and
//! what an idle sandbox costs. `tests/bench/run` builds this and starts it on the KVM host.
//!
//! It is a compiled program because on an emulated host an interpreter's own time would drown what is
//! measured. It knows runtimes by their command line only.

mod bundle;
mod cases;
mod memory;
mod process;
mod report;
mod runtime;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use bundle::Bundle;
use cases::Bundles;
use report::Report;
use runtime::Runtime;

/// Measures OCI runtimes side by side.
#[derive(Debug, Parser)]
struct Cli {
    /// A runtime to measure, with options to give it before each verb
    #[arg(long = "runtime", value_name = "NAME=PATH [OPTION…]", required = true)]
    runtimes: Vec<Runtime>,
    /// The root file system of the containers: needs /bin/true and /bin/sleep
    #[arg(long, value_name = "DIR")]
    rootfs: PathBuf,
    /// Where bundles and the runtimes' state are put: best a tmpfs
    #[arg(long, value_name = "DIR", default_value = "/tmp/hull-bench")]
    work: PathBuf,
    /// Measure this case alone; may be given several times
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// How often each case is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// What the clock counts, for the report
    #[arg(long, value_name = "TEXT", default_value = "wall")]
    clock: String,
    /// What the host is, for the report
    #[arg(long, value_name = "TEXT", default_value = "")]
    host: String,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    ensure!(cli.repeats > 0, "--repeats must be at least 1");
    let rootfs = bundle::copy_rootfs(&cli.rootfs, &cli.work)?;
    let briefly = Bundle::write(&cli.work.join("briefly"), &rootfs, &["/bin/true"])?;
    let docker = Bundle::write_as_docker(&cli.work.join("docker"), &rootfs, &["/bin/true"])?;
    let idle = Bundle::write(&cli.work.join("idle"), &rootfs, &["/bin/sleep", "3600"])?;

    let mut report = Report::new(&cli.clock, &cli.host);
    for runtime in &cli.runtimes {
        let runtime = runtime.with_root(cli.work.join("state"))?;
        eprintln!("bench: measuring {}", runtime.name);
        // One runtime's failure is a gap in the table, said, and no reason to lose the others' figures.
        let bundles = Bundles {
            briefly: &briefly,
            docker: &docker,
            idle: &idle,
        };
        if let Err(e) = cases::measure(&runtime, bundles, &cli.only, cli.repeats, &mut report) {
            eprintln!("bench: {}: {e:#}", runtime.name);
        }
    }
    if let Some(path) = &cli.json {
        std::fs::write(path, report.to_json()?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    print!("{report}");
    ensure!(!report.is_empty(), "nothing could be measured");
    Ok(())
}
