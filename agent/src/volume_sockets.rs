//! The agent's part in connections of containers to UNIX sockets of the host ([`hull_protocol::volume_sockets`]): it copies
//! between the container's end and the host's, until both have ended.
//!
//! The kernel has asked the host already when a connection comes here, and found that its server takes it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hull_protocol::agent::HostStream;
use hull_protocol::volume_sockets::{Answer, LENGTH, NAME};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest, copy_buf,
};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::Error;
use crate::sys;
use crate::transport::{self, Dial, Stream};

/// The most connections at a time; others wait, as at any socket whose server is busy. Each takes some of the 1024 file
/// descriptors that the kernel lets this process have.
const MOST_CONNECTIONS: usize = 200;

/// The most of them that dial the host at a time: it keeps a bounded number of those whose token hasn't come, and turns the
/// oldest away (`hull_vmm::virtio::vsock`), be it another stream's.
const MOST_DIALS: usize = 16;

/// What is copied at once, in bytes.
const BUFFER: usize = 16 << 10;

/// How long the host may take to answer at a port that it has just named.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long accepting pauses after it failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Whether connections are passed on.
#[derive(Debug, Default)]
pub struct VolumeSockets(OnceLock<()>);

impl VolumeSockets {
    /// Passes connections on, from the first time on. That must be before there is a container that could take the name.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn open(&self, host: &Arc<dyn Dial>) -> Result<(), Error> {
        if self.0.set(()).is_err() {
            return Ok(());
        }
        let listener = listen().map_err(Error::io("listen for connections to the host"))?;
        let host = Arc::clone(host);
        tokio::spawn(async move {
            if let Err(e) = serve(listener, host).await {
                log::error!("sockets of the host are out of reach: {e}");
            }
        });
        Ok(())
    }
}

fn listen() -> io::Result<StdListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes connections, without an end.
async fn serve(listener: StdListener, host: Arc<dyn Dial>) -> io::Result<()> {
    let listener = sys::watch(OwnedFd::from(listener), Interest::READABLE)?;
    let free = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let dials = Arc::new(Semaphore::new(MOST_DIALS));
    loop {
        let permit = Arc::clone(&free).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        match accept(&listener).await {
            Ok(stream) => {
                let (host, dials) = (Arc::clone(&host), Arc::clone(&dials));
                tokio::spawn(async move {
                    if let Err(e) = connect(stream, &*host, &dials).await {
                        log::debug!("a connection to a socket of the host: {e}");
                    }
                    drop(permit);
                });
            }
            Err(e) => {
                log::warn!("take a connection to a socket of the host: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes the next connection. The library's own accept panics on a peer whose address is as long as it can be, which any
/// program may have; nobody here wants to know it.
async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let mut ready = listener.readable().await?;
        let accepted = ready.try_io(|listener| Ok(accept_with(listener.get_ref(), flags)?));
        if let Ok(accepted) = accepted {
            return UnixStream::from_std(accepted?.into());
        }
    }
}

/// Serves one connection.
async fn connect(mut container: UnixStream, host: &dyn Dial, dials: &Semaphore) -> io::Result<()> {
    // One that the kernel has passed on has the path of the host's socket for its address. Who has dialled the name itself
    // has the name, and nothing of the host's to tell.
    if container.local_addr()?.as_pathname().is_none() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut answer = [0; LENGTH];
    container.read_exact(&mut answer).await?;
    let Answer { port, token } = Answer::decode(answer);
    let stream = HostStream {
        port,
        token: token.to_vec(),
        ..Default::default()
    };
    let dial = dials.acquire().await.map_err(io::Error::other)?;
    let host = timeout(DIAL_TIMEOUT, transport::open(host, &stream, &[])).await??;
    drop(dial);
    copy_both_ways(container, host).await
}

/// Copies until both have ended, or the container's program has closed its end and all that it sent is on its way: the
/// host's server would learn of that only once it writes.
async fn copy_both_ways(mut container: UnixStream, host: Box<dyn Stream>) -> io::Result<()> {
    let watch = container.as_fd().try_clone_to_owned()?;
    let (from_container, to_container) = container.split();
    let (from_host, to_host) = tokio::io::split(host);
    let mut up = pin!(copy_to_end(from_container, to_host));
    let mut down = pin!(copy_to_end(from_host, to_container));
    tokio::select! {
        sent = &mut up => {
            sent?;
            tokio::select! {
                received = down => received,
                closed = closed_by_peer(watch) => closed,
            }
        }
        received = &mut down => {
            received?;
            up.await
        }
    }
}

/// Copies to the end, and passes that on.
async fn copy_to_end(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_buf(&mut BufReader::with_capacity(BUFFER, from), &mut to).await?;
    to.shutdown().await
}

/// Returns once the other end of a socket is closed, and not only shut down for writing.
async fn closed_by_peer(socket: OwnedFd) -> io::Result<()> {
    let socket = sys::watch(socket, Interest::WRITABLE)?;
    loop {
        let mut ready = socket.writable().await?;
        if ready.ready().is_write_closed() {
            return Ok(());
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::io::{DuplexStream, duplex};

    /// A host that has one end for who dials, and the port that was dialled.
    struct Host(Mutex<(Option<DuplexStream>, u32)>);

    #[async_trait::async_trait]
    impl Dial for Host {
        async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>> {
            let mut host = self.0.lock().expect("no panic");
            host.1 = port;
            let stream: Box<dyn Stream> = Box::new(host.0.take().expect("one dials"));
            Ok(stream)
        }
    }

    fn host() -> (Host, DuplexStream) {
        let (ours, theirs) = duplex(1 << 10);
        (Host(Mutex::new((Some(ours), 0))), theirs)
    }

    fn run<F: Future>(test: F) -> F::Output {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test)
    }

    /// Both ends of a connection at a socket of this address.
    async fn connected(address: &SocketAddr) -> (UnixStream, UnixStream) {
        let listener = StdListener::bind_addr(address).expect("a socket");
        listener.set_nonblocking(true).expect("not to block");
        let program = std::os::unix::net::UnixStream::connect_addr(address).expect("connected");
        program.set_nonblocking(true).expect("not to block");
        let listener = sys::watch(OwnedFd::from(listener), Interest::READABLE).expect("watched");
        let accepted = accept(&listener).await.expect("accepted");
        (UnixStream::from_std(program).expect("watched"), accepted)
    }

    #[test]
    fn what_follows_the_hosts_answer_is_copied_both_ways_until_both_have_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = SocketAddr::from_pathname(folder.path().join("s")).expect("an address");
        run(async {
            let (mut program, accepted) = connected(&path).await;
            let (host, mut hosts) = host();
            let mut sent = vec![7, 0, 0, 0x80];
            sent.extend([9; 16]);
            sent.extend(b"question");
            program.write_all(&sent).await.expect("sent");
            program.shutdown().await.expect("half of it");
            let server = async {
                let mut asked = Vec::new();
                hosts.read_to_end(&mut asked).await.expect("asked");
                hosts.write_all(b"answer").await.expect("answered");
                drop(hosts);
                asked
            };
            let dials = Semaphore::new(1);
            let (served, asked) = tokio::join!(connect(accepted, &host, &dials), server);
            served.expect("served");
            assert_eq!(asked, [&[9; 16][..], b"question"].concat());
            assert_eq!(host.0.lock().expect("no panic").1, 0x8000_0007);
            let mut answer = String::new();
            program.read_to_string(&mut answer).await.expect("answered");
            assert_eq!(answer, "answer");
        });
    }

    #[test]
    fn a_program_that_closes_its_end_is_gone_for_a_server_that_says_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = SocketAddr::from_pathname(folder.path().join("s")).expect("an address");
        run(async {
            let (mut program, accepted) = connected(&path).await;
            let (host, mut hosts) = host();
            program.write_all(&[1; LENGTH]).await.expect("sent");
            program.write_all(b"bye").await.expect("sent");
            drop(program);
            connect(accepted, &host, &Semaphore::new(1))
                .await
                .expect("served to its end");
            let mut heard = Vec::new();
            hosts.read_to_end(&mut heard).await.expect("to its end");
            assert_eq!(heard, [&[1; 16][..], b"bye"].concat());
            hosts.write_all(b"?").await.expect_err("nobody hears it");
        });
    }

    /// One of 108 bytes, which no NUL follows.
    #[test]
    fn a_program_may_have_the_longest_address_that_there_is() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = StdListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("not to block");
        let name = "n".repeat(107 - folder.path().as_os_str().len());
        let longest = SocketAddrUnix::new(folder.path().join(name)).expect("108 bytes");
        let program = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&program, &longest).expect("bound");
        connect(&program, &SocketAddrUnix::new(&path).expect("a path")).expect("connected");
        run(async {
            let listener =
                sys::watch(OwnedFd::from(listener), Interest::READABLE).expect("watched");
            accept(&listener).await.expect("accepted");
        });
    }

    #[test]
    fn who_dials_the_name_itself_is_turned_away() {
        let name = format!("hull-test-{}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).expect("a name");
        run(async {
            let (mut program, accepted) = connected(&name).await;
            program.write_all(&[0; LENGTH]).await.expect("sent");
            let (host, _hosts) = host();
            let refused = connect(accepted, &host, &Semaphore::new(1))
                .await
                .expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(host.0.lock().expect("no panic").1, 0, "nobody is dialled");
        });
    }
}
