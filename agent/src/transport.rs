//! How the agent reaches the host: vsock, and whatever else the tests put in its place.

use std::io;

use async_trait::async_trait;
use hull_protocol::{hello, ports};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

/// A connection to the host.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for T {}

/// A way to dial the host's ports.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Dials a port of the host.
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>>;
}

/// The host as the guest of a VM sees it.
#[derive(Debug, Clone, Copy)]
pub struct Vsock;

#[async_trait]
impl Dial for Vsock {
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>> {
        let stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await?;
        Ok(Box::new(stream))
    }
}

impl Vsock {
    /// Listens on the agent's port.
    ///
    /// # Errors
    /// When there is no vsock device.
    pub fn listen() -> io::Result<Listener> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, ports::AGENT))?;
        Ok(Listener::from(listener))
    }
}

/// Tells the host that the agent serves.
///
/// # Errors
/// When the host doesn't answer.
pub async fn greet(host: &dyn Dial) -> io::Result<()> {
    let mut stream = host.dial(ports::READY).await?;
    stream.write_all(&hello::encode()).await?;
    stream.shutdown().await
}
