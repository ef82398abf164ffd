//! The device's own thread: an event loop that serves nothing else.
#![allow(unsafe_code)] // rustix calls unshare(2) unsafe

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Fs;
use crate::jail;

/// Why the device's thread doesn't run.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The thread or its eventfd could not be made.
    #[error("cannot start the virtio-fs thread")]
    Thread(#[source] io::Error),
    /// The event loop could not be made.
    #[error("cannot make the virtio-fs thread's event loop: {0:?}")]
    EventLoop(event_manager::Error),
    /// The thread could not have a working directory and umask of its own.
    #[error("unshare(CLONE_FS) failed in the virtio-fs thread")]
    Unshare(#[source] io::Error),
    /// The thread could not be confined.
    #[error("cannot confine the virtio-fs thread")]
    Confine(#[from] jail::Error),
    /// The thread ended while it started.
    #[error("the virtio-fs thread ended while it started")]
    Ended,
}

/// The running thread. Dropping it leaves the thread alone: it ends with the process.
#[derive(Debug)]
pub struct FsThread {
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl FsThread {
    /// Ends the thread after the request in hand and waits for it.
    ///
    /// A request may take as long as the host's file system does: a process that ends need not stop
    /// the thread first.
    ///
    /// # Errors
    /// The eventfd could not be written to.
    pub fn stop(self) -> io::Result<()> {
        self.stop.write(1)?;
        // A panic of the thread has been reported on its own.
        let _ = self.thread.join();
        Ok(())
    }
}

/// Runs `device` on a thread of its own, which calls `confine` before it serves anything.
///
/// The thread has a working directory and a umask of its own, because the library changes both while
/// it serves.
///
/// # Errors
/// See [`SpawnError`]; then no thread is left.
pub fn spawn(
    device: Arc<Mutex<Fs>>,
    confine: impl FnOnce() -> Result<(), jail::Error> + Send + 'static,
) -> Result<FsThread, SpawnError> {
    let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SpawnError::Thread)?;
    let stop = Arc::new(stop);
    let watched = Arc::clone(&stop);
    let (report, started) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("virtio-fs".into())
        .spawn(move || match set_up(device, watched, confine) {
            Ok((events, ended)) => {
                let _ = report.send(Ok(()));
                run(events, &ended);
            }
            Err(error) => {
                let _ = report.send(Err(error));
            }
        })
        .map_err(SpawnError::Thread)?;
    started.recv().map_err(|_| SpawnError::Ended)??;
    Ok(FsThread { stop, thread })
}

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

fn set_up(
    device: Arc<Mutex<Fs>>,
    stop: Arc<EventFd>,
    confine: impl FnOnce() -> Result<(), jail::Error>,
) -> Result<(EventManager<Subscriber>, Arc<Mutex<Stop>>), SpawnError> {
    let mut events = EventManager::<Subscriber>::new().map_err(SpawnError::EventLoop)?;
    let ended = Arc::new(Mutex::new(Stop {
        eventfd: stop,
        seen: false,
    }));
    events.add_subscriber(device);
    events.add_subscriber(ended.clone());
    // SAFETY: with CLONE_FS alone, no resource of another thread is touched: this thread gets a copy
    // of the working directory, root and umask.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(|e| SpawnError::Unshare(e.into()))?;
    confine()?;
    Ok((events, ended))
}

fn run(mut events: EventManager<Subscriber>, ended: &Mutex<Stop>) {
    while !ended.lock().is_ok_and(|stop| stop.seen) {
        if let Err(error) = events.run() {
            // Nothing but EBADF or EINVAL can come of waiting: the device is dead, the guest's
            // requests hang, and the reason is in the log.
            log::error!("virtio-fs: the event loop failed: {error:?}");
            return;
        }
    }
}

/// Ends the loop when its eventfd is written to.
struct Stop {
    eventfd: Arc<EventFd>,
    seen: bool,
}

impl MutEventSubscriber for Stop {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&*self.eventfd, EventSet::IN)) {
            log::error!("virtio-fs: cannot watch the stop eventfd: {error:?}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.seen = true;
    }
}
