//! The agent's helpers: the agent's program executed again, with one thread, for one task.
//!
//! A helper gets its task as JSON in a memfd, the process's stdio as its own, and one end of a socket. On that
//! it sends packets: the terminal's master, if there is one; the pid of the process that it made, or why it
//! failed. The process that is being made has the same socket open until it executes its program, so the first
//! failure of either arrives first. On the socket a container's first process also waits to be started.

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

/// The first argument that makes this program a helper; it is followed by the fds of the task and of the report
/// socket, and the log level.
pub const SUBCOMMAND: &str = "helper";

/// The longest packet, in bytes.
const MAX_PACKET_LENGTH: usize = 16 << 10;

/// The longest reason for a failure, in bytes; escaped as JSON it may be six times as long.
const MAX_REASON_LENGTH: usize = 2 << 10;

/// What a helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Make a container, up to the point where its process waits to be started.
    Create(init::Task),
    /// Start a further process in a container.
    Exec(exec::Task),
}

/// A packet from a helper, or from the process that it makes.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The process was made. It has this pid in the agent's pid namespace.
    Pid(i32),
    /// The master of its terminal is attached.
    Terminal,
    /// It could not be made.
    Failed(Failure),
}

/// A process that a helper has made.
#[derive(Debug)]
pub struct NewProcess {
    /// Its pid in the agent's pid namespace.
    pub pid: i32,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// The helper's end of the socket.
#[derive(Debug)]
pub struct Reporter(OwnedFd);

impl Reporter {
    /// Sends a report, with a file descriptor if there is one to hand over.
    ///
    /// # Errors
    /// When the agent has closed its end.
    pub fn send(&self, report: &Report, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut packet = serde_json::to_vec(report)?;
        packet.truncate(MAX_PACKET_LENGTH);
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

    /// Sends why the process could not be made. If the agent has closed its end, the error is only logged.
    pub fn fail(&self, mut failure: Failure) {
        log::debug!("{failure}");
        failure.message = shorten(failure.message);
        let _ = self.send(&Report::Failed(failure), None);
    }

    /// Waits until the agent calls [`ReportReceiver::start_process`].
    ///
    /// # Errors
    /// When the agent has closed its end.
    pub fn wait_for_start(&self) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut [0]))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Cuts a reason that is too long in the middle: it begins with what failed, and ends with why.
fn shorten(text: String) -> String {
    if text.len() <= MAX_REASON_LENGTH {
        return text;
    }
    let half = MAX_REASON_LENGTH / 2;
    let (start, _) = text.split_at(text.floor_char_boundary(half));
    let (_, end) = text.split_at(text.ceil_char_boundary(text.len() - half));
    format!("{start}…{end}")
}

/// The agent's end of the socket.
#[derive(Debug)]
pub struct ReportReceiver(UnixStream);

impl ReportReceiver {
    /// Receives reports until the process is made, or with `until_exec` until it executes its program.
    /// `made` gets the pid as soon as it is known, for a caller that stops waiting.
    ///
    /// # Errors
    /// When the process could not be made, as soon as that is reported.
    pub async fn wait_for_process(
        &self,
        until_exec: bool,
        made: &mut Option<i32>,
    ) -> Result<NewProcess, Failure> {
        let mut terminal = None;
        while let Some((report, fd)) = self
            .next_report()
            .await
            .map_err(Failure::io("read a report"))?
        {
            match report {
                Report::Pid(pid) => *made = Some(pid),
                Report::Terminal => terminal = fd,
                Report::Failed(failure) => return Err(failure),
            }
            if made.is_some() && !until_exec {
                break;
            }
        }
        let pid = made.ok_or_else(|| Failure::other("the helper ended without a report"))?;
        Ok(NewProcess { pid, terminal })
    }

    /// Starts the process that waits in [`Reporter::wait_for_start`].
    ///
    /// # Errors
    /// When that process has ended.
    pub fn start_process(&self) -> io::Result<()> {
        send(self.0.as_fd(), &[1], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next report, with the file descriptor that came with it; `None` when all other ends are closed.
    async fn next_report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let read = || receive(self.0.as_fd());
        self.0.async_io(Interest::READABLE, read).await
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let mut packet = vec![0; MAX_PACKET_LENGTH];
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

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    /// Its pid.
    pub pid: i32,
    /// The agent's end of its socket.
    pub reports: ReportReceiver,
}

/// Starts a helper: `program` (the agent itself) with this task and this stdio. `inherit` are the file
/// descriptors that the task names by their numbers, which the helper inherits.
///
/// # Errors
/// When the program can't be started.
pub fn start(
    program: &PathBuf,
    task: &Task,
    stdio: ProcessEnds,
    inherit: &[BorrowedFd<'_>],
) -> Result<Helper, Error> {
    let failed = || Error::io("start a helper");
    let mut file =
        File::from(memfd_create("task", MemfdFlags::CLOEXEC).map_err(|e| failed()(e.into()))?);
    // Written in one piece, and read so: File doesn't buffer, and serde_json would make a system call for each
    // token that it writes, and for each byte that it reads.
    serde_json::to_vec(task)
        .map_err(io::Error::from)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| file.rewind())
        .map_err(failed())?;
    let (agent_end, helper_end) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| failed()(e.into()))?;

    // What the helper inherits may not be close-on-exec while it is spawned. Nothing else is spawned meanwhile:
    // the agent has one thread, and this function doesn't await.
    let passed: Vec<BorrowedFd<'_>> = [file.as_fd(), helper_end.as_fd()]
        .into_iter()
        .chain(inherit.iter().copied())
        .collect();
    let close_on_exec = |flags| passed.iter().try_for_each(|fd| fcntl_setfd(fd, flags));
    close_on_exec(FdFlags::empty()).map_err(|e| failed()(e.into()))?;
    let child = Command::new(program)
        .arg(SUBCOMMAND)
        .arg(file.as_raw_fd().to_string())
        .arg(helper_end.as_raw_fd().to_string())
        .arg(log::max_level().as_str())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(stdio.stdin))
        .stdout(Stdio::from(stdio.stdout))
        .stderr(Stdio::from(stdio.stderr))
        .spawn();
    close_on_exec(FdFlags::CLOEXEC).map_err(|e| failed()(e.into()))?;
    // Dropping the Child neither kills nor waits for it: the reaper does that.
    let pid = child.map_err(failed())?.id().cast_signed();

    let agent_end = StdUnixStream::from(agent_end);
    agent_end.set_nonblocking(true).map_err(failed())?;
    let reports = ReportReceiver(UnixStream::from_std(agent_end).map_err(failed())?);
    Ok(Helper { pid, reports })
}

/// The main function of a helper. `arguments` are those after [`SUBCOMMAND`].
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let fd = |index: usize| -> Option<OwnedFd> {
        let number: RawFd = arguments.get(index)?.parse().ok()?;
        sys::take_inherited_fd(number).ok()
    };
    let (Some(task), Some(reporter)) = (fd(0), fd(1).map(Reporter)) else {
        eprintln!("hull-agent: only the agent starts a helper");
        return ExitCode::FAILURE;
    };
    let level = arguments.get(2).and_then(|level| level.parse().ok());
    console::init(level.unwrap_or(LevelFilter::Off));
    sys::look_up_users_in_files_only();
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
    fn a_failure_with_a_long_reason_is_received() {
        let flags = SocketFlags::CLOEXEC;
        let (agent_end, helper_end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .expect("a socket pair");
        let name = "\u{1}ü".repeat(50_000);
        Reporter(helper_end).fail(Failure::other(format!("exec: {name}: not found")));
        let received = match receive(agent_end.as_fd()).expect("a packet") {
            Some((Report::Failed(failure), None)) => failure.message,
            other => panic!("{other:?}"),
        };
        assert!(received.starts_with("exec: ") && received.ends_with(": not found"));
    }
}
