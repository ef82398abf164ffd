//! What `create`, `run` and `exec` do for a process with a terminal.
//!
//! An engine that goes on by itself gets the master of a pseudo-terminal through its `--console-socket`,
//! and the VMM holds the other side. In the foreground there is the user's terminal already: it is made
//! raw, as the guest's does all that terminals do, and a [`Relay`] copies between it and the VMM. So when
//! this process dies, the container's terminal hangs up, as with runc.

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

use hull_runtime::sandbox::{SandboxError, Sizes, TerminalStreams};

/// The unit of copying, in bytes.
const BUFFER: usize = 32 << 10;

/// What can go wrong with a terminal.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Nobody would see the terminal; the words are runc's.
    #[error("cannot allocate tty if hull will detach without setting console socket")]
    NoConsoleSocket,
    /// There is nothing to send to it; likewise.
    #[error("cannot use console socket if hull will not detach or allocate tty")]
    NoTerminal,
    /// In the foreground, without one of the user's.
    #[error(
        "process.terminal is true, and neither stdin, stdout nor stderr is a terminal, nor is there a \
         /dev/tty: run hull from a terminal, or set process.terminal to false"
    )]
    NotATerminal,
    /// The host's side of the terminal.
    #[error(transparent)]
    Host(#[from] SandboxError),
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| SandboxError::host(what)(source.into()).into()
}

/// Who is at the host's side of a process's terminal.
#[derive(Debug, Clone, Copy)]
pub enum Console<'a> {
    /// The process has none.
    None,
    /// The user, through this process.
    Foreground,
    /// An engine, which gets it through this socket.
    Engine(&'a Path),
}

impl<'a> Console<'a> {
    /// Who it is, by runc's rules: `detached` says whether this process ends before the container's.
    ///
    /// # Errors
    /// When a terminal and a console socket don't come together.
    pub fn of(
        terminal: bool,
        detached: bool,
        socket: Option<&'a Path>,
    ) -> Result<Self, TerminalError> {
        match (terminal, detached, socket) {
            (true, true, Some(socket)) => Ok(Self::Engine(socket)),
            (true, true, None) => Err(TerminalError::NoConsoleSocket),
            (_, _, Some(_)) => Err(TerminalError::NoTerminal),
            (true, false, None) => Ok(Self::Foreground),
            (false, _, None) => Ok(Self::None),
        }
    }
}

fn make_raw(terminal: BorrowedFd<'_>) -> rustix::io::Result<Termios> {
    let before = tcgetattr(terminal)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(terminal, OptionalActions::Now, &raw)?;
    Ok(before)
}

/// Whether this process may change a terminal without being stopped: unless it is the session's, and
/// another process group has it (a shell's job control).
fn is_foreground(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).map_or(true, |group| group == getpgrp())
}

/// The user's terminal in the foreground, joined to a stream of the VMM's.
#[derive(Debug)]
pub struct Relay {
    stream: UnixStream,
    sizes: Sizes,
}

impl Relay {
    /// Makes it. Also returns the VMM's ends.
    ///
    /// # Errors
    /// When the user has no terminal.
    pub fn new() -> Result<(Self, TerminalStreams), TerminalError> {
        let (stream, text) = UnixStream::pair().map_err(host("make a socket pair"))?;
        let (sizes, guest) = Sizes::of(users_terminal()?).map_err(host("make a pipe"))?;
        let ends = TerminalStreams {
            text: text.into(),
            sizes: guest,
        };
        Ok((Self { stream, sizes }, ends))
    }

    /// Makes the terminal raw and begins to copy.
    ///
    /// In the background of a shell the terminal is another job's: its mode is left alone, and nothing is
    /// read from it, then or later.
    ///
    /// # Errors
    /// When there can't be a further thread, or the terminal doesn't obey.
    pub fn start(self) -> Result<RunningRelay, TerminalError> {
        let Self { stream, sizes } = self;
        let again = || stream.try_clone().map_err(host("duplicate a socket"));
        let (to_guest, from_guest) = (again()?, again()?);
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
        let stdin = own(io::stdin().as_fd()).map_err(host("duplicate stdin"))?;
        let stdout = own(io::stdout().as_fd()).map_err(host("duplicate stdout"))?;
        let spawn = |name: &str, copy: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(copy).map_err(host("start a thread"))
        };
        let before = is_foreground(sizes.terminal()).then(|| make_raw(sizes.terminal()));
        let before = before.transpose();
        let before = before.map_err(host("make the terminal raw"))?;
        let mut relay = RunningRelay {
            sizes,
            before,
            output: None,
        };
        // The end of stdin is not the terminal's: what runs there goes on. The thread ends with the process.
        let keyboard = move || {
            // In the background reading fails then, and does not stop the process.
            let mut blocked = SigSet::empty();
            blocked.add(Signal::SIGTTIN);
            let _ = blocked.thread_block();
            copy(stdin, to_guest);
        };
        spawn("keyboard", Box::new(keyboard))?;
        let screen = move || {
            if let Ok(end) = from_guest.try_clone() {
                copy(from_guest, stdout);
                // Where nobody can see it any more, it hangs up.
                let _ = end.shutdown(Shutdown::Both);
            }
        };
        relay.output = Some(spawn("screen", Box::new(screen))?);
        Ok(relay)
    }
}

/// The first that is one: of the standard streams, then the controlling one.
fn users_terminal() -> Result<OwnedFd, TerminalError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let standard = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let Some(terminal) = standard.iter().find(|fd| isatty(fd)) {
        let own = terminal.try_clone_to_owned();
        return own.map_err(host("duplicate the terminal"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).map_err(|_| TerminalError::NotATerminal)
}

/// Copies until either side has ended.
fn copy(mut from: impl io::Read, mut to: impl Write) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if to.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A terminal that is raw until this is dropped.
#[derive(Debug)]
pub struct RunningRelay {
    sizes: Sizes,
    /// Its mode, if that was changed.
    before: Option<Termios>,
    output: Option<JoinHandle<()>>,
}

impl RunningRelay {
    /// The sizes of the user's terminal.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Waits until all that the process has written is on the terminal. The VMM must have closed its end
    /// of the stream, or be about to.
    pub fn finish(mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        let terminal = self.sizes.terminal();
        // A shell that has taken it back has set its mode.
        if let Some(before) = self.before.as_ref().filter(|_| is_foreground(terminal)) {
            let _ = tcsetattr(terminal, OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_somebody_at_its_other_side() {
        let socket = Some(Path::new("/s"));
        let of = |terminal, detached, socket| Console::of(terminal, detached, socket);
        assert!(matches!(of(true, true, socket), Ok(Console::Engine(_))));
        assert!(matches!(of(true, false, None), Ok(Console::Foreground)));
        assert!(matches!(of(false, true, None), Ok(Console::None)));
        assert!(matches!(
            of(true, true, None),
            Err(TerminalError::NoConsoleSocket)
        ));
        for (terminal, detached) in [(true, false), (false, true), (false, false)] {
            let refused = of(terminal, detached, socket);
            assert!(matches!(refused, Err(TerminalError::NoTerminal)));
        }
    }
}
