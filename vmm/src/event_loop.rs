//! The event loop of a thread that serves devices: event-manager's, with a way to stop it, and with
//! a list of the file descriptors that the thread needs.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A device, or anything else that handles events on file descriptors.
pub trait Subscriber: MutEventSubscriber + Send {
    /// The descriptors that it needs in the thread that serves it. All others are closed in that
    /// thread (see [`jail::confine`](crate::jail::confine)).
    fn descriptors(&self) -> Vec<RawFd>;

    /// Has the loop watch nothing of it any more, and stops what it does: it is about to be dropped
    /// while the loop goes on. Only for what can be removed from its loop.
    fn unwatch(&mut self, _: &mut EventOps<'_>) {}
}

type SharedSubscriber = Arc<Mutex<dyn Subscriber>>;

/// An event loop that doesn't run yet.
pub struct EventLoop {
    subscribers: Vec<SharedSubscriber>,
    /// Further descriptors that its thread needs.
    kept_open: Vec<RawFd>,
    stop: Arc<EventFd>,
    stopped: Arc<Mutex<StopListener>>,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

/// Ends a loop from anywhere.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<EventFd>);

impl StopHandle {
    /// Makes the loop return after the events that it is handling now.
    pub fn stop(&self) {
        let _ = self.0.write(1); // a full eventfd is readable too
    }
}

impl EventLoop {
    /// An event loop without subscribers.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new() -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stopped = Arc::new(Mutex::new(StopListener {
            stop: Arc::clone(&stop),
            stopped: false,
        }));
        Ok(Self {
            subscribers: vec![Arc::clone(&stopped) as _],
            kept_open: Vec::new(),
            stop,
            stopped,
        })
    }

    /// Adds a device.
    pub fn add(&mut self, subscriber: Arc<Mutex<dyn Subscriber>>) {
        self.subscribers.push(subscriber);
    }

    /// Adds descriptors that its thread needs besides those of its subscribers: a device's eventfds
    /// for queues and interrupts.
    pub fn keep_open(&mut self, descriptors: Vec<RawFd>) {
        self.kept_open.extend(descriptors);
    }

    /// All descriptors that must be open in the thread that runs the loop. It creates its epoll
    /// descriptor itself.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let served = self.subscribers.iter().flat_map(|served| {
            let served = served.lock().unwrap_or_else(PoisonError::into_inner);
            served.descriptors()
        });
        served.chain(self.kept_open.iter().copied()).collect()
    }

    /// A handle that stops this loop.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.stop))
    }

    /// Runs the loop in the calling thread until it is stopped.
    ///
    /// # Errors
    /// The process has too many files open, or waiting for events failed, for a reason other than a signal.
    pub fn run(self) -> io::Result<()> {
        self.watch()?.serve()
    }

    /// Creates the epoll descriptor, which belongs to the calling thread alone, and adds the
    /// subscribers to it.
    fn watch(self) -> io::Result<RunningLoop> {
        let mut manager = EventManager::new().map_err(to_io)?;
        for subscriber in self.subscribers {
            manager.add_subscriber(subscriber);
        }
        Ok(RunningLoop {
            manager,
            stopped: self.stopped,
        })
    }

    /// Runs the loop in a new thread, which first calls `confine` with the [`Self::descriptors`]
    /// that it needs. Returns once that is done. A loop that fails later panics: the guest's requests
    /// to its devices would hang.
    ///
    /// # Errors
    /// The thread can't be created, or `confine` failed; then the thread has ended.
    pub fn spawn(
        self,
        name: &str,
        confine: impl FnOnce(Vec<RawFd>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (report, confined) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            let watching = match confine(self.descriptors()).and_then(|()| self.watch()) {
                Ok(watching) => watching,
                Err(error) => {
                    let _ = report.send(Err(error));
                    return;
                }
            };
            let _ = report.send(Ok(()));
            if let Err(error) = watching.serve() {
                panic!("the event loop failed: {error}");
            }
        })?;
        match confined.recv() {
            Ok(result) => result.map(|()| thread),
            Err(_) => Err(io::Error::other("the thread ended while it started")),
        }
    }
}

/// An event loop that runs.
struct RunningLoop {
    manager: EventManager<SharedSubscriber>,
    stopped: Arc<Mutex<StopListener>>,
}

impl RunningLoop {
    fn serve(mut self) -> io::Result<()> {
        loop {
            self.manager.run().map_err(to_io)?; // it retries after a signal
            let listener = self.stopped.lock();
            if listener.is_ok_and(|listener| listener.stopped) {
                return Ok(());
            }
        }
    }
}

struct StopListener {
    stop: Arc<EventFd>,
    stopped: bool,
}

impl Subscriber for StopListener {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.stop.as_raw_fd()]
    }
}

impl MutEventSubscriber for StopListener {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&*self.stop, EventSet::IN)) {
            log::error!("event loop: cannot watch for its end: {error:?}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.stopped = true;
    }
}

fn to_io(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_until_it_is_stopped() {
        let events = EventLoop::new().expect("epoll");
        let stop = events.stop_handle();
        let thread = events.spawn("test", |_| Ok(())).expect("a thread");
        stop.stop();
        thread.join().expect("no panic");
    }

    #[test]
    fn it_says_what_its_thread_needs() {
        let mut events = EventLoop::new().expect("epoll");
        let stop = events.stop.as_raw_fd();
        events.keep_open(vec![1000, 1001]);
        assert_eq!(events.descriptors(), [stop, 1000, 1001]);
    }

    #[test]
    fn it_does_not_serve_unconfined() {
        let events = EventLoop::new().expect("epoll");
        let refused = events.spawn("test", |_| Err(io::Error::other("no filter")));
        assert_eq!(refused.expect_err("refused").to_string(), "no filter");
    }
}
