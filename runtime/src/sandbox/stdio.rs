//! A process's standard streams: handed to the VMM, which joins each to a vsock port.

use std::fmt;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hull_vmm::virtio::vsock::{Direction, Offered, Token};
use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::socket::{self, CALL_TIMEOUT};
use super::{AgentError, TerminalStreams};
use crate::host::send_with_fds;
use crate::store::SandboxDir;

/// Which way the bytes of stdin, stdout and stderr go.
pub const DIRECTIONS: [Direction; 3] = [
    Direction::ToGuest,
    Direction::FromGuest,
    Direction::FromGuest,
];

/// The longest line that a VMM answers with, in bytes.
const LONGEST_ANSWER: usize = 160;

/// Where the guest's agent finds a stream.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStream {
    /// The host's vsock port.
    pub port: u32,
    /// What the agent sends there first; nobody else in the guest may learn it.
    pub token: Token,
}

/// Without the token, which belongs in no log.
impl fmt::Debug for HostStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.port)
    }
}

impl From<Offered> for HostStream {
    fn from(Offered { port, token }: Offered) -> Self {
        Self { port, token }
    }
}

/// Where the guest's agent finds a process's stdio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offer {
    /// As stdin, stdout and stderr.
    Streams([Option<HostStream>; 3]),
    /// As a terminal.
    Terminal {
        /// What is typed and shown.
        text: Option<HostStream>,
        /// Its sizes.
        sizes: Option<HostStream>,
    },
}

impl Offer {
    /// From the streams that the VMM offers for what it was handed, in its order.
    pub fn of(terminal: bool, [first, second, third]: [Option<HostStream>; 3]) -> Self {
        if terminal {
            Self::Terminal {
                text: first,
                sizes: second,
            }
        } else {
            Self::Streams([first, second, third])
        }
    }
}

/// What a process's stdio is to be joined to.
#[derive(Debug)]
pub enum Stdio<'a> {
    /// These, as stdin, stdout and stderr.
    Streams([BorrowedFd<'a>; 3]),
    /// A terminal.
    Terminal(TerminalStreams),
}

/// Standard streams that a VMM has taken over.
#[derive(Debug)]
pub struct AttachedStdio {
    vmm: BufReader<UnixStream>,
    offer: Offer,
}

impl AttachedStdio {
    /// Hands a process's stdio to the VMM of the sandbox whose folder this is.
    ///
    /// # Errors
    /// When the VMM doesn't answer.
    pub fn attach(dir: &SandboxDir, stdio: Stdio<'_>) -> Result<Self, AgentError> {
        let terminal = matches!(stdio, Stdio::Terminal(_));
        let (request, own): (&[u8], Vec<OwnedFd>) = match stdio {
            Stdio::Streams(fds) => {
                let own = fds.iter().map(|fd| private_description(*fd));
                let own = own.collect::<io::Result<_>>();
                let own = own.map_err(AgentError::Client)?;
                (b"ATTACH rww\n", own)
            }
            Stdio::Terminal(streams) => (b"ATTACH dr-\n", vec![streams.text, streams.sizes]),
        };
        let (vmm, streams) = attach_streams(&dir.socket_path(), request, &own)?;
        let offer = Offer::of(terminal, streams);
        Ok(Self { vmm, offer })
    }

    /// Where the guest's agent finds them.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Waits until everything that the process wrote has reached this side.
    ///
    /// There is no time limit: the reader of the output is the user's, and may take its time. The VMM's
    /// death ends the wait.
    pub fn wait_flushed(self) {
        wait_flushed(self.into_connection());
    }

    /// The connection that they are held by, for another process to hold, and to wait on as this does. The VMM says
    /// nothing more on it before they have come to their end.
    pub fn into_connection(self) -> UnixStream {
        self.vmm.into_inner()
    }
}

/// Waits as [`AttachedStdio::wait_flushed`] does.
pub fn wait_flushed(connection: UnixStream) {
    let _ = socket::answer(&mut BufReader::new(connection), LONGEST_ANSWER, None); // or its end
}

/// Hands streams to the VMM with this control socket by an `ATTACH` (`hull_vmm::virtio::vsock`). Returns where the guest's agent
/// finds each of them, and the connection that they are held by.
///
/// # Errors
/// When the VMM doesn't answer.
pub(super) fn attach_streams(
    control: &Path,
    request: &[u8],
    streams: &[OwnedFd],
) -> Result<(BufReader<UnixStream>, [Option<HostStream>; 3]), AgentError> {
    let failed = |what| socket::failed(what, CALL_TIMEOUT);
    let mut vmm = socket::dial(control, CALL_TIMEOUT)?;
    let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    send_with_fds(&mut vmm, request, &fds).map_err(failed("take over streams"))?;
    let mut vmm = BufReader::new(vmm);
    let line = socket::answer(&mut vmm, LONGEST_ANSWER, Some(CALL_TIMEOUT));
    let line = line.map_err(failed("give streams ports"))?;
    let streams = parse(&line).ok_or(AgentError::NotServing)?;
    Ok((vmm, streams))
}

fn parse(line: &str) -> Option<[Option<HostStream>; 3]> {
    let mut streams = line.trim_end().strip_prefix("OK ")?.split(' ');
    let mut next = || match streams.next()? {
        "0" => Some(None),
        stream => {
            let (port, token) = stream.split_once(':')?;
            let (port, token) = (port.parse().ok()?, u128::from_str_radix(token, 16).ok()?);
            let token = token.to_be_bytes();
            Some(Some(HostStream { port, token }))
        }
    };
    Some([next()?, next()?, next()?])
}

/// The same pipe or terminal as `fd`, by an open file description of our own, so that the VMM can make
/// it non-blocking without other processes noticing. Anything else is shared as it is: a file's offset
/// must stay common to all who write to it, and a socket can't be opened again.
///
/// # Errors
/// When there are too many open files.
pub fn private_description(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let stat = rustix::fs::fstat(fd)?;
    let reopen = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => rustix::termios::isatty(fd),
        _ => false,
    };
    if reopen {
        let access = rustix::fs::fcntl_getfl(fd)? & OFlags::RWMODE;
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(own);
        }
    }
    fd.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pipe_is_opened_again_without_touching_the_other_description() {
        let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
        let own = private_description(reader.as_fd()).expect("reopen");
        let nonblocking = |fd: &OwnedFd| {
            rustix::fs::fcntl_getfl(fd)
                .expect("flags")
                .contains(OFlags::NONBLOCK)
        };
        assert!(nonblocking(&own) && !nonblocking(&reader));
    }

    #[test]
    fn a_file_keeps_its_common_offset() {
        let mut file = tempfile::tempfile().expect("file");
        let own = private_description(file.as_fd()).expect("dup");
        file.write_all(b"1234").expect("write");
        assert_eq!(rustix::fs::tell(&own).expect("tell"), 4);
    }

    #[test]
    fn streams_are_read_from_the_answer() {
        let stream = |port, byte| {
            let token = [byte; 16];
            Some(HostStream { port, token })
        };
        let (a, b) = ("0a".repeat(16), "ff".repeat(16));
        let line = format!("OK 4294967295:{a} 0 65538:{b}\n");
        let streams = [stream(u32::MAX, 10), None, stream(65538, 255)];
        assert_eq!(parse(&line), Some(streams));
        for bad in ["NO\n", "OK 1 2 3\n", "OK 0 0\n", "OK 1:x 0 0\n"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let longest = format!("OK {0} {0} {0}\n", format_args!("{}:{b}", u32::MAX));
        assert!(longest.len() <= LONGEST_ANSWER);
    }
}
