//! A process's stdio: pipes or a terminal in the guest, each joined to a vsock port of the host.
//!
//! Pipes lie between, rather than the sockets themselves, so that the process can open /dev/stdout and
//! its kind again. Bytes are copied one buffer at a time: a reader that doesn't read holds the writer
//! up, on both sides.

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
use crate::processes;
use crate::reaper::{Exit, ExitStatus};
use crate::transport::{self, Dial, Stream};

/// The unit of copying, in bytes: a pipe's capacity.
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

/// The agent's ends, each with the host's stream that it is joined to.
pub struct AgentEnds {
    stdin: Option<(OwnedFd, Box<dyn Stream>)>,
    outputs: Vec<(OwnedFd, Box<dyn Stream>)>,
    terminal: Option<TerminalStreams>,
    last: Last,
}

/// What comes last: the end of a process's streams, or that of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// The process is one of many.
    Sandbox,
    /// The sandbox ends with the process, and the host ends the streams with the sandbox. By then it knows
    /// the exit status: who sees the end of the output finds the container stopped.
    Streams,
}

/// The host's streams of a terminal.
struct TerminalStreams {
    /// What is typed and shown.
    text: Box<dyn Stream>,
    /// Its sizes, as `hull_protocol::terminal` has them.
    sizes: Option<Box<dyn Stream>>,
}

/// Makes the pipes of a process and dials the host's streams for them. Where there is none, and for a
/// process with a terminal, the process's end is /dev/null.
///
/// # Errors
/// When the host refuses a stream.
pub async fn open(host: &dyn Dial, streams: &Streams) -> Result<(ProcessEnds, AgentEnds), Error> {
    if streams.terminal {
        let (text, sizes) = tokio::try_join!(
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
            terminal: text.map(|text| TerminalStreams { text, sizes }),
            last: Last::Sandbox,
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
        last: Last::Sandbox,
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

/// Tells when a process has ended and all that it wrote was sent.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its end alone.
    pub exit: Exit,
    drained: watch::Receiver<bool>,
}

impl Finished {
    /// Waits for both, for as long as it takes: a host that doesn't read holds this up as it would hold
    /// a pipe's writer up.
    pub async fn wait(&self) -> ExitStatus {
        let status = self.exit.ended().await;
        // Its sender goes away only when the copying is over.
        let _ = self.drained.clone().wait_for(|drained| *drained).await;
        status
    }
}

impl AgentEnds {
    /// Says that the sandbox ends with the process, whose streams end with the sandbox then.
    #[must_use]
    pub fn of_the_last_process(self) -> Self {
        let last = Last::Streams;
        Self { last, ..self }
    }

    /// Starts to copy. `pid` is the process's, `terminal` the master of its terminal.
    ///
    /// # Errors
    /// When a descriptor can't be watched.
    pub fn start(self, pid: i32, exit: Exit, terminal: Option<OwnedFd>) -> Result<Finished, Error> {
        let held = (self.last == Last::Streams).then_some(pid);
        let failed = || Error::io("watch the process's stdio");
        let nonblocking = |fd: &OwnedFd| -> Result<(), Error> {
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| failed()(e.into()))
        };
        let (done, mut undone) = mpsc::channel::<()>(1);
        if let Some((fd, stream)) = self.stdin {
            nonblocking(&fd)?;
            let pipe = Sender::from_owned_fd(fd).map_err(failed())?;
            let (reader, _) = tokio::io::split(stream);
            let exit = exit.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = copy_in(reader, pipe) => {}
                    _ = exit.ended() => {}
                }
            });
        }
        for (fd, stream) in self.outputs {
            nonblocking(&fd)?;
            let pipe = Receiver::from_owned_fd(fd).map_err(failed())?;
            let (_, writer) = tokio::io::split(stream);
            let (exit, mut done) = (exit.clone(), Some(done.clone()));
            tokio::spawn(async move {
                if let Some(mut stream) =
                    copy_out(pipe, writer, &exit, &mut done, AtExit::GoOn).await
                {
                    end_stream(&mut stream, held, &exit, done).await;
                }
            });
        }
        if let Some((master, streams)) = terminal.zip(self.terminal) {
            nonblocking(&master)?;
            let again = || master.try_clone().map_err(failed());
            let sized = again()?;
            let input = Sender::from_owned_fd_unchecked(again()?).map_err(failed())?;
            let output = Receiver::from_owned_fd_unchecked(master).map_err(failed())?;
            let (reader, writer) = tokio::io::split(streams.text);
            let (exit, mut done) = (exit.clone(), Some(done.clone()));
            tokio::spawn(async move {
                // What ends first hangs the terminal up, by dropping all that is left of the master: its
                // process, or the host. As with runc, what others still write to it is lost.
                let stream = tokio::select! {
                    stream = copy_out(output, writer, &exit, &mut done, AtExit::HangUp) => stream,
                    () = copy_in(reader, input) => None,
                    () = follow_sizes(streams.sizes, sized) => None,
                };
                if let Some(mut stream) = stream {
                    end_stream(&mut stream, held, &exit, done).await;
                }
            });
        }
        drop(done);
        let (report, drained) = watch::channel(false);
        tokio::spawn(async move {
            // It ends when the last copy has dropped its sender.
            let _ = undone.recv().await;
            report.send_replace(true);
        });
        Ok(Finished { exit, drained })
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

/// From the host to the process, until either ends. The end of the host's stream closes the pipe; a
/// process that closes its stdin merely ends the copying.
async fn copy_in(mut from: ReadHalf<Box<dyn Stream>>, mut to: Sender) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Gives the terminal the sizes that the host tells. Does not end.
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

/// What becomes of a stream when its process has ended, and others may still hold it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtExit {
    /// What they write is still copied.
    GoOn,
    /// It ends.
    HangUp,
}

/// From the process to the host, until nobody can write any more. What the process has written by its
/// end counts as sent (`done` is dropped) once the pipe was found empty after it. Returns the host's stream,
/// if it can be written still.
async fn copy_out(
    mut from: Receiver,
    mut to: WriteHalf<Box<dyn Stream>>,
    exit: &Exit,
    done: &mut Option<mpsc::Sender<()>>,
    at_exit: AtExit,
) -> Option<WriteHalf<Box<dyn Stream>>> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = if exit.status().is_some() && done.is_some() {
            match rustix::io::read(&from, &mut buffer) {
                Err(rustix::io::Errno::AGAIN) if at_exit == AtExit::HangUp => break,
                Err(rustix::io::Errno::AGAIN) => {
                    *done = None;
                    continue;
                }
                result => result.map_err(io::Error::from),
            }
        } else {
            tokio::select! {
                biased;
                read = from.read(&mut buffer) => read,
                _ = exit.ended(), if done.is_some() => continue,
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

/// Ends the host's stream, to which all was written. That of the `held` process stays open if it is the
/// process's end that has ended it; a process that closes its output and goes on is not held.
async fn end_stream(
    stream: &mut WriteHalf<Box<dyn Stream>>,
    held: Option<i32>,
    exit: &Exit,
    done: Option<mpsc::Sender<()>>,
) {
    if held.is_some_and(|pid| exit.status().is_some() || processes::is_ending(pid)) {
        drop(done);
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}
