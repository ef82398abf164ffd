//! The client's end of a VMM's control socket, and how long its users wait.
//!
//! What is said on it is the business of [`agent`](super::agent) and [`stdio`](super::stdio).

use std::io::{self, BufRead};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::AgentError;

/// For what the VMM or the agent answers at once, on a machine that is busy.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// For making a container: mounts, cgroups and a process, all over a shared file system.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Connects to the control socket at `path`. Every wait on the stream, this one too, ends after `timeout`
/// with an error for [`failed`].
///
/// # Errors
/// When nobody listens there, or takes the connection in time.
pub fn dial(path: &Path, timeout: Duration) -> Result<UnixStream, AgentError> {
    let open = || -> io::Result<_> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
        connect(&socket, &address)?;
        Ok(socket.into())
    };
    open().map_err(failed("take a connection", timeout))
}

/// Waits for a line of the VMM's, of at most that many bytes: one without an end is cut off.
///
/// # Errors
/// When the connection breaks, or the time limit of [`dial`] is over.
pub fn answer(vmm: impl BufRead, longest: u64) -> io::Result<String> {
    let mut line = String::new();
    vmm.take(longest).read_line(&mut line)?;
    Ok(line)
}

/// What has become of a step in which the VMM was to do `what`.
pub fn failed(what: &'static str, timeout: Duration) -> impl Fn(io::Error) -> AgentError {
    move |source| match source.kind() {
        io::ErrorKind::WouldBlock => AgentError::VmmTimeout {
            what,
            seconds: timeout.as_secs(),
        },
        _ => AgentError::Connect { what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_vmm_that_takes_no_connection_is_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        rustix::net::listen(&listener, 0).expect("a short queue");
        let _waiting = dial(&path, SHORT).expect("a place in the queue");
        let late = dial(&path, SHORT);
        assert!(matches!(late, Err(AgentError::VmmTimeout { .. })));
    }

    #[test]
    fn a_vmm_that_reads_nothing_is_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("a socket");
        let mut stream = dial(&path, SHORT).expect("a connection");
        let late = stream.write_all(&vec![0; 8 << 20]);
        let late = late.map_err(failed("take the request", SHORT));
        assert!(matches!(late, Err(AgentError::VmmTimeout { .. })));
    }

    #[test]
    fn a_vmm_that_is_gone_is_not_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = dial(&folder.path().join("socket"), SHORT);
        assert!(matches!(gone, Err(AgentError::Connect { .. })));
    }
}
