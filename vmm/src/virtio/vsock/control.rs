//! The control socket's server side: who may be a client for how long, and what becomes of the requests.
//! What they say is [`request`](super::request)'s; the protocol is described in the module above.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::deadlines::Deadline;
use super::muxer::{Muxer, Waiter};
use super::request::{Modes, Request, RequestError, read_request, send_line};
use super::{ControlClient, Offered, OtherRequest};

/// Clients at a time; more are turned away.
const MAX_CLIENTS: usize = 256;

/// Clients accepted in one turn of the loop.
const ACCEPT_BUDGET: usize = 16;

/// A client whose socket isn't a stream.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// The group it waits for, once it has made its request.
    group: Option<u32>,
}

/// Who takes the requests that aren't about streams; nobody at first.
#[derive(Default)]
struct Others(Option<Box<dyn FnMut(OtherRequest) + Send>>);

impl fmt::Debug for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Others").finish_non_exhaustive()
    }
}

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    clients: HashMap<u32, Client>,
    others: Others,
}

impl Control {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: HashMap::new(),
            others: Others::default(),
        })
    }

    /// Has somebody take the requests that aren't about streams.
    pub fn on_others(&mut self, taker: Box<dyn FnMut(OtherRequest) + Send>) {
        self.others = Others(Some(taker));
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
            Ok(Some(Request::Other(line, descriptors))) => {
                self.pass_on(number, line, descriptors, muxer, ops);
            }
            Err(error) => self.send_away(number, &error, muxer, ops),
        }
    }

    /// Gives a client away with its request, to who takes such requests.
    fn pass_on(
        &mut self,
        number: u32,
        line: String,
        descriptors: Vec<OwnedFd>,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        let Some(taker) = &mut self.others.0 else {
            return self.send_away(number, &RequestError::Unknown, muxer, ops);
        };
        let Some(client) = self.clients.remove(&number) else {
            return;
        };
        let _ = ops.remove(Events::empty(&client.socket));
        muxer.deadlines.cancel(Deadline::Line(number));
        taker(OtherRequest {
            line,
            descriptors,
            client: ControlClient(client.socket),
        });
    }

    fn send_away(
        &mut self,
        number: u32,
        error: &RequestError,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        log::debug!("vsock: a control client is sent away: {error}");
        self.dismiss(number, muxer, ops);
    }

    fn attach(
        &mut self,
        number: u32,
        modes: Modes,
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
