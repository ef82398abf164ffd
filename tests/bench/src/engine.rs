//! `podman run --rm` and `docker run --rm` as a user feels them: from the engine's command line to its end, with a
//! runtime under measurement, of an image that is imported from the benchmarks' root file system.
//!
//! The engine's folders are below the work folder, and its daemon, if it has one, is this program's child.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{self, Handle, tail};
use crate::report::Measurement;
use crate::runtime::Runtime;

/// The image's name.
const IMAGE: &str = "hull-bench";

/// The networks with which an image is run: `bridge` is what both engines have by default for root.
const NETWORKS: [&str; 2] = ["none", "bridge"];

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs everything itself.
    Podman,
    /// It tells a daemon.
    Docker,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// Measures `run --rm` of /bin/true with each network.
pub fn measure(
    kind: Kind,
    runtime: &Runtime,
    (work, rootfs): (&Path, &Path),
    repeats: usize,
) -> Result<Vec<Measurement>> {
    std::fs::create_dir_all(work).with_context(|| format!("make {}", work.display()))?;
    let engine = Engine::start(kind, runtime, work)?;
    engine.import(rootfs)?;
    let mut measured = Vec::new();
    for network in NETWORKS {
        engine.run(network)?;
        let times = (0..repeats)
            .map(|_| engine.run(network))
            .collect::<Result<Vec<_>>>()?;
        let case = format!("{}-run ({network})", kind.name());
        measured.push(Measurement::times(&case, &runtime.name, &times));
    }
    Ok(measured)
}

/// An engine that is set up to run containers with one runtime.
struct Engine {
    kind: Kind,
    /// The words of each command up to its verb.
    command: Vec<String>,
    /// The options of `run` that choose the runtime.
    chosen: Vec<String>,
    log: PathBuf,
    limit: Duration,
    /// Ends the daemon when dropped.
    _daemon: Option<Daemon>,
}

impl Engine {
    fn start(kind: Kind, runtime: &Runtime, work: &Path) -> Result<Self> {
        let below = |name: &str| work.join(name).display().to_string();
        let path = runtime.path.display().to_string();
        let (command, chosen, daemon) = match kind {
            Kind::Podman => {
                let command = [
                    "podman",
                    "--root",
                    &below("storage"),
                    "--runroot",
                    &below("run"),
                    "--tmpdir",
                    &below("tmp"),
                    "--network-config-dir",
                    &below("networks"),
                    "--cgroup-manager",
                    "cgroupfs",
                    "--events-backend",
                    "file",
                    "--runtime",
                    &path,
                ];
                let command = command.map(str::to_owned).to_vec();
                (command, vec!["--log-driver=k8s-file".to_owned()], None)
            }
            Kind::Docker => {
                let daemon = Daemon::start(&path, work, runtime.limit())?;
                let command = vec!["docker".to_owned(), "--host".to_owned(), daemon.address()];
                (command, vec!["--runtime=measured".to_owned()], Some(daemon))
            }
        };
        Ok(Self {
            kind,
            command,
            chosen,
            log: runtime.log(),
            limit: runtime.limit(),
            _daemon: daemon,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }

    /// Makes the image of a root file system.
    fn import(&self, rootfs: &Path) -> Result<()> {
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(rootfs)
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .context("start tar")?;
        let archive = tar.stdout.take().context("tar's output")?;
        let output = self
            .command()
            .args(["import", "-", IMAGE])
            .stdin(archive)
            .output()
            .with_context(|| format!("start {}", self.kind.name()))?;
        ensure!(tar.wait().context("wait for tar")?.success(), "tar failed");
        ensure!(
            output.status.success(),
            "{} import: {}",
            self.kind.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// How long `run --rm` of /bin/true takes.
    fn run(&self, network: &str) -> Result<Duration> {
        let mut command = self.command();
        command
            .args(["run", "--rm", "--network", network])
            .args(&self.chosen)
            .args([IMAGE, "/bin/true"]);
        process::time(&mut command, &self.log, self.limit)
    }
}

/// dockerd, which is told to end when dropped.
struct Daemon {
    child: Child,
    handle: Handle,
    socket: PathBuf,
    limit: Duration,
}

impl Daemon {
    fn start(runtime: &str, work: &Path, limit: Duration) -> Result<Self> {
        let (socket, log) = (work.join("docker.sock"), work.join("dockerd.log"));
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let errors = output.try_clone().context("duplicate a file descriptor")?;
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(work.join("docker"))
            .arg("--exec-root")
            .arg(work.join("docker-run"))
            .arg("--pidfile")
            .arg(work.join("dockerd.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--add-runtime")
            .arg(format!("measured={runtime}"));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().context("start dockerd")?;
        let handle = Handle::of(child.id().cast_signed())?;
        let daemon = Self {
            child,
            handle,
            socket,
            limit,
        };
        daemon.await_ready(&log)?;
        Ok(daemon)
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Asks until it answers: it makes its socket before it listens, and tells nobody without a service manager.
    fn await_ready(&self, log: &Path) -> Result<()> {
        let end = std::time::Instant::now() + self.limit;
        while std::time::Instant::now() < end {
            let mut ask = Command::new("docker");
            ask.args(["--host", &self.address(), "version"]);
            ask.stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if ask.status().context("start docker")?.success() {
                return Ok(());
            }
            // Its end is what is waited for between two questions.
            if self.handle.wait_exit(Duration::from_millis(200)).is_ok() {
                bail!("dockerd has ended: {}", tail(log));
            }
        }
        bail!(
            "timed out after {} s waiting for dockerd to answer: {}",
            self.limit.as_secs(),
            tail(log)
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if self.handle.wait_exit(self.limit).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
