//! How the follower gives up what it doesn't need, before it reads anything that others write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hull_vmm::jail::tree::{self, HostFile};
use hull_vmm::jail::{self, Identity, Role, limits};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::setpriority_process;

use super::super::{namespaces, nics::VHOST_NET};
use crate::host::Privilege;
use crate::network::UDP_SOCKETS;

/// The VMM's control socket, as the jailed process finds it.
pub const SOCKET: &str = "/vsock.sock";

/// What of the host it opens by path later, and whether it may only read it. The paths are the host's own.
const OPENED: [(&str, bool); 4] = [
    ("/dev/net/tun", false),
    (VHOST_NET, false),
    ("/proc/sys/net", true),
    (UDP_SOCKETS, true),
];

/// The process's name.
const NAME: &std::ffi::CStr = c"hull-follow";

/// Why nothing can be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing is followed: {0}: it can't be opened")]
    Open(&'static str, #[source] io::Error),
    #[error("nothing is followed")]
    Namespaces(#[from] namespaces::Error),
    #[error("nothing is followed")]
    Jail(#[from] jail::Error),
    #[error("nothing is followed")]
    Limits(#[from] limits::Error),
    #[error("nothing is followed")]
    Tree(#[from] tree::Error),
}

/// Puts this process, which must have one thread, into the network namespace, with an empty root, no rights, and no
/// descriptors but these. From then on it has that niceness.
///
/// # Errors
/// When something of it can't be had; the process must end then.
pub fn enter(network: &OwnedFd, keep: &[BorrowedFd<'_>], niceness: i32) -> Result<(), Error> {
    // Elsewhere there is no id that nobody else has.
    let identity = match Privilege::own() {
        Privilege::HostRoot => Identity::unique_user()?,
        Privilege::NamespaceRoot | Privilege::User => Identity::Unchanged,
    };
    settle(network)?;
    confine(Vec::new(), keep, niceness, (Role::Follower, identity))
}

/// The same, with what following the network takes: its root has the control socket and files of the host's kernel.
///
/// # Errors
/// As with [`enter`].
pub fn enter_with_network(
    network: &OwnedFd,
    socket: OwnedFd,
    keep: &[BorrowedFd<'_>],
    niceness: i32,
) -> Result<(), Error> {
    // Before its files are opened: what /proc has of a network is of the namespace of who opens it.
    settle(network)?;
    let mut files = vec![HostFile {
        file: socket,
        target: relative(SOCKET),
        read_only: true,
    }];
    for (path, read_only) in OPENED {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let target = relative(path);
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(file) => files.push(HostFile {
                file,
                target,
                read_only,
            }),
            // Without it, the VM process moves the packets.
            Err(Errno::NOENT) if path == VHOST_NET => {}
            Err(e) => return Err(Error::Open(path, e.into())),
        }
    }
    // Of root's user it has what /dev/net/tun and the control socket ask for, and no rights.
    let role = (Role::NetworkFollower, Identity::Unchanged);
    confine(files, keep, niceness, role)
}

/// Puts this process into the namespaces that it is to be in, but for a mount namespace.
fn settle(network: &OwnedFd) -> Result<(), Error> {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(NAME);
    Ok(namespaces::complete_stand_in(network)?)
}

fn confine(
    files: Vec<HostFile>,
    keep: &[BorrowedFd<'_>],
    niceness: i32,
    (role, identity): (Role, Identity),
) -> Result<(), Error> {
    limits::apply()?;
    tree::enter_with_host_files(files)?;
    jail::close_other_fds(keep)?;
    let keep: Vec<_> = keep.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    // The last thing for which it needs the right.
    let _ = setpriority_process(None, niceness);
    jail::confine(role, identity, &keep)?;
    Ok(())
}

fn relative(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}
