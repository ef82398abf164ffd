//! The engine's `--console-socket`: it gets the master of a pseudo-terminal, as from runc, and the VM process
//! holds the other side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::Error;
use crate::host::send_with_fds;
use crate::sandbox::{SandboxError, Sizes, TerminalStreams};

/// Why an engine gets no terminal.
#[derive(Debug, thiserror::Error)]
#[error("--console-socket {}: cannot {what}", path.display())]
pub struct ConsoleSocketError {
    /// As the user named it.
    path: PathBuf,
    /// The step.
    what: &'static str,
    /// What the system said.
    #[source]
    source: io::Error,
}

/// Makes a pseudo-terminal and sends its master to an engine. Returns the other side, raw and
/// non-blocking.
///
/// # Errors
/// When the socket doesn't take it.
pub fn send_terminal(path: &Path) -> Result<OwnedFd, ConsoleSocketError> {
    let failed = |what| {
        move |source| ConsoleSocketError {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let errno = |what| move |source: Errno| failed(what)(source.into());
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(errno("make a pseudo-terminal"))?;
    unlockpt(&master).map_err(errno("unlock the pseudo-terminal"))?;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(errno("open the pseudo-terminal"))?;
    make_raw(slave.as_fd()).map_err(errno("make the pseudo-terminal raw"))?;
    rustix::io::ioctl_fionbio(&slave, true)
        .map_err(errno("make the pseudo-terminal non-blocking"))?;
    let name = ptsname(&master, Vec::new()).map_err(errno("name the pseudo-terminal"))?;

    let mut socket = UnixStream::connect(path).map_err(failed("connect to it"))?;
    send_with_fds(&mut socket, name.as_bytes(), &[master.as_fd()])
        .map_err(failed("send it the terminal"))?;
    Ok(slave)
}

/// Does so for a process of this one's, which follows the terminal's size: returns the sizes, and what the process's
/// stdio is to be joined to.
///
/// # Errors
/// When the socket doesn't take it, or there are too many open files.
pub fn send_followed_terminal(path: &Path) -> Result<(Sizes, TerminalStreams), Error> {
    let followed = Sizes::with_text(send_terminal(path)?);
    Ok(followed.map_err(SandboxError::host("follow the terminal's size"))?)
}

fn make_raw(terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut raw = tcgetattr(terminal)?;
    raw.make_raw();
    tcsetattr(terminal, OptionalActions::Now, &raw)
}
