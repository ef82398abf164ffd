//! A container's mount namespace, entered, and others of its own: where a helper does what libcontainer doesn't, before the
//! container's program starts.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::Failure;

/// A container's mount namespace, which is now the caller's.
#[derive(Debug)]
pub struct Inside {
    init: OwnedFd,
    root: OwnedFd,
    is_root: Cell<bool>,
}

impl Inside {
    /// Enters that of the container whose first process is `init`, and `others`. The caller keeps its
    /// rights; it must have one thread and be about to end.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn enter(init: i32, others: ThreadNameSpaceType) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Not the namespace's own root: a container without a mount namespace has the guest's.
        let root = openat(CWD, format!("/proc/{init}/root"), flags, Mode::empty())
            .map_err(Failure::io("open the container's root"))?;
        let pid = Pid::from_raw(init).ok_or_else(|| Failure::other("there is no pid 0"))?;
        let init =
            pidfd_open(pid, PidfdFlags::empty()).map_err(Failure::io("open the container"))?;
        move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT | others)
            .map_err(Failure::io("enter the container's namespaces"))?;
        Ok(Self {
            init,
            root,
            is_root: Cell::new(false),
        })
    }

    /// The container's root, opened with O_PATH.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Enters its user namespace, too, as the root there; once only.
    ///
    /// # Errors
    /// When it has none of its own, or nobody is root in it.
    pub fn become_root(&self) -> Result<(), Failure> {
        if self.is_root.replace(true) {
            return Ok(());
        }
        move_into_thread_name_spaces(self.init.as_fd(), ThreadNameSpaceType::USER)
            .map_err(Failure::io("enter the container's user namespace"))?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
            .map_err(Failure::io("become the container's root"))
    }
}
