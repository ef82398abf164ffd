//! A thread that serves devices: event-manager's loop, with an end.

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A device, or whatever else reacts to file descriptors.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// A loop that does not run yet.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
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
    /// Lets the loop end after what it is doing now.
    pub fn stop(&self) {
        let _ = self.0.write(1); // if full, it was told already
    }
}

impl EventLoop {
    /// A loop with nobody in it.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new() -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stopped = Arc::new(Mutex::new(StopListener {
            stop: Arc::clone(&stop),
            stopped: false,
        }));
        let mut manager = EventManager::new().map_err(to_io)?;
        manager.add_subscriber(Arc::clone(&stopped) as Subscriber);
        Ok(Self {
            manager,
            stop,
            stopped,
        })
    }

    /// Adds a device.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// What ends this loop.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.stop))
    }

    /// Serves, in this thread, until it is stopped.
    ///
    /// # Errors
    /// Waiting for events failed, for a reason other than a signal.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.manager.run().map_err(to_io)?; // a signal is no error to it
            let listener = self.stopped.lock();
            if listener.is_ok_and(|listener| listener.stopped) {
                return Ok(());
            }
        }
    }

    /// Serves in a thread of its own, which first runs `confine`. Returns once it has.
    ///
    /// # Errors
    /// There can be no more threads, or the thread could not be confined; then it is gone.
    pub fn spawn(
        self,
        name: &str,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let (report, confined) = mpsc::sync_channel(1);
        let own_name = name.to_owned();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            let result = confine();
            let is_confined = result.is_ok();
            let _ = report.send(result);
            if !is_confined {
                return Ok(());
            }
            let ended = self.run();
            if let Err(error) = &ended {
                // Its devices are dead, and the guest's requests hang.
                log::error!("{own_name}: the event loop failed: {error}");
            }
            ended
        })?;
        match confined.recv() {
            Ok(result) => result.map(|()| thread),
            Err(_) => Err(io::Error::other("the thread ended while it started")),
        }
    }
}

struct StopListener {
    stop: Arc<EventFd>,
    stopped: bool,
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
        let thread = events.spawn("test", || Ok(())).expect("a thread");
        stop.stop();
        thread.join().expect("no panic").expect("no error");
    }

    #[test]
    fn it_does_not_serve_unconfined() {
        let events = EventLoop::new().expect("epoll");
        let refused = events.spawn("test", || Err(io::Error::other("no filter")));
        assert_eq!(refused.expect_err("refused").to_string(), "no filter");
    }
}
