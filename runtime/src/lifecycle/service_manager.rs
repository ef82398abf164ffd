//! The service manager that a command runs under, systemd(1) say, which is told by sd_notify(3) that a container is
//! ready.
//!
//! It is told by `start` or `run`, if they run under it. It may be given to `create` alone, and an engine's container may
//! have a socket of the engine's that stands for it (podman's, for `--sdnotify=container`): so it is remembered, and told
//! by the process that `start` leaves on the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// The socket by which it is told, if this command runs under one.
#[must_use]
pub fn of_this_command() -> Option<PathBuf> {
    let path = std::env::var_os("NOTIFY_SOCKET")?;
    (!path.is_empty()).then(|| path.into())
}

/// Connects to it, by a non-blocking socket: whoever tells it has other things to do.
///
/// # Errors
/// When it is gone, or has an address of another kind than UNIX sockets have.
pub(super) fn connect(socket: &Path) -> io::Result<OwnedFd> {
    let connected = UnixDatagram::unbound()?;
    connected.set_nonblocking(true)?;
    if let [b'@', name @ ..] = socket.as_os_str().as_bytes() {
        connected.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    } else {
        // An engine's path may be longer than a socket's address can be.
        let opened = openat(CWD, socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        connected.connect(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    }
    Ok(connected.into())
}
