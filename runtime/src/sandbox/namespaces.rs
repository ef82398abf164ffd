//! The host's namespaces that the VMM process has of its own.
//!
//! An engine takes the pid in `state` for the container's, enters its namespaces through `/proc/<pid>/ns`,
//! and sets up there what the container is to have: interfaces, routes, NAT rules, sysctls, a host name.
//! None of that may reach the host. The container's own namespaces are in the guest; these are empty
//! stand-ins, and nothing in them is connected to the guest.
//!
//! Mounts aren't here but in the jail's tree. A process id namespace takes root: an ordinary user's process
//! enters a user namespace when it lives already, and would have to be another one then.
#![allow(unsafe_code)] // rustix's unshare; an ioctl that no library wraps

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::host::ProcessId;
use crate::spec::Network;

/// Why the VMM process isn't in the namespaces that it is to be in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// setns(2) of what config.json names.
    #[error("config.json: linux.namespaces: join the network namespace")]
    Join(#[source] io::Error),
    /// unshare(2); on ENOSPC one of the sysctls `user.max_*_namespaces` is too low.
    #[error("make namespaces for the VM process (see the sysctls user.max_*_namespaces)")]
    Make(#[source] io::Error),
    /// The new network namespace's `lo`.
    #[error("bring up lo in the VM process's network namespace")]
    Loopback(#[source] io::Error),
}

/// All but the process id namespace.
fn wanted<Fd>(network: &Network<Fd>) -> UnshareFlags {
    let always = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    match network {
        Network::New => always | UnshareFlags::NEWNET,
        Network::Creators | Network::Named(_) => always,
    }
}

/// The kinds that the process is born in (CLONE_NEW*), so that there is no moment at which a state names a
/// process in the host's.
///
/// In a user namespace there are none before the process has entered it.
pub fn at_birth(network: &Network, in_user_namespace: bool) -> u64 {
    if in_user_namespace {
        return 0;
    }
    // A cgroup namespace's root is its maker's cgroup, so the process has to make that by itself.
    let flags = (wanted(network) - UnshareFlags::NEWCGROUP) | UnshareFlags::NEWPID;
    flags.bits().into()
}

/// Has this process join the network namespace that config.json names.
///
/// # Errors
/// When it may not.
pub fn join(network: &OwnedFd) -> Result<(), Error> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| Error::Join(e.into()))
}

/// Makes what this process wasn't born with, and brings up `lo` in a new network namespace, as runc does.
/// The process must have one thread, and have entered the user namespace if there is to be one.
///
/// # Errors
/// When the kernel refuses. The process may then have some of them.
pub fn complete<Fd>(network: &Network<Fd>, in_user_namespace: bool) -> Result<(), Error> {
    let missing = match in_user_namespace {
        true => wanted(network),
        false => UnshareFlags::NEWCGROUP,
    };
    // SAFETY: there is no other thread, and nothing here depends on what is in these namespaces.
    unsafe { unshare_unsafe(missing) }.map_err(|e| Error::Make(e.into()))?;
    match network {
        Network::New => bring_loopback_up().map_err(Error::Loopback),
        Network::Creators | Network::Named(_) => Ok(()),
    }
}

/// The kinds that a container's stand-in is born in.
pub fn of_stand_in_at_birth() -> u64 {
    let mounts_too =
        UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    mounts_too.bits().into()
}

/// Makes what a stand-in or a follower wasn't born with: it shares the network namespace of its sandbox's VM process.
/// Its mount namespace is left for a tree of its own.
///
/// # Errors
/// When the kernel refuses.
pub fn complete_stand_in(network: &OwnedFd) -> Result<(), Error> {
    join(network)?;
    // SAFETY: there is no other thread, and nothing here depends on what is in this namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(|e| Error::Make(e.into()))
}

/// The kinds that a follower is born in. It makes its mount namespace by itself, as it takes files of the
/// host's along.
pub fn of_follower_at_birth() -> u64 {
    (UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWPID)
        .bits()
        .into()
}

/// The network namespace that a process is in, which still is that process.
///
/// # Errors
/// When it is gone.
pub fn network_of(process: ProcessId) -> io::Result<OwnedFd> {
    let path = format!("/proc/{}/ns/net", process.pid);
    let network = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Otherwise it may be that of another process, which has got the same pid.
    match process.is_alive() {
        true => Ok(network),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

fn bring_loopback_up() -> io::Result<()> {
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
