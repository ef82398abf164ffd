//! A process's stdio: pipes or a terminal in the guest, each connected to a vsock port of the host.
//!
//! The process gets pipes rather than the sockets themselves, so that it can open /dev/stdout and the like.
//! Bytes are copied one buffer at a time, so a reader that doesn't read blocks the writer, in both
//! directions.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::agent::{HostStream, Stdio as Streams};
use hull_protocol::terminal;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, watch};

use crate::error::Error;
use crate::procfs;
use crate::reaper::{Exit, ExitStatus};
use crate::transport::{self, Dial, Stream};

/// The size of the copy buffer, in bytes: a pipe's capacity.
const BUFFER: usize = 64 << 10;

/// The process's ends.
#[derive(Debug)]
pub struct ProcessEnds {
    /// Its stdin.
    pub stdin: OwnedFd,
    /// Its stdout.
    pub stdout: OwnedFd,
    /// Its stderr.
    pub stderr: OwnedFd,
}

/// The agent's ends, each with the host's stream that it is connected to.
pub struct AgentEnds {
    stdin: Option<(OwnedFd, Box<dyn Stream>)>,
    outputs: Vec<(OwnedFd, Box<dyn Stream>)>,
    terminal: Option<TerminalStreams>,
    /// Whether the host's streams stay open when the process ends, until the sandbox does. They do for the
    /// sandbox's owner: a reader that reaches the end of its output then finds the container stopped.
    held_until_sandbox_ends: bool,
}

/// The host's streams of a terminal.
struct TerminalStreams {
    /// Input and output.
    data: Box<dyn Stream>,
    /// Its size changes, encoded as in `hull_protocol::terminal`.
    sizes: Option<Box<dyn Stream>>,
}

/// Makes the pipes of a process and dials the host's streams for them. The process's end is /dev/null where
/// the host has no stream, and if the process gets a terminal.
///
/// # Errors
/// When the host refuses a stream.
pub async fn open(host: &dyn Dial, streams: &Streams) -> Result<(ProcessEnds, AgentEnds), Error> {
    if streams.terminal {
        let (data, sizes) = tokio::try_join!(
            dial(host, "stdin", streams.stdin.as_ref()),
            dial(host, "stdout", streams.stdout.as_ref()),
        )?;
        let ends = ProcessEnds {
            stdin: null()?,
            stdout: null()?,
            stderr: null()?,
        };
        let agent = AgentEnds {
            stdin: None,
            outputs: Vec::new(),
            terminal: data.map(|data| TerminalStreams { data, sizes }),
            held_until_sandbox_ends: false,
        };
        return Ok((ends, agent));
    }
    let (stdin, stdout, stderr) = tokio::try_join!(
        dial(host, "stdin", streams.stdin.as_ref()),
        dial(host, "stdout", streams.stdout.as_ref()),
        dial(host, "stderr", streams.stderr.as_ref()),
    )?;
    let (stdin, our_stdin) = match stdin {
        Some(stream) => {
            let (read, write) = pipe()?;
            (read, Some((write, stream)))
        }
        None => (null()?, None),
    };
    let mut outputs = Vec::with_capacity(2);
    let mut output = |stream: Option<Box<dyn Stream>>| -> Result<OwnedFd, Error> {
        let Some(stream) = stream else {
            return null();
        };
        let (read, write) = pipe()?;
        outputs.push((read, stream));
        Ok(write)
    };
    let ends = ProcessEnds {
        stdin,
        stdout: output(stdout)?,
        stderr: output(stderr)?,
    };
    let agent = AgentEnds {
        stdin: our_stdin,
        outputs,
        terminal: None,
        held_until_sandbox_ends: false,
    };
    Ok((ends, agent))
}

async fn dial(
    host: &dyn Dial,
    field: &'static str,
    stream: Option<&HostStream>,
) -> Result<Option<Box<dyn Stream>>, Error> {
    let Some(stream) = stream else {
        return Ok(None);
    };
    let opened = transport::open(host, stream, &[]).await;
    opened.map(Some).map_err(Error::io(format!(
        "dial the host's port {} of stdio.{field}",
        stream.port
    )))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("make a pipe")(e.into()))
}

fn null() -> Result<OwnedFd, Error> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open /dev/null")(e.into()))
}

/// Waits for a process to end and for all of its output to be sent.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Its end only.
    pub exit: Exit,
    drained: watch::Receiver<bool>,
}

impl Completion {
    /// Waits for both, without a time limit: a host that doesn't read blocks this as it would block a pipe's
    /// writer.
    pub async fn wait(&self) -> ExitStatus {
        let status = self.exit.wait().await;
        // The sender is dropped only once the copying has ended.
        let _ = self.drained.clone().wait_for(|drained| *drained).await;
        status
    }
}

impl AgentEnds {
    /// Keeps the host's streams open until the sandbox ends, for the process that it ends with.
    #[must_use]
    pub fn held_until_sandbox_ends(self) -> Self {
        Self {
            held_until_sandbox_ends: true,
            ..self
        }
    }

    /// Starts copying. `pid` is the process's, `terminal` the master of its terminal.
    ///
    /// # Errors
    /// When a descriptor can't be watched.
    pub fn start(
        self,
        pid: i32,
        exit: Exit,
        terminal: Option<OwnedFd>,
    ) -> Result<Completion, Error> {
        let held = self.held_until_sandbox_ends.then_some(pid);
        let failed = || Error::io("watch the process's stdio");
        let nonblocking = |fd: &OwnedFd| -> Result<(), Error> {
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| failed()(e.into()))
        };
        let (draining, mut all_drained) = mpsc::channel::<()>(1);
        if let Some((fd, stream)) = self.stdin {
            nonblocking(&fd)?;
            let pipe = Sender::from_owned_fd(fd).map_err(failed())?;
            let (reader, _) = tokio::io::split(stream);
            let exit = exit.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = copy_in(reader, pipe) => {}
                    _ = exit.wait() => {}
                }
            });
        }
        for (fd, stream) in self.outputs {
            nonblocking(&fd)?;
            let pipe = Receiver::from_owned_fd(fd).map_err(failed())?;
            let (_, writer) = tokio::io::split(stream);
            let (exit, mut draining) = (exit.clone(), Some(draining.clone()));
            tokio::spawn(async move {
                if let Some(mut stream) =
                    copy_out(pipe, writer, &exit, &mut draining, AtExit::KeepCopying).await
                {
                    end_stream(&mut stream, held, &exit, draining).await;
                }
            });
        }
        if let Some((master, streams)) = terminal.zip(self.terminal) {
            nonblocking(&master)?;
            let again = || master.try_clone().map_err(failed());
            let resized = again()?;
            let input = Sender::from_owned_fd_unchecked(again()?).map_err(failed())?;
            let output = Receiver::from_owned_fd_unchecked(master).map_err(failed())?;
            let (reader, writer) = tokio::io::split(streams.data);
            let (exit, mut draining) = (exit.clone(), Some(draining.clone()));
            tokio::spawn(async move {
                // When the process or the host's stream ends, the master is dropped, which hangs the terminal
                // up. As with runc, what other processes still write to it is lost.
                let stream = tokio::select! {
                    stream = copy_out(output, writer, &exit, &mut draining, AtExit::HangUp) => stream,
                    () = copy_in(reader, input) => None,
                    () = follow_sizes(streams.sizes, resized) => None,
                };
                if let Some(mut stream) = stream {
                    end_stream(&mut stream, held, &exit, draining).await;
                }
            });
        }
        drop(draining);
        let (report, drained) = watch::channel(false);
        tokio::spawn(async move {
            // Returns when every copying task has dropped its sender.
            let _ = all_drained.recv().await;
            report.send_replace(true);
        });
        Ok(Completion { exit, drained })
    }
}

/// Sets a terminal's size.
///
/// # Errors
/// When it isn't one.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Copies from the host to the process until either ends. The end of the host's stream closes the pipe; if
/// the process closes its stdin, only the copying ends.
async fn copy_in(mut from: ReadHalf<Box<dyn Stream>>, mut to: Sender) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Sets the terminal's size whenever the host sends one. Never returns.
async fn follow_sizes(sizes: Option<Box<dyn Stream>>, terminal: OwnedFd) {
    let mut record = [0; terminal::LENGTH];
    if let Some(mut sizes) = sizes {
        while sizes.read_exact(&mut record).await.is_ok() {
            let size = terminal::Size::decode(record);
            if let Err(e) = resize(&terminal, size.rows, size.columns) {
                log::warn!("resize a terminal: {e}");
            }
        }
    }
    std::future::pending().await
}

/// What is done with a stream when its process has ended, but others may still hold it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtExit {
    /// What others write is still copied.
    KeepCopying,
    /// The copying ends.
    HangUp,
}

/// Copies from the process to the host, until nobody can write any more. Once the process has ended and the
/// pipe is empty, all of its output has been sent, and `draining` is dropped. Returns the host's stream if it
/// can still be written to.
async fn copy_out(
    mut from: Receiver,
    mut to: WriteHalf<Box<dyn Stream>>,
    exit: &Exit,
    draining: &mut Option<mpsc::Sender<()>>,
    at_exit: AtExit,
) -> Option<WriteHalf<Box<dyn Stream>>> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = if exit.status().is_some() && draining.is_some() {
            match rustix::io::read(&from, &mut buffer) {
                Err(rustix::io::Errno::AGAIN) if at_exit == AtExit::HangUp => break,
                Err(rustix::io::Errno::AGAIN) => {
                    *draining = None;
                    continue;
                }
                result => result.map_err(io::Error::from),
            }
        } else {
            tokio::select! {
                biased;
                read = from.read(&mut buffer) => read,
                _ = exit.wait(), if draining.is_some() => continue,
            }
        };
        // A terminal's master reports EIO when the last process has left it.
        let Ok(read @ 1..) = read else {
            break;
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        to.write_all(bytes).await.ok()?;
    }
    Some(to)
}

/// Ends the host's stream after all output was written to it. If `held` is a process that has ended or is
/// exiting, the stream stays open instead; if that process has closed its output and runs on, it doesn't.
async fn end_stream(
    stream: &mut WriteHalf<Box<dyn Stream>>,
    held: Option<i32>,
    exit: &Exit,
    draining: Option<mpsc::Sender<()>>,
) {
    if held.is_some_and(|pid| exit.status().is_some() || procfs::is_ending(pid)) {
        drop(draining);
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}
