//! A terminal of the host that a process of the container is joined to: its size follows into the guest.
//!
//! The guest's terminal is a pseudo-terminal there, which does all that terminals do; what it reads and
//! writes goes through a stream that is not one. Only the size has to be told.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use hull_protocol::terminal::Size;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

/// Both ends of what a process's terminal is joined to, for whoever hands them to the VMM.
#[derive(Debug, Serialize, Deserialize)]
pub struct TerminalStreams<Fd = OwnedFd> {
    /// What is typed and shown, both ways.
    pub text: Fd,
    /// The terminal's sizes.
    pub sizes: Fd,
}

/// The host's side of the terminal of a sandbox's own container, as the VMM process is given it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostTerminal<Fd = OwnedFd> {
    /// A pseudo-terminal of which an engine has the master. The VMM process follows its size.
    Pty(Fd),
    /// The ends of a relay, which follows the size.
    Relayed(TerminalStreams<Fd>),
}

impl<Fd> HostTerminal<Fd> {
    /// The same, with its descriptors in another form.
    ///
    /// # Errors
    /// When `change` fails.
    pub fn with<'a, To, E>(
        &'a self,
        mut change: impl FnMut(&'a Fd) -> Result<To, E>,
    ) -> Result<HostTerminal<To>, E> {
        Ok(match self {
            Self::Pty(slave) => HostTerminal::Pty(change(slave)?),
            Self::Relayed(TerminalStreams { text, sizes }) => {
                HostTerminal::Relayed(TerminalStreams {
                    text: change(text)?,
                    sizes: change(sizes)?,
                })
            }
        })
    }
}

/// A terminal of the host, and the pipe by which the guest is told its sizes.
#[derive(Debug)]
pub struct Sizes {
    terminal: OwnedFd,
    guest: OwnedFd,
}

impl Sizes {
    /// The sizes of this terminal. Also returns the end of the pipe that is the guest's.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn of(terminal: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, guest) = rustix::pipe::pipe_with(flags)?;
        Ok((Self { terminal, guest }, reader))
    }

    /// The sizes of this terminal, which is also what is typed and shown. Returns both the guest's ends.
    ///
    /// # Errors
    /// As [`Sizes::of`].
    pub fn with_text(terminal: OwnedFd) -> io::Result<(Self, TerminalStreams)> {
        let (own, sizes) = Self::of(terminal.try_clone()?)?;
        let text = terminal;
        Ok((own, TerminalStreams { text, sizes }))
    }

    /// In another process, from what [`Sizes::into_parts`] has given there.
    pub fn from_parts([terminal, guest]: [OwnedFd; 2]) -> Self {
        Self { terminal, guest }
    }

    /// What another process follows them with.
    pub fn into_parts(self) -> [OwnedFd; 2] {
        [self.terminal, self.guest]
    }

    /// Makes the terminal the controlling one of this process, which leads a session: by that it learns
    /// of each change.
    ///
    /// # Errors
    /// When the terminal is another session's.
    pub fn take_control(&self) -> io::Result<()> {
        Ok(rustix::process::ioctl_tiocsctty(&self.terminal)?)
    }

    /// Tells the guest the size as it is. A terminal whose size nobody has set has none to tell.
    pub fn tell(&self) {
        let Ok(size) = rustix::termios::tcgetwinsize(&self.terminal) else {
            return; // its other side is gone, which its stream tells too
        };
        let size = Size {
            rows: size.ws_row,
            columns: size.ws_col,
        };
        if size.rows == 0 && size.columns == 0 {
            return;
        }
        match rustix::io::write(&self.guest, &size.encode()) {
            Ok(_) | Err(Errno::PIPE) => {}
            // A guest that doesn't read thousands of sizes does not get the next one either.
            Err(e) => log::debug!("a terminal's size is not told: {e}"),
        }
    }

    /// What it needs open.
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.terminal.as_raw_fd(), self.guest.as_raw_fd()]
    }

    /// The terminal itself.
    pub fn terminal(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};

    #[test]
    fn a_size_is_told_once_there_is_one() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).expect("a terminal");
        unlockpt(&master).expect("unlock");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("its other side");
        let (sizes, guest) = Sizes::of(slave).expect("pipe");
        let told = || {
            let mut record = [0; 8];
            rustix::io::read(&guest, &mut record).map(|length| record[..length].to_vec())
        };
        sizes.tell();
        assert_eq!(told(), Err(Errno::AGAIN));
        let size = Winsize {
            ws_row: 7,
            ws_col: 9,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("resize");
        sizes.tell();
        assert_eq!(told(), Ok(vec![7, 0, 9, 0]));
    }
}
