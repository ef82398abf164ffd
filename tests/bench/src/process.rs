//! Commands and other people's processes, waited for with a time limit and without polling.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Runs `command`, for at most `limit`, with its output in the file `log`, and returns the time from
/// before the fork to after the exit. An error quotes the log.
pub fn time(command: &mut Command, log: &Path, limit: Duration) -> Result<Duration> {
    let output = File::create(log).with_context(|| format!("make {}", log.display()))?;
    let errors = output.try_clone().context("duplicate a file descriptor")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);

    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let handle = Handle::of(child.id().cast_signed())?;
    if let Err(e) = handle.wait_exit(limit) {
        child
            .kill()
            .and_then(|()| child.wait())
            .context("end a command that took too long")?;
        return Err(e.context(format!("{command:?}")));
    }
    let status = child.wait().context("wait for a child")?;
    let taken = start.elapsed();

    if !status.success() {
        bail!("{command:?} ended with {status}: {}", tail(log));
    }
    Ok(taken)
}

/// The last bytes of a log, on one line.
pub fn tail(log: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        // what isn't text is no message
        let _ = file.read_to_string(&mut text);
    }
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

/// A process, whoever's child it is; stays valid when the process ends.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// The process with this pid.
    pub fn of(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid).context("0 is no pid")?;
        Ok(Self(
            pidfd_open(pid, PidfdFlags::empty())
                .with_context(|| format!("open process {pid:?}"))?,
        ))
    }

    /// The process whose pid stands in a `--pid-file`.
    pub fn of_pid_file(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::of(
            text.trim()
                .parse()
                .with_context(|| format!("{} holds no pid: {text:?}", path.display()))?,
        )
    }

    /// Waits, for at most `limit`, until `listener` has a connection. That the process ends first is an error.
    pub fn wait_for(&self, listener: &impl AsFd, limit: Duration) -> Result<()> {
        let timeout = Timespec::try_from(limit).context("turn the time limit into a timespec")?;
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&self.0, PollFlags::IN),
        ];
        let ready = poll(&mut fds, Some(&timeout)).context("wait for a connection")?;
        ensure!(
            ready > 0,
            "timed out after {} s waiting for a connection",
            limit.as_secs_f64()
        );
        ensure!(!fds[0].revents().is_empty(), "the process has ended");
        Ok(())
    }

    /// Waits, for at most `limit`, until the process has ended.
    pub fn wait_exit(&self, limit: Duration) -> Result<()> {
        let timeout = Timespec::try_from(limit).context("turn the time limit into a timespec")?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)).context("wait for a process")? {
            0 => bail!(
                "timed out after {} s waiting for the end of a process",
                limit.as_secs_f64()
            ),
            _ => Ok(()),
        }
    }
}
