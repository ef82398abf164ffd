//! The agent's helpers: this program once more, with one thread, one task and a way to report.
//!
//! A helper gets its task as JSON in a memory file, the process's stdio as its own, and one end of a
//! socket. On that it sends packets: the terminal's master, if there is one; the pid of the process that
//! it made, or why it failed. The process that is being made holds the same socket until it
//! executes its program, so that whatever fails first is heard first. A container's first process waits at
//! it to be started.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use log::LevelFilter;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::console;
use crate::container::init;
use crate::error::{Error, Failure};
use crate::exec;
use crate::stdio::ProcessEnds;
use crate::sys;

/// The first argument that makes this program a helper; the task's and the report's fds follow, and the
/// level to log at.
pub const SUBCOMMAND: &str = "helper";

/// The longest packet, in bytes.
const LONGEST: usize = 16 << 10;

/// The longest reason for a failure, in bytes, of which JSON may make six times as many.
const LONGEST_REASON: usize = 2 << 10;

/// What a helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Make a container, up to the point where its process waits to be started.
    Create(init::Task),
    /// Start a further process in a container.
    Exec(exec::Task),
}

/// What a helper, or the process that it makes, has to say.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// There is a process, with this pid in the agent's pid namespace.
    Made(i32),
    /// Its terminal's master comes with this.
    Terminal,
    /// There is none.
    Failed(Failure),
}

/// A process that a helper has made.
#[derive(Debug)]
pub struct Made {
    /// Its pid in the agent's pid namespace.
    pub pid: i32,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// The helper's end of the socket.
#[derive(Debug)]
pub struct Reporter(OwnedFd);

impl Reporter {
    /// Sends a report, with a file descriptor if there is one to hand over.
    ///
    /// # Errors
    /// When the agent has hung up.
    pub fn send(&self, report: &Report, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut packet = serde_json::to_vec(report)?;
        packet.truncate(LONGEST);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&packet)], &mut control, flags)?;
        Ok(())
    }

    /// Sends why there is no process. If the agent has hung up, nobody wants to know.
    pub fn fail(&self, mut failure: Failure) {
        log::debug!("{failure}");
        failure.message = shortened(failure.message);
        let _ = self.send(&Report::Failed(failure), None);
    }

    /// Waits until the agent lets the process go, [`Reports::let_go`].
    ///
    /// # Errors
    /// When the agent has hung up.
    pub fn wait_for_start(&self) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut [0]))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A text that is not too long a reason: what failed is at its beginning, and why at its end.
fn shortened(text: String) -> String {
    if text.len() <= LONGEST_REASON {
        return text;
    }
    let half = LONGEST_REASON / 2;
    let (start, _) = text.split_at(text.floor_char_boundary(half));
    let (_, end) = text.split_at(text.ceil_char_boundary(text.len() - half));
    format!("{start}…{end}")
}

/// The agent's end of the socket.
#[derive(Debug)]
pub struct Reports(UnixStream);

impl Reports {
    /// Collects what is said until a process is made, or with `to_the_end` until it executes its
    /// program. A failure ends it at once. `made` learns the pid as soon as there is one, for who does
    /// not wait that long.
    ///
    /// # Errors
    /// When there is no process.
    pub async fn outcome(&self, to_the_end: bool, made: &mut Option<i32>) -> Result<Made, Failure> {
        let mut terminal = None;
        while let Some((report, fd)) = self.next().await.map_err(Failure::io("read a report"))? {
            match report {
                Report::Made(pid) => *made = Some(pid),
                Report::Terminal => terminal = fd,
                Report::Failed(failure) => return Err(failure),
            }
            if made.is_some() && !to_the_end {
                break;
            }
        }
        let pid = made.ok_or_else(|| Failure::other("the helper ended without a word"))?;
        Ok(Made { pid, terminal })
    }

    /// Lets the process go that waits at the other end.
    ///
    /// # Errors
    /// When it has ended.
    pub fn let_go(&self) -> io::Result<()> {
        send(self.0.as_fd(), &[1], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next report, with the file descriptor that came with it; `None` when nobody is left who
    /// could send one.
    async fn next(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let read = || receive(self.0.as_fd());
        self.0.async_io(Interest::READABLE, read).await
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let mut packet = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let fd = fds.next();
    let packet = packet.get(..message.bytes).unwrap_or_default();
    if packet.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(packet)?, fd)))
}

/// A helper on its way.
#[derive(Debug)]
pub struct Helper {
    /// Its pid.
    pub pid: i32,
    /// What it says.
    pub reports: Reports,
}

/// Starts a helper: `program` (the agent itself) with this task and this stdio. `keep` are the file
/// descriptors that the task names by their numbers.
///
/// # Errors
/// When the program can't be started.
pub fn start(
    program: &PathBuf,
    task: &Task,
    stdio: ProcessEnds,
    keep: &[BorrowedFd<'_>],
) -> Result<Helper, Error> {
    let failed = || Error::io("start a helper");
    let mut file =
        File::from(memfd_create("task", MemfdFlags::CLOEXEC).map_err(|e| failed()(e.into()))?);
    // Both ways in one piece: a file doesn't buffer, and serde_json would call the kernel for each token
    // that it writes, and for each byte that it reads.
    serde_json::to_vec(task)
        .map_err(io::Error::from)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| file.rewind())
        .map_err(failed())?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| failed()(e.into()))?;

    // What the helper is to inherit may not be closed on exec. Nothing else is started between here and
    // there: the agent has one thread, and this function doesn't await.
    let passed: Vec<BorrowedFd<'_>> = [file.as_fd(), theirs.as_fd()]
        .into_iter()
        .chain(keep.iter().copied())
        .collect();
    let close_on_exec = |flags| passed.iter().try_for_each(|fd| fcntl_setfd(fd, flags));
    close_on_exec(FdFlags::empty()).map_err(|e| failed()(e.into()))?;
    let child = Command::new(program)
        .arg(SUBCOMMAND)
        .arg(file.as_raw_fd().to_string())
        .arg(theirs.as_raw_fd().to_string())
        .arg(log::max_level().as_str())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(stdio.stdin))
        .stdout(Stdio::from(stdio.stdout))
        .stderr(Stdio::from(stdio.stderr))
        .spawn();
    close_on_exec(FdFlags::CLOEXEC).map_err(|e| failed()(e.into()))?;
    // Dropping the Child neither kills nor awaits it: that is the reaper's business.
    let pid = child.map_err(failed())?.id().cast_signed();

    let ours = StdUnixStream::from(ours);
    ours.set_nonblocking(true).map_err(failed())?;
    let reports = Reports(UnixStream::from_std(ours).map_err(failed())?);
    Ok(Helper { pid, reports })
}

/// The helper's whole life. `arguments` are those after [`SUBCOMMAND`].
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let fd = |index: usize| -> Option<OwnedFd> {
        let number: RawFd = arguments.get(index)?.parse().ok()?;
        sys::inherited(number).ok()
    };
    let (Some(task), Some(reporter)) = (fd(0), fd(1).map(Reporter)) else {
        eprintln!("hull-agent: a helper is started by the agent only");
        return ExitCode::FAILURE;
    };
    let level = arguments.get(2).and_then(|level| level.parse().ok());
    console::start(level.unwrap_or(LevelFilter::Off));
    sys::look_users_up_in_files();
    let result = read(File::from(task))
        .map_err(|e| Failure::other(format!("read the task: {e}")))
        .and_then(|task| match task {
            Task::Create(task) => init::run(task, &reporter),
            Task::Exec(task) => exec::run(task, &reporter),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            reporter.fail(failure);
            ExitCode::FAILURE
        }
    }
}

fn read(mut task: File) -> io::Result<Task> {
    let mut text = Vec::new();
    task.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_heard_however_long_its_reason_is() {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a socket pair");
        let name = "\u{1}ü".repeat(50_000);
        Reporter(theirs).fail(Failure::other(format!("exec: {name}: not found")));
        let heard = match receive(ours.as_fd()).expect("a packet") {
            Some((Report::Failed(failure), None)) => failure.message,
            other => panic!("{other:?}"),
        };
        assert!(heard.starts_with("exec: ") && heard.ends_with(": not found"));
    }
}
