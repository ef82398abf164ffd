//! The connection between `create` and the VMM process it has launched, or the stand-in it has started.
//!
//! The process says one line of JSON: that it is up, or why it isn't. `create` says one byte once the
//! container is created and its state on disk. Until that byte, the end of the connection means that
//! `create` was killed, and the VMM goes too: so there is no moment at which a SIGKILL leaves a VM that
//! no state names. A VMM whose cgroup is made around it (by systemd) waits for another byte before it does
//! anything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ChildProcess, HostStream, Offer, SandboxError};

/// What the process says, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report<T> {
    /// It has set itself up: of a VMM, the guest is booting.
    Up(T),
    /// It can't, and why; the process is about to end.
    Failed(String),
}

/// Where the guest's agent finds what it needs for the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// The container's stdio.
    pub stdio: Offer,
    /// Where its exit status is awaited.
    pub exit_status: HostStream,
}

/// The longest report, in bytes.
const LIMIT: u64 = 64 << 10;

/// The byte by which `create` lets the process live on.
pub const COMMIT: u8 = b'C';

/// The byte by which `create` lets a process begin that is held back.
const BEGIN: u8 = b'B';

/// What `create` holds of a process that it has started. Dropped before [`Lifeline::commit`], it ends that process.
#[derive(Debug)]
pub struct Lifeline {
    process: ChildProcess,
    connection: UnixStream,
}

impl Lifeline {
    /// To a process that has the other end of the connection.
    pub(super) fn new(process: ChildProcess, connection: UnixStream) -> Self {
        Self {
            process,
            connection,
        }
    }

    /// The process's pid.
    pub fn pid(&self) -> i32 {
        self.process.id()
    }

    /// The process itself.
    pub(super) fn process(&mut self) -> &mut ChildProcess {
        &mut self.process
    }

    /// Waits for what the process reports, no longer than that; `None` if it ended without a word.
    pub(super) fn report<T: DeserializeOwned>(
        &self,
        timeout: Duration,
    ) -> io::Result<Option<Report<T>>> {
        self.connection.set_read_timeout(Some(timeout))?;
        receive(&self.connection)
    }

    /// Lets a process begin that is held back.
    ///
    /// # Errors
    /// When it is gone.
    pub fn begin(&self) -> Result<(), SandboxError> {
        begin(&self.connection).map_err(SandboxError::host(
            "let the container's process on the host begin",
        ))
    }

    /// Lets the process live on when this one ends.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn commit(&self) -> Result<(), SandboxError> {
        commit(&self.connection).map_err(SandboxError::host(
            "let go of the container's process on the host",
        ))
    }

    /// The process to wait for.
    pub fn into_process(self) -> ChildProcess {
        self.process
    }

    /// Ends and reaps the process.
    pub fn abort(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn begin(mut lifeline: &UnixStream) -> io::Result<()> {
    lifeline.write_all(&[BEGIN])
}

/// In a process that is held back: waits until it may begin.
///
/// # Errors
/// When `create` is gone, and so must be the process.
pub fn wait_to_begin(mut lifeline: &UnixStream) -> io::Result<()> {
    let mut byte = [0];
    lifeline.read_exact(&mut byte)
}

/// Sends the process's report.
///
/// # Errors
/// When `create` is gone.
pub fn send<T: Serialize>(mut lifeline: &UnixStream, report: &Report<T>) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    lifeline.write_all(&line)
}

/// Waits for the process's report; `None` if the process ended without one.
fn receive<T: DeserializeOwned>(lifeline: &UnixStream) -> io::Result<Option<Report<T>>> {
    let mut line = String::new();
    if BufReader::new(lifeline.take(LIMIT)).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

fn commit(mut lifeline: &UnixStream) -> io::Result<()> {
    lifeline.write_all(&[COMMIT])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_whole() {
        let (create, vmm) = UnixStream::pair().expect("pair");
        let stream = |port| HostStream {
            port,
            token: [port as u8; 16],
        };
        let streams = Streams {
            stdio: Offer::Streams([Some(stream(1)), None, Some(stream(3))]),
            exit_status: stream(4),
        };
        send(&vmm, &Report::Up(streams)).expect("send");
        assert!(matches!(receive::<Streams>(&create), Ok(Some(Report::Up(s))) if s == streams));
    }

    #[test]
    fn a_vmm_that_is_held_back_learns_when_nobody_will_let_it_begin() {
        let (create, vmm) = UnixStream::pair().expect("pair");
        begin(&create).expect("send");
        wait_to_begin(&vmm).expect("may begin");
        drop(create);
        assert!(wait_to_begin(&vmm).is_err());
    }

    #[test]
    fn a_vmm_that_dies_silently_is_told_from_one_that_reports() {
        let (create, vmm) = UnixStream::pair().expect("pair");
        drop(vmm);
        assert!(matches!(receive::<Streams>(&create), Ok(None)));
    }
}
