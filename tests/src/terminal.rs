//! A pseudo-terminal with a test at its keyboard, and the socket on which a runtime hands out one.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::process::{Stream, limit, readable};

/// A terminal, from the side of who types and looks.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    screen: Stream,
}

impl Terminal {
    /// A new one of 24 lines and 80 columns, and the side that is a program's.
    pub fn new() -> (Self, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("there are pseudo-terminals");
        unlockpt(&master).expect("ours can be unlocked");
        let program = ioctl_tiocgptpeer(&master, flags).expect("its other side can be opened");
        let terminal = Self::of(master);
        terminal.resize(24, 80);
        (terminal, program)
    }

    /// One whose master somebody else has made.
    pub fn of(master: OwnedFd) -> Self {
        let keyboard = File::from(master);
        let screen = Stream::new(keyboard.try_clone().expect("a descriptor more"));
        Self { keyboard, screen }
    }

    /// Types.
    pub fn types(&self, text: impl AsRef<[u8]>) {
        let mut keyboard = &self.keyboard;
        keyboard.write_all(text.as_ref()).expect("somebody reads");
    }

    /// Waits until this is shown. Returns all that was shown since the last call.
    #[track_caller]
    pub fn shows(&mut self, text: &str) -> String {
        self.screen.until(text)
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keyboard, size).expect("it is a terminal");
    }

    /// How it treats what is typed and shown.
    pub fn mode(&self) -> Termios {
        tcgetattr(&self.keyboard).expect("it is a terminal")
    }

    /// Another handle to the keyboard, for a thread that types.
    pub fn keyboard(&self) -> File {
        self.keyboard.try_clone().expect("a descriptor more")
    }
}

/// The same command with a terminal as its standard streams, and as its session's.
pub fn on_terminal(command: &Command, program: OwnedFd) -> Command {
    let again = || Stdio::from(program.try_clone().expect("a descriptor more"));
    let mut session = Command::new("setsid");
    session
        .args(["--ctty", "--wait"])
        .arg(command.get_program())
        .args(command.get_args());
    session.stdin(again()).stdout(again()).stderr(again());
    session
}

/// A `--console-socket`.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at this path.
    pub fn listen(path: &Path) -> Self {
        Self {
            listener: UnixListener::bind(path).expect("a socket can be made"),
            path: path.to_owned(),
        }
    }

    /// Its path as a word.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// The terminal that was sent to it.
    pub fn receive(&self) -> Terminal {
        let listener = self.listener.as_fd().try_clone_to_owned();
        let came = readable(&listener.expect("a descriptor more"), limit());
        assert!(came, "no terminal came to {}", self.path.display());
        let (socket, _) = self.listener.accept().expect("a connection is there");
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [IoSliceMut::new(&mut name)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&socket, &mut name, &mut control, flags).expect("a message comes");
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Terminal::of(fds.next().expect("a terminal comes with it"))
    }
}
