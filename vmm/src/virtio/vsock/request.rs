//! The requests of the control socket's clients: lines, and the descriptors that are sent with
//! them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg,
    send,
};

use super::Direction;
use crate::virtio::net::MAX_PAIRS;

/// The longest request line in bytes, with its newline.
const MAX_LINE: usize = 64;

/// The most descriptors in one request: those of a NIC.
const MAX_FDS: usize = 2 * MAX_PAIRS;

/// How stdin, stdout and stderr are used; `None` for one that isn't.
pub(super) type Modes = [Option<Direction>; 3];

/// A client's request.
#[derive(Debug)]
pub(super) enum Request {
    Connect(u32),
    /// The use of each standard stream, and the descriptors of those that are used.
    Attach(Modes, Vec<OwnedFd>),
    /// A request that isn't about streams: its line and descriptors.
    Other(String, Vec<OwnedFd>),
}

/// Why a client is disconnected.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("it left before its request was complete")]
    Left,
    #[error("a line of more than {MAX_LINE} bytes")]
    TooLong,
    #[error("an unknown request")]
    Unknown,
    #[error("{found} descriptors came for {expected} streams")]
    Descriptors { expected: usize, found: usize },
    #[error("its socket failed")]
    Socket(#[from] Errno),
}

/// Sends a short line as a whole, without blocking: the socket's buffer has room for it unless the
/// client doesn't read.
pub(super) fn send_line(socket: BorrowedFd<'_>, line: &[u8]) -> io::Result<()> {
    match send(socket, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)? {
        count if count == line.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Reads a request if it is complete, and nothing beyond its newline, since that may be data of the
/// stream already.
pub(super) fn read_request(socket: BorrowedFd<'_>) -> Result<Option<Request>, RequestError> {
    let mut line = [0; MAX_LINE];
    let seen = match recv(socket, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((seen, _)) => seen,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if seen == 0 {
        return Err(RequestError::Left);
    }
    let Some(newline) = line[..seen].iter().position(|byte| *byte == b'\n') else {
        return if seen == MAX_LINE {
            Err(RequestError::TooLong)
        } else {
            Ok(None)
        };
    };
    let fds = receive_line(socket, newline + 1)?;
    parse_request(&line[..newline], fds).map(Some)
}

/// Receives a line of `len` bytes, which are known to be available, and returns the descriptors
/// that were sent with it.
fn receive_line(socket: BorrowedFd<'_>, len: usize) -> Result<Vec<OwnedFd>, RequestError> {
    let mut fds = Vec::new();
    let mut received = 0;
    while received < len {
        let mut rest = [0; MAX_LINE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut rest[..len - received])],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if message.bytes == 0 {
            return Err(RequestError::Left);
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(RequestError::Descriptors {
                expected: MAX_FDS,
                found: fds.len(),
            });
        }
        received += message.bytes;
    }
    Ok(fds)
}

fn parse_request(line: &[u8], fds: Vec<OwnedFd>) -> Result<Request, RequestError> {
    let line = std::str::from_utf8(line).map_err(|_| RequestError::Unknown)?;
    let words: Vec<_> = line.split(' ').collect();
    let (modes, expected) = match words[..] {
        ["CONNECT", port] if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let port = port.parse().map_err(|_| RequestError::Unknown)?;
            return match fds.len() {
                0 => Ok(Request::Connect(port)),
                found => Err(RequestError::Descriptors { expected: 0, found }),
            };
        }
        ["ATTACH", modes] => {
            let modes = parse_modes(modes)?;
            (modes, modes.iter().flatten().count())
        }
        ["CONNECT" | "ATTACH", ..] => return Err(RequestError::Unknown),
        _ => return Ok(Request::Other(line.to_owned(), fds)),
    };
    match fds.len() {
        found if found == expected && found > 0 => Ok(Request::Attach(modes, fds)),
        found => Err(RequestError::Descriptors { expected, found }),
    }
}

fn parse_modes(word: &str) -> Result<Modes, RequestError> {
    let modes: Vec<_> = word
        .bytes()
        .map(|letter| match letter {
            b'r' => Ok(Some(Direction::ToGuest)),
            b'w' => Ok(Some(Direction::FromGuest)),
            b'd' => Ok(Some(Direction::Duplex)),
            b'-' => Ok(None),
            _ => Err(RequestError::Unknown),
        })
        .collect::<Result<_, _>>()?;
    modes.try_into().map_err(|_| RequestError::Unknown)
}
