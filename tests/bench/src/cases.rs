//! What is measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::bundle::Bundle;
use crate::engine::{self, Kind};
use crate::memory::{self, Footprint};
use crate::network;
use crate::process::Handle;
use crate::report::{Measurement, Unit};
use crate::runtime::Runtime;

const TRUE: &str = "/bin/true";

/// What is measured together, of one runtime on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// `run` of /bin/true in total, and its parts as commands of their own
    RunTrue,
    /// `run` of /bin/true in docker's bundle
    RunDockerBundle,
    /// A guest's kernel to its first process, by hull's own word
    GuestReady,
    /// `exec` of /bin/true, and the memory of the idle container that it is done in
    ExecTrue,
    /// Throughput and latency of TCP over a veth; of hull with vhost-net
    Network,
    /// The same without vhost-net; hull's alone
    NetworkUserSpace,
    /// `run` of /bin/true in a network namespace with one interface
    RunNetwork,
    /// `podman run --rm` of /bin/true, without a network and with a bridge
    PodmanRun,
    /// The same of docker
    DockerRun,
    /// The bytes of the binary
    Install,
}

impl Case {
    /// Measures it, in containers made of copies below `work` of the root file system `rootfs`.
    pub fn measure(
        self,
        runtime: &Runtime,
        rootfs: &Path,
        work: &Path,
        repeats: usize,
    ) -> Result<Vec<Measurement>> {
        let briefly = || Bundle::write(work, rootfs, &[TRUE]);
        match self {
            Self::RunTrue => run_true(runtime, &briefly()?, repeats),
            Self::RunDockerBundle => {
                let bundle = Bundle::write_as_docker(work, rootfs, &[TRUE])?;
                run_as_docker(runtime, &bundle, repeats)
            }
            Self::GuestReady => guest_ready(runtime, &briefly()?, repeats),
            Self::ExecTrue => {
                let bundle = Bundle::write(work, rootfs, &["/bin/sleep", "3600"])?;
                idle(runtime, &bundle, repeats)
            }
            Self::Network => network::measure(runtime, ("", &[]), (work, rootfs), repeats),
            Self::NetworkUserSpace => {
                let config = work.join("hull.toml");
                std::fs::create_dir_all(work)
                    .and_then(|()| std::fs::write(&config, "vhost_net = false\n"))
                    .with_context(|| format!("write {}", config.display()))?;
                let config = config.display().to_string();
                let options = (" (no vhost)", &["--config", &config][..]);
                network::measure(runtime, options, (work, rootfs), repeats)
            }
            Self::RunNetwork => network::measure_run(runtime, &briefly()?, repeats),
            Self::PodmanRun => engine::measure(Kind::Podman, runtime, (work, rootfs), repeats),
            Self::DockerRun => engine::measure(Kind::Docker, runtime, (work, rootfs), repeats),
            Self::Install => install(runtime),
        }
    }
}

/// How many bytes the binary has.
fn install(runtime: &Runtime) -> Result<Vec<Measurement>> {
    let size = std::fs::metadata(&runtime.path)
        .with_context(|| format!("look at {}", runtime.path.display()))?
        .len();
    Ok(vec![Measurement::once(
        "install",
        &runtime.name,
        Unit::Bytes,
        size,
    )])
}

/// exec-true, and the memory of the idle container that it is done in.
fn idle(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Vec<Measurement>> {
    let before = memory::processes()?;
    let result = exec_true(runtime, bundle, repeats).and_then(|exec| {
        let mut pids = memory::processes()?;
        pids.retain(|pid| !before.contains(pid));
        let Footprint { host, guest } = memory::footprint(&pids);
        let bytes = |case, value| Measurement::once(case, &runtime.name, Unit::Bytes, value);
        Ok(vec![
            exec,
            bytes("idle-host-memory", host),
            bytes("idle-guest-memory", guest),
        ])
    });
    let deleted = runtime
        .delete_force("idle")
        .context("delete the idle container");
    result.and_then(|measured| deleted.map(|_| measured))
}

/// `run` of /bin/true in docker's bundle, in total.
fn run_as_docker(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Vec<Measurement>> {
    runtime.run(&[], bundle, "docker-warm")?;
    let totals = (0..repeats)
        .map(|n| runtime.run(&[], bundle, &format!("docker-{n}")))
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![Measurement::times(
        "run-docker-bundle",
        &runtime.name,
        &totals,
    )])
}

/// `run` of /bin/true in total, and its parts as commands of their own.
fn run_true(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Vec<Measurement>> {
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
    let totals = Measurement::times("run-true", &runtime.name, &totals);
    Ok(vec![totals.with_phases(&phases)])
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
    init.wait_exit(runtime.limit())?;
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
fn exec_true(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Measurement> {
    runtime.create(bundle, "idle")?;
    runtime.start("idle")?;
    runtime.exec("idle", Path::new(TRUE))?;
    let times = (0..repeats)
        .map(|_| runtime.exec("idle", Path::new(TRUE)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Measurement::times("exec-true", &runtime.name, &times))
}

/// How long a guest's kernel took to its first process, by hull's own word.
fn guest_ready(runtime: &Runtime, bundle: &Bundle, repeats: usize) -> Result<Vec<Measurement>> {
    runtime.run(&[], bundle, "debug-warm")?;
    let times = (0..repeats)
        .map(|n| {
            runtime.run(&["--debug"], bundle, &format!("debug-{n}"))?;
            let log = std::fs::read_to_string(runtime.log()).context("read hull's log")?;
            log.lines()
                .find_map(parse_guest_ready)
                .context("no line `guest ready in … ms` in hull's log")
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![Measurement::times(
        "guest-ready",
        &runtime.name,
        &times,
    )])
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
