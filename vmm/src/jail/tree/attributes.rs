//! The attributes of the tree's mounts: mount_setattr(2).
#![allow(unsafe_code)] // mount_setattr(2), which no library wraps

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::share::Times;

/// What holds for every mount of the tree: no set-id bit and no device node has an effect in it, and it
/// is cut off from the mounts that it is a copy of.
pub(super) const SEALED: libc::mount_attr = libc::mount_attr {
    attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    attr_clr: 0,
    propagation: libc::MS_PRIVATE,
    userns_fd: 0,
};

/// The same, but what is mounted at the place that it is a copy of is mounted here too.
pub(super) const RECEIVING: libc::mount_attr = libc::mount_attr {
    propagation: libc::MS_SLAVE,
    ..SEALED
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

pub(super) const fn keep_times(times: Times) -> libc::mount_attr {
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
