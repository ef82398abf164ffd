//! The attributes of the tree's mounts: mount_setattr(2).
#![allow(unsafe_code)] // mount_setattr(2), which no library wraps

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::share::Times;

/// The attributes of every mount of the tree: set-id bits and device nodes have no effect in it,
/// and it receives no mount events from the mount that it was cloned from.
pub(super) const HARDENED: libc::mount_attr = libc::mount_attr {
    attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    attr_clr: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// As [`HARDENED`], but as a slave: later mounts below the mount that it was cloned from propagate
/// to it.
pub(super) const HARDENED_SLAVE: libc::mount_attr = libc::mount_attr {
    propagation: libc::MS_SLAVE,
    ..HARDENED
};

pub(super) const fn read_only(read_only: bool) -> libc::mount_attr {
    let bit = libc::MOUNT_ATTR_RDONLY;
    let (attr_set, attr_clr) = if read_only { (bit, 0) } else { (0, bit) };
    libc::mount_attr {
        attr_set,
        attr_clr,
        propagation: 0,
        userns_fd: 0,
    }
}

pub(super) const fn access_times(times: Times) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: times.set,
        attr_clr: times.clear,
        propagation: 0,
        userns_fd: 0,
    }
}

/// How far an attribute reaches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Depth {
    /// The mount itself.
    One,
    /// The mount and all below it.
    All,
}

/// Changes a mount's attributes.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn change(
    mount: BorrowedFd<'_>,
    depth: Depth,
    attributes: libc::mount_attr,
) -> rustix::io::Result<()> {
    let depth = match depth {
        Depth::One => 0,
        Depth::All => libc::AT_RECURSIVE,
    };
    // SAFETY: the descriptor is borrowed, the path is an empty string, and the pointer and the size
    // are those of `attributes`, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
