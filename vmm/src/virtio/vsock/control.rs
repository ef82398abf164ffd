//! The control socket's server side: who may be a client for how long, and what the request lines say.
//! The protocol is described in the module above.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    accept_with, recv, recvmsg, send,
};

use super::deadlines::Deadline;
use super::muxer::{Muxer, Waiter};
use super::{Direction, Offered};

/// The longest request line in bytes, with its newline.
const MAX_LINE: usize = 64;

/// Clients at a time; more are turned away.
const MAX_CLIENTS: usize = 256;

/// Clients accepted in one turn of the loop.
const ACCEPT_BUDGET: usize = 16;

/// Descriptors in one request.
const MAX_FDS: usize = 3;

/// What a client's line asks for.
#[derive(Debug)]
enum Request {
    Connect(u32),
    /// What to do with each descriptor, and the descriptors there are.
    Attach([Option<Direction>; MAX_FDS], Vec<OwnedFd>),
}

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("it left before its request was complete")]
    Left,
    #[error("a line of more than {MAX_LINE} bytes")]
    TooLong,
    #[error("a line that is neither CONNECT nor ATTACH")]
    Unknown,
    #[error("{found} descriptors came for {expected} streams")]
    Descriptors { expected: usize, found: usize },
    #[error("its socket failed")]
    Socket(#[from] Errno),
}

/// A client whose socket isn't a stream.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// The group it waits for, once it has made its request.
    group: Option<u32>,
}

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    clients: HashMap<u32, Client>,
}

impl Control {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: HashMap::new(),
        })
    }

    /// The sockets of clients, and the one that they come to.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let clients = self
            .clients
            .values()
            .map(|client| client.socket.as_raw_fd());
        clients.chain([self.listener.as_raw_fd()])
    }

    /// Has the loop report new clients with `token`.
    pub fn listen(&self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        ops.add(Events::with_data(&self.listener, token, EventSet::IN))
    }

    /// Accepts some of the clients that wait. On failure (a lack of descriptors or memory) it stops
    /// listening; the caller starts it again after a while.
    pub fn accept(&mut self, muxer: &mut Muxer, ops: &mut EventOps) -> Result<(), io::Error> {
        for _ in 0..ACCEPT_BUDGET {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.admit(socket, muxer, ops),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    let _ = ops.remove(Events::empty(&self.listener));
                    return Err(errno.into());
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, socket: OwnedFd, muxer: &mut Muxer, ops: &mut EventOps) {
        if self.clients.len() >= MAX_CLIENTS {
            return log::warn!("vsock: a control client is turned away: there are {MAX_CLIENTS}");
        }
        let number = match muxer.next_number() {
            Ok(number) => number,
            Err(error) => return log::error!("{error}: a control client is turned away"),
        };
        // All that a stream needs, for the socket may become one.
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if let Err(error) = ops.add(Events::with_data(&socket, number, interest)) {
            return log::warn!("vsock: cannot watch a control client: {error}");
        }
        let client = Client {
            socket,
            group: None,
        };
        self.clients.insert(number, client);
        muxer
            .deadlines
            .set(Deadline::Line(number), muxer.timeouts.line);
    }

    /// An event of a client's socket. `connectable` says whether there is a guest to connect to.
    pub fn on_event(
        &mut self,
        number: u32,
        set: EventSet,
        connectable: bool,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        let Some(client) = self.clients.get(&number) else {
            return; // an event of a socket that was closed in the same turn
        };
        if client.group.is_some() {
            // It has nothing more to say, so whatever it does is to leave.
            if set != EventSet::OUT {
                self.dismiss(number, muxer, ops);
            }
            return;
        }
        match read_request(client.socket.as_fd()) {
            Ok(None) => {}
            Ok(Some(Request::Connect(port))) if connectable => {
                muxer.deadlines.cancel(Deadline::Line(number));
                if let Some(client) = self.clients.remove(&number) {
                    muxer.connect(number, port, client.socket, ops);
                }
            }
            Ok(Some(Request::Connect(_))) => self.dismiss(number, muxer, ops),
            Ok(Some(Request::Attach(modes, fds))) => {
                self.attach(number, modes, fds, muxer, ops);
                let left = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                if set.intersects(left) {
                    self.dismiss(number, muxer, ops);
                }
            }
            Err(error) => {
                log::debug!("vsock: a control client is sent away: {error}");
                self.dismiss(number, muxer, ops);
            }
        }
    }

    fn attach(
        &mut self,
        number: u32,
        modes: [Option<Direction>; MAX_FDS],
        fds: Vec<OwnedFd>,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        muxer.deadlines.cancel(Deadline::Line(number));
        let streams = modes.into_iter().flatten().zip(fds).collect();
        let (group, offered) = match muxer.attach(streams, Waiter::Client(number)) {
            Ok(attached) => attached,
            Err(error) => {
                log::warn!("{error}: a control client is sent away");
                return self.dismiss(number, muxer, ops);
            }
        };
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        client.group = Some(group);
        let mut offered = offered.into_iter();
        let [a, b, c] = modes.map(|mode| match mode.and_then(|_| offered.next()) {
            Some(Offered { port, token }) => format!("{port}:{:032x}", u128::from_be_bytes(token)),
            None => "0".to_owned(),
        });
        let answer = format!("OK {a} {b} {c}\n");
        if send_line(client.socket.as_fd(), answer.as_bytes()).is_err() {
            self.dismiss(number, muxer, ops);
        }
    }

    /// Tells a client that its streams have ended.
    pub fn done(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        if let Some(client) = self.clients.get(&number) {
            // A client that can't be told has left.
            let _ = send_line(client.socket.as_fd(), b"DONE\n");
        }
        self.dismiss(number, muxer, ops);
    }

    /// A client has taken too long to say what it wants.
    pub fn on_line_deadline(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        log::debug!("vsock: a control client is sent away: no request within its time");
        self.dismiss(number, muxer, ops);
    }

    fn dismiss(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        if let Some(client) = self.clients.remove(&number) {
            let _ = ops.remove(Events::empty(&client.socket));
            muxer.deadlines.cancel(Deadline::Line(number));
            if let Some(group) = client.group {
                muxer.orphan(group);
            }
        }
    }
}

/// Sends a short line, whole, without waiting: it fits in any socket's buffer unless something is
/// wrong.
pub(super) fn send_line(socket: BorrowedFd<'_>, line: &[u8]) -> io::Result<()> {
    match send(socket, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)? {
        count if count == line.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Reads a request if it is there, and nothing behind it: that may be the stream's already.
fn read_request(socket: BorrowedFd<'_>) -> Result<Option<Request>, RequestError> {
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

/// Takes a line of `len` bytes, which is known to be there, from the socket, with the descriptors that
/// came along.
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
        _ => return Err(RequestError::Unknown),
    };
    match fds.len() {
        found if found == expected && found > 0 => Ok(Request::Attach(modes, fds)),
        found => Err(RequestError::Descriptors { expected, found }),
    }
}

fn parse_modes(word: &str) -> Result<[Option<Direction>; MAX_FDS], RequestError> {
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
