//! How the follower gives up what it doesn't need, before it reads anything that others write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hull_vmm::jail::tree::{self, HostFile};
use hull_vmm::jail::{self, Identity, Role, limits};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::setpriority_process;

use super::super::{namespaces, nics::VHOST_NET};
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

/// Why changes can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("changes of the network aren't followed: {0}: it can't be opened")]
    Open(&'static str, #[source] io::Error),
    #[error("changes of the network aren't followed")]
    Namespaces(#[from] namespaces::Error),
    #[error("changes of the network aren't followed")]
    Jail(#[from] jail::Error),
    #[error("changes of the network aren't followed")]
    Limits(#[from] limits::Error),
    #[error("changes of the network aren't followed")]
    Tree(#[from] tree::Error),
}

/// Puts this process, which must have one thread, into the network namespace, with a root of its own, and no
/// descriptors but these. From then on it has that niceness.
///
/// # Errors
/// When something of it can't be had; the process must end then.
pub fn enter(
    network: &OwnedFd,
    socket: OwnedFd,
    keep: &[BorrowedFd<'_>],
    niceness: i32,
) -> Result<(), Error> {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(NAME);
    namespaces::complete_stand_in(network)?;
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
    limits::apply()?;
    tree::enter_with_host_files(files)?;
    jail::close_other_fds(keep)?;
    let keep: Vec<_> = keep.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    // The last thing for which it needs the right.
    let _ = setpriority_process(None, niceness);
    // Of root's user it has what /dev/net/tun and the control socket ask for, and no rights.
    jail::confine(Role::NetworkFollower, Identity::Unchanged, &keep)?;
    Ok(())
}

fn relative(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}
