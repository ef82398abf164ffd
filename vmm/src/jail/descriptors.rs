//! The file descriptors of the process, and of each of its threads.
//!
//! Threads normally share one descriptor table, and any thread whose seccomp filter allows the
//! calls can reopen, change and truncate the files in it: the virtio-fs thread could change a file
//! of the host that the main thread only writes to. So each thread has a private table with what
//! its role needs. Each component reports the descriptors that it needs: an event loop and its
//! subscribers ([`Subscriber`](crate::event_loop::Subscriber)), a device's registers, a vCPU.
//!
//! A descriptor that one thread opens later must be closed by that thread: in another table, the
//! same number may be another file.
#![allow(unsafe_code)] // close_range(2), which no library wraps, and rustix's unshare

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Error;

/// Replaces standard input, output and error, which may be files of the host, by the read end of a
/// pipe without a writer. Reading from it returns the end of file at once; writing fails with
/// EBADF, which Rust's standard streams ignore.
///
/// # Errors
/// When there are too many open files.
pub fn replace_standard_streams() -> io::Result<()> {
    let (end, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::stdio::dup2_stdin(&end)?;
    rustix::stdio::dup2_stdout(&end)?;
    rustix::stdio::dup2_stderr(&end)?;
    Ok(())
}

/// Closes every file descriptor but standard input, output and error and those of `keep`.
///
/// To be called before the process opens anything that is not in `keep`: a descriptor that a
/// library has open would be closed without its knowledge.
///
/// # Errors
/// [`Error::CloseRange`].
pub fn close_other_fds(keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
    close_all_but(keep.iter().map(AsRawFd::as_raw_fd).collect()).map(drop)
}

/// The private descriptor table of the calling thread, which no other thread shares.
#[derive(Debug, Default)]
pub struct PrivateFdTable {
    open: Vec<RawFd>,
    /// Not `Send`: the numbers mean nothing in another thread's table.
    _here: PhantomData<*const ()>,
}

impl PrivateFdTable {
    /// Closes the descriptors that the thread has kept, when it ends. The kernel would close them
    /// too, but only some time after the thread has exited; a VM is destroyed when the last of its
    /// descriptors is closed, and others wait for that.
    pub(crate) fn close(self) {
        for fd in self.open {
            // SAFETY: the descriptor is in this thread's private table, and the thread doesn't use
            // it any more.
            unsafe { rustix::io::close(fd) };
        }
    }
}

/// Gives the calling thread a private descriptor table, in which only the standard streams and the
/// descriptors of `keep` are open.
pub(super) fn keep_only(keep: &[RawFd]) -> Result<PrivateFdTable, Error> {
    // SAFETY: the other threads keep their table as it is. This one gets a copy.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.map_err(|e| Error::UnshareFiles(e.into()))?;
    Ok(PrivateFdTable {
        open: close_all_but(keep.to_vec())?,
        _here: PhantomData,
    })
}

/// Closes all descriptors but the standard streams and those of `kept`. Returns the latter, sorted.
fn close_all_but(mut kept: Vec<RawFd>) -> Result<Vec<RawFd>, Error> {
    kept.retain(|fd| *fd > 2);
    kept.sort_unstable();
    kept.dedup();
    let mut next = 3;
    for fd in &kept {
        close_range(next, fd - 1)?;
        next = fd + 1;
    }
    close_range(next, RawFd::MAX)?;
    Ok(kept)
}

/// Closes `first` to `last`, both included; nothing where `last` comes before `first`.
fn close_range(first: RawFd, last: RawFd) -> Result<(), Error> {
    if last < first {
        return Ok(());
    }
    // SAFETY: it takes no pointers. The callers have been told that this thread may use none of these
    // descriptors any more.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match result {
        0 => Ok(()),
        _ => Err(Error::CloseRange(io::Error::last_os_error())),
    }
}
