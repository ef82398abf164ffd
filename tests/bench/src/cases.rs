//! What is measured, in the order in which the report shows it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::bundle::Bundle;
use crate::memory::{self, Footprint};
use crate::process::Handle;
use crate::report::{Measurement, Report, Unit};
use crate::runtime::Runtime;

const TRUE: &str = "/bin/true";

/// What the containers are made from.
#[derive(Clone, Copy, Debug)]
pub struct Bundles<'a> {
    /// Ends at once.
    pub briefly: &'a Bundle,
    /// The same as docker would write it.
    pub docker: &'a Bundle,
    /// Does nothing for ever.
    pub idle: &'a Bundle,
}

/// Measures every case with `runtime`, or those that `only` names. The first failure ends it; what was
/// measured until then stays in `report`. Containers are removed either way.
pub fn measure(
    runtime: &Runtime,
    bundles: Bundles<'_>,
    only: &[String],
    repeats: usize,
    report: &mut Report,
) -> Result<()> {
    let wanted = |case: &str| only.is_empty() || only.iter().any(|name| name == case);
    if wanted("run-true") {
        run_true(runtime, bundles.briefly, repeats, report).context("run-true")?;
    }
    if wanted("run-docker-bundle") {
        run_as_docker(runtime, bundles.docker, repeats, report).context("run-docker-bundle")?;
    }
    if wanted("guest-ready") {
        guest_ready(runtime, bundles.briefly, repeats, report).context("guest-ready")?;
    }
    if wanted("exec-true") {
        idle(runtime, bundles.idle, repeats, report)?;
    }
    if wanted("install") {
        let size = std::fs::metadata(&runtime.path)
            .with_context(|| format!("look at {}", runtime.path.display()))?
            .len();
        report.add(Measurement::once(
            "install",
            &runtime.name,
            Unit::Bytes,
            size,
        ));
    }
    Ok(())
}

/// exec-true, and the memory of the idle container that it is done in.
fn idle(runtime: &Runtime, idle: &Bundle, repeats: usize, report: &mut Report) -> Result<()> {
    let before = memory::processes()?;
    let result = exec_true(runtime, idle, repeats, report)
        .context("exec-true")
        .map(|()| {
            let mut pids = memory::processes().unwrap_or_default();
            pids.retain(|pid| !before.contains(pid));
            let Footprint { host, guest } = memory::footprint(&pids);
            report.add(Measurement::once(
                "idle-host-memory",
                &runtime.name,
                Unit::Bytes,
                host,
            ));
            report.add(Measurement::once(
                "idle-guest-memory",
                &runtime.name,
                Unit::Bytes,
                guest,
            ));
        });
    let deleted = runtime
        .delete_force("idle")
        .context("delete the idle container");
    result.and(deleted.map(drop))
}

/// `run` of /bin/true in docker's bundle, in total.
fn run_as_docker(
    runtime: &Runtime,
    bundle: &Bundle,
    repeats: usize,
    report: &mut Report,
) -> Result<()> {
    runtime.run(&[], bundle, "docker-warm")?;
    let totals = (0..repeats)
        .map(|n| runtime.run(&[], bundle, &format!("docker-{n}")))
        .collect::<Result<Vec<_>>>()?;
    report.add(Measurement::times(
        "run-docker-bundle",
        &runtime.name,
        &totals,
    ));
    Ok(())
}

/// `run` of /bin/true in total, and its parts as commands of their own.
fn run_true(runtime: &Runtime, bundle: &Bundle, repeats: usize, report: &mut Report) -> Result<()> {
    runtime.run(&[], bundle, "warm")?;
    let totals = (0..repeats)
        .map(|n| runtime.run(&[], bundle, &format!("run-{n}")))
        .collect::<Result<Vec<_>>>()?;

    let mut phases = BTreeMap::<&str, Vec<Duration>>::new();
    for n in 0..repeats {
        let id = format!("phases-{n}");
        let steps = step_by_step(runtime, bundle, &id).inspect_err(|_| {
            // the failure itself is what is worth telling
            let _ = runtime.delete_force(&id);
        })?;
        for (phase, taken) in steps {
            phases.entry(phase).or_default().push(taken);
        }
    }
    report.add(Measurement::times("run-true", &runtime.name, &totals).with_phases(&phases));
    Ok(())
}

/// Each part of a container's life, timed: `exit` is from the return of `start` to the end of the
/// process whose pid `create` gave.
fn step_by_step(
    runtime: &Runtime,
    bundle: &Bundle,
    id: &str,
) -> Result<[(&'static str, Duration); 4]> {
    let create = runtime.create(bundle, id)?;
    let init = Handle::of_pid_file(&runtime.pid_file())?;
    let start = runtime.start(id)?;
    let started = Instant::now();
    init.wait_exit()?;
    let exit = started.elapsed();
    let delete = runtime.delete(id)?;
    Ok([
        ("create", create),
        ("start", start),
        ("exit", exit),
        ("delete", delete),
    ])
}

/// `exec` of /bin/true in a running container, which is left running as `idle`.
fn exec_true(
    runtime: &Runtime,
    bundle: &Bundle,
    repeats: usize,
    report: &mut Report,
) -> Result<()> {
    runtime.create(bundle, "idle")?;
    runtime.start("idle")?;
    runtime.exec("idle", Path::new(TRUE))?;
    let times = (0..repeats)
        .map(|_| runtime.exec("idle", Path::new(TRUE)))
        .collect::<Result<Vec<_>>>()?;
    report.add(Measurement::times("exec-true", &runtime.name, &times));
    Ok(())
}

/// How long a guest's kernel took to its first process, by hull's own word.
fn guest_ready(
    runtime: &Runtime,
    bundle: &Bundle,
    repeats: usize,
    report: &mut Report,
) -> Result<()> {
    if runtime.name != "hull" {
        return Ok(());
    }
    let mut times = Vec::new();
    for n in 0..repeats {
        runtime.run(&["--debug"], bundle, &format!("debug-{n}"))?;
        let log = std::fs::read_to_string(runtime.log()).context("read hull's log")?;
        times.extend(log.lines().find_map(parse_guest_ready));
    }
    if !times.is_empty() {
        report.add(Measurement::times("guest-ready", &runtime.name, &times));
    }
    Ok(())
}

/// Reads a debug line with `guest ready` and, after it, a number of milliseconds: `… in 123.4 ms`.
fn parse_guest_ready(line: &str) -> Option<Duration> {
    let (_, rest) = line.split_once("guest ready")?;
    let (before, _) = rest.split_once(" ms")?;
    let number = before
        .rsplit(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ready_is_read_from_a_log_line() {
        assert_eq!(
            parse_guest_ready("level=debug msg=\"guest ready in 212.5 ms\""),
            Some(Duration::from_micros(212_500))
        );
        assert_eq!(parse_guest_ready("guest ready"), None);
        assert_eq!(parse_guest_ready("guest ready in x ms"), None);
    }
}
