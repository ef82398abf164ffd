//! The device's own thread: an event loop that serves nothing else.
#![allow(unsafe_code)] // rustix calls unshare(2) unsafe

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Fs;
use crate::event_loop::{EventLoop, StopHandle};

/// The running thread. Dropping this doesn't stop the thread, which then ends with the process.
#[derive(Debug)]
pub struct FsThread {
    stop: StopHandle,
    thread: JoinHandle<()>,
}

impl FsThread {
    /// Stops the thread after its current request, and waits for it.
    ///
    /// A request may take as long as the host's file system does. A process that exits need not
    /// stop the thread first.
    pub fn stop(self) {
        self.stop.stop();
        // A panic of the thread has been reported already.
        let _ = self.thread.join();
    }
}

/// Runs `device` on a thread of its own, which needs `eventfds` for the device's queues. It first calls
/// `confine` with all the descriptors that it needs, which returns the thread's `/proc/thread-self/fd`.
///
/// The thread has a working directory and a umask of its own, because the library changes both while
/// it serves.
///
/// # Errors
/// A thread or an eventfd can't be created, or `confine` failed; then the thread has ended.
pub fn spawn(
    device: Arc<Mutex<Fs>>,
    eventfds: Vec<RawFd>,
    confine: impl FnOnce(Vec<RawFd>) -> io::Result<File> + Send + 'static,
) -> io::Result<FsThread> {
    let mut events = EventLoop::new()?;
    events.add(Arc::clone(&device) as _);
    events.keep_open(eventfds);
    let stop = events.stop_handle();
    let thread = events.spawn("virtio-fs", move |descriptors| {
        // SAFETY: with CLONE_FS alone, no resource of another thread is touched: this thread gets a copy
        // of the working directory, root and umask.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        let own_descriptors = confine(descriptors)?;
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.open(own_descriptors).map_err(io::Error::other)
    })?;
    Ok(FsThread { stop, thread })
}
