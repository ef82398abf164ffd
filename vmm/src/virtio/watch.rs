//! What the loop of a device with one queue waits for: its driver's coming and going, and the queue's
//! kicks.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The eventfds that a device has its loop watch.
#[derive(Debug)]
pub(super) struct Watch {
    /// The device, for messages.
    device: &'static str,
    /// Tells the loop that the driver has come or gone.
    changed: EventFd,
    /// The kick that the loop watches, kept open until it watches it no longer.
    kick: Option<Arc<EventFd>>,
}

impl Watch {
    /// Of a device that no driver has found yet.
    pub(super) fn new(device: &'static str) -> io::Result<Self> {
        Ok(Self {
            device,
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            kick: None,
        })
    }

    /// Tells the loop, from whatever thread, that the driver has come.
    pub(super) fn driver_came(&self) -> io::Result<()> {
        self.changed.write(1)
    }

    /// Tells the loop that the driver has gone.
    pub(super) fn driver_went(&self) {
        let _ = self.changed.write(1); // if full, the loop is told already
    }

    /// The eventfd that these two write to.
    pub(super) fn doorbell(&self) -> RawFd {
        self.changed.as_raw_fd()
    }

    /// Has the loop wait for the driver.
    pub(super) fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.changed, EventSet::IN)) {
            log::error!("{}: cannot watch for its driver: {error:?}", self.device);
        }
    }

    /// Takes an event. `kick` is that of the queue that there is now. The queue is to be served then: a
    /// kick may have come before it was watched.
    pub(super) fn on_event(
        &mut self,
        events: &Events,
        kick: Option<&Arc<EventFd>>,
        ops: &mut EventOps<'_>,
    ) {
        if events.fd() == self.changed.as_raw_fd() {
            let _ = self.changed.read();
            self.follow(kick, ops);
        } else if let Some(kick) = &self.kick {
            let _ = kick.read();
        }
    }

    fn follow(&mut self, kick: Option<&Arc<EventFd>>, ops: &mut EventOps<'_>) {
        if let Some(old) = self.kick.take() {
            let _ = ops.remove(Events::new(&*old, EventSet::IN));
        }
        if let Some(kick) = kick {
            match ops.add(Events::new(&**kick, EventSet::IN)) {
                Ok(()) => self.kick = Some(Arc::clone(kick)),
                Err(error) => log::error!("{}: cannot watch its queue: {error:?}", self.device),
            }
        }
    }
}
