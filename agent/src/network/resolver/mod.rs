//! The resolver that a container has at 127.0.0.11, where docker's user-defined networks have theirs: the agent stands
//! for it in the container's network namespace, and passes what it is asked to the host.
//!
//! Docker's listens in the network namespace that the container has on the host, at an address of that one's own `lo`,
//! which no packet of the container's can reach. The VM process has sockets there ([`hull_protocol::resolver`]).
//! `sockets` are those in the guest, `queries` knows who has asked what.
//!
//! Each question goes to docker's resolver as a datagram, also one that came on a connection. So an answer that doesn't
//! fit into a datagram as long as the question allows comes with the mark that it is cut off (TC), on a connection too:
//! the connection that the client then makes tells it no more. On the host a connection couldn't be kept for later
//! questions, as the resolver closes one that is idle, and nobody there may make another.

mod queries;
mod sockets;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hull_protocol::resolver::{MAX_MESSAGE, PREFIX};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Error;
use crate::transport::Stream;
use queries::{Client, Queries, TIMEOUT};
use sockets::{Answers, Sockets};

/// The most connections of the container's at a time; further ones wait until one of these ends.
const MOST_CONNECTIONS: usize = 16;

/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long accepting pauses after it failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// A relay, until it is dropped, or the host ends the stream.
#[derive(Debug)]
pub struct Resolver(JoinHandle<()>);

impl Drop for Resolver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Resolver {
    /// Stands for the resolver in a network namespace, the guest's own without one, and asks on that stream of the host's.
    ///
    /// # Errors
    /// When the kernel refuses one of its sockets.
    pub async fn start(
        namespace: Option<Arc<OwnedFd>>,
        host: Box<dyn Stream>,
    ) -> Result<Self, Error> {
        let failed = || Error::io("listen in the place of the host's resolver");
        let sockets = open(namespace).await.map_err(failed())?;
        let (from_host, to_host) = tokio::io::split(host);
        let relay = Relay::new(sockets, to_host).map_err(failed())?;
        Ok(Self(tokio::spawn(relay.run(from_host))))
    }
}

/// Opens the sockets, on a thread that enters the namespace and then ends.
async fn open(namespace: Option<Arc<OwnedFd>>) -> io::Result<Sockets> {
    let (done, outcome) = oneshot::channel();
    let work = move || {
        let open = || {
            if let Some(namespace) = &namespace {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind)?;
            }
            Sockets::open()
        };
        let _ = done.send(open()); // the caller may have gone
    };
    thread::Builder::new().name("resolver".into()).spawn(work)?;
    outcome.await.map_err(io::Error::other)?
}

/// What the parts of a relay share.
struct Relay {
    datagrams: UdpSocket,
    connections: TcpListener,
    answers: Answers,
    _steering: OwnedFd,
    queries: Mutex<Queries>,
    to_host: tokio::sync::Mutex<WriteHalf<Box<dyn Stream>>>,
}

impl Relay {
    fn new(sockets: Sockets, to_host: WriteHalf<Box<dyn Stream>>) -> io::Result<Self> {
        Ok(Self {
            datagrams: UdpSocket::from_std(sockets.datagrams)?,
            connections: TcpListener::from_std(sockets.connections)?,
            answers: sockets.answers,
            _steering: sockets.steering,
            queries: Mutex::default(),
            to_host: tokio::sync::Mutex::new(to_host),
        })
    }

    async fn run(self, from_host: ReadHalf<Box<dyn Stream>>) {
        let relay = Arc::new(self);
        let ended = tokio::select! {
            ended = relay.pass_answers_on(from_host) => ended,
            ended = relay.take_datagrams() => ended,
            () = Arc::clone(&relay).take_connections() => Ok(()),
        };
        match ended {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
                log::warn!("the resolver of the container's network is out of reach: {e}");
            }
            _ => log::debug!("the host no longer relays to a resolver"),
        }
    }

    /// Passes on what the host answers.
    async fn pass_answers_on(&self, mut host: ReadHalf<Box<dyn Stream>>) -> io::Result<()> {
        loop {
            let mut message = read_message(&mut host).await?;
            let client = self.queries().answer(&mut message);
            match client {
                Some(Client::Datagram(address)) => self.answers.send(&message, address),
                Some(Client::Connection(task)) => drop(task.send(message)),
                None => log::debug!("an answer of the resolver's is to no question"),
            }
        }
    }

    /// Takes what is asked by datagrams. While the host takes no more, the kernel drops them.
    async fn take_datagrams(&self) -> io::Result<()> {
        let mut bytes = vec![0; PREFIX + MAX_MESSAGE];
        loop {
            let (length, client) = self.datagrams.recv_from(&mut bytes[PREFIX..]).await?;
            let SocketAddr::V4(client) = client else {
                continue;
            };
            self.ask(&mut bytes[..PREFIX + length], Client::Datagram(client))
                .await?;
        }
    }

    /// Asks the host. Before the message there is room for its length. What is no question is dropped.
    async fn ask(&self, bytes: &mut [u8], client: Client) -> io::Result<()> {
        let (length, message) = bytes.split_at_mut(PREFIX);
        if !self.queries().ask(message, client) {
            return Ok(());
        }
        length.copy_from_slice(&prefix(message));
        self.to_host.lock().await.write_all(bytes).await
    }

    /// Serves connections, some at a time.
    async fn take_connections(self: Arc<Self>) {
        let mut served = JoinSet::new();
        loop {
            let has_room = served.len() < MOST_CONNECTIONS;
            tokio::select! {
                accepted = self.connections.accept(), if has_room => match accepted {
                    Ok((connection, _)) => {
                        let relay = Arc::clone(&self);
                        served.spawn(async move {
                            if let Err(e) = relay.serve(connection).await {
                                log::debug!("a connection to the resolver has ended: {e}");
                            }
                        });
                    }
                    Err(e) => {
                        log::debug!("no connection to the resolver: {e}");
                        // Otherwise this would loop without a pause until there are file descriptors again.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = served.join_next() => {}
            }
        }
    }

    /// Answers one question after the other, until the client ends the connection or keeps it waiting.
    async fn serve(&self, mut connection: TcpStream) -> io::Result<()> {
        loop {
            let question = timeout(IDLE_TIMEOUT, read_message(&mut connection)).await??;
            let answer = timeout(TIMEOUT, self.answer(question)).await??;
            let answer = [&prefix(&answer), &answer[..]].concat();
            timeout(IDLE_TIMEOUT, connection.write_all(&answer)).await??;
        }
    }

    /// What the host answers to a question of a connection's.
    async fn answer(&self, message: Vec<u8>) -> io::Result<Vec<u8>> {
        let (task, answer) = oneshot::channel();
        let mut bytes = [&prefix(&message), &message[..]].concat();
        self.ask(&mut bytes, Client::Connection(task)).await?;
        answer.await.map_err(io::Error::other)
    }

    fn queries(&self) -> MutexGuard<'_, Queries> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The length before a message.
fn prefix(message: &[u8]) -> [u8; PREFIX] {
    // None is longer.
    u16::try_from(message.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes()
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
