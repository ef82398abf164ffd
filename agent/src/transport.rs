//! How the agent and the host connect to each other: vsock, or in tests what replaces it.
//!
//! The agent serves connections of the host only, and a bounded number of them. When it dials a port of the host
//! and that doesn't answer in time, it dials again; when the host refuses, it doesn't.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, Stream as Connections, StreamExt};
use hull_protocol::agent::HostStream;
use hull_protocol::{hello, ports};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

use crate::sys;

/// How long one attempt to connect to a port of the host may take; the kernel's default is two seconds. An answer
/// that comes later is lost, so if the host is always slower, dialling again doesn't help.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How many connections of the host are served at a time: each command and each stand-in of an exec has one.
/// Beyond that the agent would run out of file descriptors.
const MAX_CONNECTIONS: usize = 256;

/// How long the agent waits after accept(2) failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// A connection to the host.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for T {}

/// A way to dial the host's ports.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Dials a port of the host, once. An error of the kind `TimedOut` means that the host didn't answer.
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>>;
}

/// The host as the guest of a VM sees it.
#[derive(Debug, Clone, Copy)]
pub struct Vsock;

#[async_trait]
impl Dial for Vsock {
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>> {
        let socket = sys::dial_host(port, CONNECT_TIMEOUT)?;
        // Writable, a connect in progress has succeeded or failed.
        let socket = sys::watch(socket, Interest::WRITABLE)?;
        socket.writable().await?.retain_ready();
        rustix::net::sockopt::socket_error(socket.get_ref())??;
        let stream = VsockStream::new(vsock::VsockStream::from(socket.into_inner()))?;
        Ok(Box::new(stream))
    }
}

impl Vsock {
    /// Listens on the agent's port, for the host.
    ///
    /// # Errors
    /// When there is no vsock device.
    pub fn listen() -> io::Result<Listener> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, ports::AGENT))?;
        let accepted = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await;
            if accepted.is_err() {
                // Otherwise this would loop without a pause until there are file descriptors again.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            let accepted = accepted.map(|(stream, peer)| (stream, peer.cid()));
            Some((accepted, listener))
        });
        Ok(Listener::new(only_from_host(accepted, MAX_CONNECTIONS)))
    }
}

/// Passes on connections from the host, at most `max` at a time. `accepted` has them with their peer's context
/// id. All others are closed at once, so that they don't block the queue.
fn only_from_host<S: Send>(
    accepted: impl Connections<Item = io::Result<(S, u32)>> + Send,
    max: usize,
) -> impl Connections<Item = io::Result<CountedConnection<S>>> + Send {
    let free = Arc::new(Semaphore::new(max));
    accepted.filter_map(move |accepted| {
        let admitted = accepted.map(|(stream, peer)| {
            if peer != VMADDR_CID_HOST {
                log::warn!("close a connection from context {peer}, which isn't the host");
                return None;
            }
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                log::warn!("close a connection of the host: there are {max} already");
                return None;
            };
            Some(CountedConnection {
                stream,
                _permit: permit,
            })
        });
        std::future::ready(admitted.transpose())
    })
}

/// A connection that counts towards the limit until it is dropped.
struct CountedConnection<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedConnection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedConnection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Dials a port of the host again and again until it answers. Each attempt waits for its timeout, so this doesn't
/// busy-loop.
///
/// # Errors
/// When the host refuses.
pub async fn dial(host: &dyn Dial, port: u32) -> io::Result<Box<dyn Stream>> {
    loop {
        match host.dial(port).await {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                log::warn!("the host doesn't answer on port {port}; dialling again");
            }
            outcome => return outcome,
        }
    }
}

/// Dials a stream of the host, without a time limit, and sends its token followed by `first`, in one write.
///
/// # Errors
/// When the host refuses.
pub async fn open(
    host: &dyn Dial,
    stream: &HostStream,
    first: &[u8],
) -> io::Result<Box<dyn Stream>> {
    let mut connection = dial(host, stream.port).await?;
    connection
        .write_all(&[&stream.token[..], first].concat())
        .await?;
    Ok(connection)
}

/// Sends the host the hello: the agent serves. Without a time limit, as the host has one.
///
/// # Errors
/// When the host refuses.
pub async fn greet(host: &dyn Dial) -> io::Result<()> {
    let mut stream = dial(host, ports::READY).await?;
    stream.write_all(&hello::encode()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    /// A host that gives each attempt to connect the next of these answers.
    struct Answers(Mutex<Vec<Result<DuplexStream, io::ErrorKind>>>);

    #[async_trait]
    impl Dial for Answers {
        async fn dial(&self, _: u32) -> io::Result<Box<dyn Stream>> {
            let answer = self.0.lock().expect("no panic").remove(0);
            let stream: Box<dyn Stream> = Box::new(answer?);
            Ok(stream)
        }
    }

    fn run<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(test)
    }

    #[test]
    fn a_host_that_does_not_answer_is_dialled_again() {
        let (ours, mut hosts) = duplex(64);
        let late = || Err(io::ErrorKind::TimedOut);
        let host = Answers(Mutex::new(vec![late(), late(), Ok(ours)]));
        let greeting = run(async {
            greet(&host).await.expect("it answers in the end");
            let mut greeting = Vec::new();
            hosts.read_to_end(&mut greeting).await.expect("read");
            greeting
        });
        assert_eq!(greeting, hello::encode());
    }

    #[test]
    fn a_host_that_refuses_is_not_dialled_again() {
        let refused = Err(io::ErrorKind::ConnectionReset);
        let host = Answers(Mutex::new(vec![refused]));
        let error = run(greet(&host)).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_stream_begins_with_its_token() {
        let (ours, mut hosts) = duplex(64);
        let host = Answers(Mutex::new(vec![Ok(ours)]));
        let stream = HostStream {
            port: 7,
            token: vec![9; 16],
            ..Default::default()
        };
        let sent = run(async {
            drop(open(&host, &stream, b"!").await.expect("opened"));
            let mut sent = Vec::new();
            hosts.read_to_end(&mut sent).await.expect("read");
            sent
        });
        assert_eq!(sent, [&[9; 16][..], b"!"].concat());
    }

    #[test]
    fn only_the_host_is_served_however_many_others_connect() {
        let others = [1, 3, 4, VMADDR_CID_ANY].into_iter().cycle().take(2000);
        let callers = others.chain([VMADDR_CID_HOST, 3, VMADDR_CID_HOST, VMADDR_CID_HOST]);
        let accepted = stream::iter(callers.enumerate().map(|(n, peer)| Ok((n, peer))));
        let mut served = Box::pin(only_from_host(accepted, 2));
        run(async {
            let first = served.next().await.expect("one").expect("served");
            let second = served.next().await.expect("one").expect("served");
            assert_eq!((first.stream, second.stream), (2000, 2002));
            assert!(served.next().await.is_none(), "a third one at a time");
        });
    }

    #[test]
    fn a_connection_that_ends_makes_room_for_another() {
        let accepted = stream::iter((0..3).map(|n| Ok((n, VMADDR_CID_HOST))));
        let mut served = Box::pin(only_from_host(accepted, 1));
        run(async {
            for _ in 0..3 {
                assert!(served.next().await.is_some());
            }
        });
    }
}
