//! The server side of the control socket: it accepts clients, limits their number and their time,
//! and executes their requests. [`request`](super::request) parses these; the parent module
//! describes the protocol.

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

/// The most clients at a time; others are rejected.
const MAX_CLIENTS: usize = 256;

/// Clients accepted in one turn of the event loop.
const ACCEPT_BUDGET: usize = 16;

/// A client whose socket has not become a stream by `CONNECT`.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// The group of streams that it waits for, after an `ATTACH`.
    group: Option<u32>,
}

/// The handler of requests that aren't about streams, if there is one.
#[derive(Default)]
struct OtherHandler(Option<Box<dyn FnMut(OtherRequest) + Send>>);

impl fmt::Debug for OtherHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OtherHandler").finish_non_exhaustive()
    }
}

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    clients: HashMap<u32, Client>,
    other_handler: OtherHandler,
}

impl Control {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: HashMap::new(),
            other_handler: OtherHandler::default(),
        })
    }

    /// Sets the handler of requests that aren't about streams.
    pub fn set_other_handler(&mut self, handler: Box<dyn FnMut(OtherRequest) + Send>) {
        self.other_handler = OtherHandler(Some(handler));
    }

    /// The sockets of the clients, and the listening socket.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let clients = self
            .clients
            .values()
            .map(|client| client.socket.as_raw_fd());
        clients.chain([self.listener.as_raw_fd()])
    }

    /// Makes the loop report new clients with `token` as the event data.
    pub fn listen(&self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        ops.add(Events::with_data(&self.listener, token, EventSet::IN))
    }

    /// Accepts a bounded number of clients. If that fails (for lack of descriptors or memory), the
    /// loop stops watching the listening socket; the caller must call [`Self::listen`] again after
    /// a while.
    pub fn accept(&mut self, muxer: &mut Muxer, ops: &mut EventOps) -> Result<(), io::Error> {
        for _ in 0..ACCEPT_BUDGET {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.add_client(socket, muxer, ops),
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

    fn add_client(&mut self, socket: OwnedFd, muxer: &mut Muxer, ops: &mut EventOps) {
        if self.clients.len() >= MAX_CLIENTS {
            return log::warn!("vsock: a control client is turned away: there are {MAX_CLIENTS}");
        }
        let number = match muxer.next_number() {
            Ok(number) => number,
            Err(error) => return log::error!("{error}: a control client is turned away"),
        };
        // All events that a stream needs, since the socket may become one.
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
            .set(Deadline::RequestLine(number), muxer.timeouts.request_line);
    }

    /// Handles an event of a client's socket. `connectable` says whether the guest's driver is
    /// active.
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
            // It has nothing more to send: any event but OUT means that it has left.
            if set != EventSet::OUT {
                self.disconnect(number, muxer, ops);
            }
            return;
        }
        match read_request(client.socket.as_fd()) {
            Ok(None) => {}
            Ok(Some(Request::Connect(port))) if connectable => {
                muxer.deadlines.cancel(Deadline::RequestLine(number));
                if let Some(client) = self.clients.remove(&number) {
                    muxer.connect(number, port, client.socket, ops);
                }
            }
            Ok(Some(Request::Connect(_))) => self.disconnect(number, muxer, ops),
            Ok(Some(Request::Attach(modes, fds))) => {
                self.attach(number, modes, fds, muxer, ops);
                let left = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                if set.intersects(left) {
                    self.disconnect(number, muxer, ops);
                }
            }
            Ok(Some(Request::Other(line, descriptors))) => {
                self.pass_to_handler(number, line, descriptors, muxer, ops);
            }
            Err(error) => self.reject(number, &error, muxer, ops),
        }
    }

    /// Passes a client with its request to the handler.
    fn pass_to_handler(
        &mut self,
        number: u32,
        line: String,
        descriptors: Vec<OwnedFd>,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        let Some(handler) = &mut self.other_handler.0 else {
            return self.reject(number, &RequestError::Unknown, muxer, ops);
        };
        let Some(client) = self.clients.remove(&number) else {
            return;
        };
        let _ = ops.remove(Events::empty(&client.socket));
        muxer.deadlines.cancel(Deadline::RequestLine(number));
        handler(OtherRequest {
            line,
            descriptors,
            client: ControlClient(client.socket),
        });
    }

    fn reject(&mut self, number: u32, error: &RequestError, muxer: &mut Muxer, ops: &mut EventOps) {
        log::debug!("vsock: a control client is sent away: {error}");
        self.disconnect(number, muxer, ops);
    }

    fn attach(
        &mut self,
        number: u32,
        modes: Modes,
        fds: Vec<OwnedFd>,
        muxer: &mut Muxer,
        ops: &mut EventOps,
    ) {
        muxer.deadlines.cancel(Deadline::RequestLine(number));
        let streams = modes.into_iter().flatten().zip(fds).collect();
        let (group, offered) = match muxer.attach(streams, Waiter::Client(number)) {
            Ok(attached) => attached,
            Err(error) => {
                log::warn!("{error}: a control client is sent away");
                return self.disconnect(number, muxer, ops);
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
            self.disconnect(number, muxer, ops);
        }
    }

    /// Sends `DONE` to a client whose streams have all ended, and disconnects it.
    pub fn finish(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        if let Some(client) = self.clients.get(&number) {
            // Fails if the client has left.
            let _ = send_line(client.socket.as_fd(), b"DONE\n");
        }
        self.disconnect(number, muxer, ops);
    }

    /// Disconnects a client that did not send a request in time.
    pub fn on_line_deadline(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        log::debug!("vsock: a control client is sent away: no request within its time");
        self.disconnect(number, muxer, ops);
    }

    fn disconnect(&mut self, number: u32, muxer: &mut Muxer, ops: &mut EventOps) {
        if let Some(client) = self.clients.remove(&number) {
            let _ = ops.remove(Events::empty(&client.socket));
            muxer.deadlines.cancel(Deadline::RequestLine(number));
            if let Some(group) = client.group {
                muxer.client_left(group);
            }
        }
    }
}
