//! The client's end of a VMM's control socket, and how long its users wait.
//!
//! What is said on it is the business of [`agent`](super::agent) and [`stdio`](super::stdio).

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::AgentError;

/// For what the VMM or the agent answers at once, on a machine that is busy.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// For setting up a container's network: the agent gives itself 40 s for it.
pub const NETWORK_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Waits for a line of the VMM's, of at most that many bytes: one without an end is cut off. The whole of it is to
/// come in that time; there may be none to it.
///
/// # Errors
/// When the connection breaks, or the time is over, for [`failed`].
pub fn answer(
    vmm: &mut BufReader<UnixStream>,
    longest: usize,
    timeout: Option<Duration>,
) -> io::Result<String> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut line = Vec::new();
    while line.len() < longest && line.last() != Some(&b'\n') {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        vmm.get_ref().set_read_timeout(left)?;
        let came = match vmm.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            came => came?,
        };
        let Some(first) = came.first().copied() else {
            break;
        };
        line.push(first);
        vmm.consume(1);
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
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
    fn an_endless_answer_is_cut_off() {
        let (vmm, client) = UnixStream::pair().expect("a pair");
        (&vmm).write_all(&[b'1'; 1000]).expect("sent");
        let line = answer(&mut BufReader::new(client), 100, None).expect("a line");
        assert_eq!(line.len(), 100);
    }

    #[test]
    fn an_answer_that_comes_byte_by_byte_is_late() {
        let (vmm, client) = UnixStream::pair().expect("a pair");
        let dripping = std::thread::spawn(move || {
            while (&vmm).write_all(b"1").is_ok() {
                std::thread::sleep(SHORT / 2);
            }
        });
        let late = answer(&mut BufReader::new(client), 1000, Some(2 * SHORT));
        assert_eq!(late.expect_err("late").kind(), io::ErrorKind::WouldBlock);
        dripping.join().expect("no panic");
    }

    #[test]
    fn a_vmm_that_is_gone_is_not_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = dial(&folder.path().join("socket"), SHORT);
        assert!(matches!(gone, Err(AgentError::Connect { .. })));
    }
}
