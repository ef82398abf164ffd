//! Which file descriptors the process has, and which of them each of its threads.
//!
//! Threads share one table of descriptors unless they are told not to, and what is in it can be opened
//! again, changed and cut by whoever may make such calls at all: the virtio-fs thread could change a file
//! of the host that the main thread merely writes to. So each thread has a table of its own, with what its
//! role needs. Each part says what that is: an event loop and its subscribers
//! ([`Subscriber`](crate::event_loop::Subscriber)), a device's registers, a vCPU.
//!
//! What one thread opens later, only that thread must close: the same number may be another file in
//! another table.
#![allow(unsafe_code)] // close_range(2), which no library wraps, and rustix's unshare

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Error;

/// Puts something in the place of standard input, output and error that is no file of the host and
/// that nobody hears: the end of an abandoned pipe. Reading it ends at once, and writing to it fails in
/// the way that Rust takes for success.
///
/// # Errors
/// When there are too many open files.
pub fn abandon_standard_streams() -> io::Result<()> {
    let (end, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::stdio::dup2_stdin(&end)?;
    rustix::stdio::dup2_stdout(&end)?;
    rustix::stdio::dup2_stderr(&end)?;
    Ok(())
}

/// Closes every file descriptor but standard input, output and error and those of `keep`.
///
/// To be called before the process opens anything that is not in `keep`: what a library has open would
/// be closed behind its back.
///
/// # Errors
/// [`Error::CloseRange`].
pub fn close_other_fds(keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
    close_all_but(keep.iter().map(AsRawFd::as_raw_fd).collect()).map(drop)
}

/// The table of descriptors that a thread has to itself.
#[derive(Debug, Default)]
pub struct OwnTable {
    open: Vec<RawFd>,
    /// It is of no use to another thread.
    _here: PhantomData<*const ()>,
}

impl OwnTable {
    /// Closes what the thread was given, at its end. The kernel does so, too, but some time later: who waits
    /// for what the last descriptor's end entails, as for a VM's being taken down, waits for this.
    pub(crate) fn close(self) {
        for fd in self.open {
            // SAFETY: the number stands for nothing but this thread's own reference, in this thread's own
            // table, and the thread uses it no more.
            unsafe { rustix::io::close(fd) };
        }
    }
}

/// Gives the calling thread a table of its own, in which nothing is open but the standard streams and
/// those of `keep`.
pub(super) fn keep_only(keep: &[RawFd]) -> Result<OwnTable, Error> {
    // SAFETY: the other threads keep their table as it is. This one gets a copy.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.map_err(|e| Error::OwnTable(e.into()))?;
    Ok(OwnTable {
        open: close_all_but(keep.to_vec())?,
        _here: PhantomData,
    })
}

/// Returns what is left besides the standard streams.
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
