//! virtio-fs (virtio 1.3, chapter 5.11): the shared tree, served in this process.
//!
//! The FUSE protocol and the file system are virtiofsd's, used as a library; this module gives it the
//! guest's queues, bounds what the guest can ask of it, and decides how the file system behaves (see
//! [`Options`]). The device does blocking file I/O, so it runs on a thread of its own: [`spawn`].
//!
//! Locks (`flock`, `fcntl`) stay in the guest: the library offers none, so the guest's kernel keeps
//! them, and a lock is seen by every process of the guest and by nobody on the host.

mod options;
mod request;
mod share;
mod thread;
mod unnamed;
mod xattr;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod jailed;
#[cfg(test)]
mod tests;

pub use options::{CACHE_TIMEOUT, Options, RESERVED_FDS, fd_limit};
pub use thread::{FsThread, spawn};

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::View;
use super::queue::{Done, serve};
use super::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::event_loop::Subscriber;
use crate::stop::StopFlag;
use request::Service;

/// The `tag` field of the configuration space, in bytes (virtio 1.3, 5.11.4).
const TAG_SIZE: usize = 36;

/// The configuration space: the tag, and `num_request_queues`.
const CONFIG_SIZE: usize = TAG_SIZE + size_of::<u32>();

/// Queue 0 carries FORGET alone, queue 1 all other requests (virtio 1.3, 5.11.2).
///
/// Linux puts at most `queue size - 4` pages in a request, and with 256 pages a request is as large as
/// the library takes. More than one request queue would be served one after the other all the same.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// Requests served before the event loop gets to look at its other events.
const BUDGET: usize = 64;

/// Event data: the device's own eventfd. The queues' are `QUEUE + index`.
const CONTROL: u32 = 0;
const QUEUE: u32 = 1;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tag doesn't fit in the configuration space.
    #[error("tag: {0:?} must have 1 to {TAG_SIZE} bytes and no NUL")]
    Tag(String),
    /// The library could not be started.
    #[error("cannot open the shared tree")]
    Open(#[source] std::io::Error),
    /// An eventfd could not be made.
    #[error("cannot make an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// A virtio-fs device.
pub struct Fs {
    /// From [`Fs::open`] on.
    service: Option<Service>,
    /// Up to then.
    options: Option<Options>,
    config: [u8; CONFIG_SIZE],
    /// Written to when the queues have come or gone, and when a queue's budget is spent.
    control: EventFd,
    active: Option<Active>,
    /// The kick eventfds that the event loop watches: those of the last activation.
    watched: Vec<Arc<EventFd>>,
    /// The last driver is gone and its files are still open.
    stale: bool,
}

/// What there is between activation and reset.
struct Active {
    memory: View,
    queues: Vec<Served>,
    interrupt: Interrupt,
    stop: StopFlag,
}

/// A queue, its eventfd, and whether it can still be served.
struct Served {
    queue: Queue,
    kick: Arc<EventFd>,
    /// The driver has written nonsense to the rings: the queue waits for a reset.
    broken: bool,
}

impl Fs {
    /// Makes a device that is to serve the tree of `options`. It serves nothing before [`Self::open`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(options: Options) -> Result<Self, Error> {
        let mut config = [0; CONFIG_SIZE];
        let tag = options.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_SIZE || tag.contains(&0) {
            return Err(Error::Tag(options.tag));
        }
        config[..tag.len()].copy_from_slice(tag);
        config[TAG_SIZE..].copy_from_slice(&1_u32.to_le_bytes());

        Ok(Self {
            service: None,
            options: Some(options),
            config,
            control: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::EventFd)?,
            active: None,
            watched: Vec::new(),
            stale: false,
        })
    }

    /// Opens the tree, once, in the thread that serves it. `descriptors` is that thread's
    /// `/proc/thread-self/fd`, through which inodes are opened. Nothing else is opened in the tree before
    /// the guest mounts it.
    ///
    /// Sets the thread's umask to 0, as the guest decides on its files' modes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(&mut self, descriptors: File) -> Result<(), Error> {
        if let Some(options) = self.options.take() {
            let service = Service::new(options, descriptors).map_err(Error::Open)?;
            self.service = Some(service);
        }
        Ok(())
    }

    /// Wakes the event loop. A counter that is full is readable already.
    fn wake(&self) {
        let _ = self.control.write(1);
    }

    /// Closes the last driver's files. Any event of a new driver may come first, so this comes before
    /// all of them.
    fn forget_last_driver(&mut self) {
        if std::mem::take(&mut self.stale)
            && let Some(service) = &self.service
        {
            service.forget();
        }
    }

    /// Follows the transport: watches the queues of the last activation.
    fn follow_transport(&mut self, ops: &mut EventOps) {
        let kicks: Vec<_> = self.active.iter().flat_map(Active::kicks).collect();
        let unchanged = kicks.len() == self.watched.len()
            && kicks
                .iter()
                .zip(&self.watched)
                .all(|(a, b)| Arc::ptr_eq(a, b));
        if unchanged {
            return;
        }
        for kick in self.watched.drain(..) {
            if let Err(error) = ops.remove(Events::empty(&*kick)) {
                log::error!("virtio-fs: cannot stop watching a queue: {error:?}");
            }
        }
        for (kick, data) in kicks.iter().zip(QUEUE..) {
            if let Err(error) = ops.add(Events::with_data(&**kick, data, EventSet::IN)) {
                log::error!("virtio-fs: cannot watch a queue: {error:?}");
            }
        }
        self.watched = kicks;
    }

    /// Serves a queue until it is empty or the budget is spent; then the rest waits for the next turn
    /// of the event loop.
    fn serve(&mut self, index: usize) {
        let (Some(active), Some(service)) = (&mut self.active, &self.service) else {
            return;
        };
        let Some(served) = active.queues.get_mut(index) else {
            return;
        };
        match served.run(service, &active.memory, &active.interrupt, &active.stop) {
            Ok(Done::All) => {}
            Ok(Done::Some) => self.wake(),
            Err(error) => {
                log::warn!("virtio-fs: queue {index} is out of order until a reset: {error}");
                served.broken = true;
            }
        }
    }
}

impl Active {
    fn kicks(&self) -> impl Iterator<Item = Arc<EventFd>> + '_ {
        self.queues.iter().map(|served| Arc::clone(&served.kick))
    }
}

impl Served {
    /// Serves up to [`BUDGET`] requests.
    fn run(
        &mut self,
        service: &Service,
        view: &View,
        interrupt: &Interrupt,
        stop: &StopFlag,
    ) -> Result<Done, virtio_queue::Error> {
        if self.broken {
            return Ok(Done::All);
        }
        let memory = view.memory();
        serve(&mut self.queue, memory, interrupt, stop, BUDGET, |chain| {
            let written = service.serve(memory, chain).unwrap_or_else(|error| {
                log::debug!("virtio-fs: request refused: {error}");
                0
            });
            written as u32 // at most MAX_BYTES, so it fits
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn doorbell(&self) -> Option<RawFd> {
        Some(self.control.as_raw_fd())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.len() != QUEUE_SIZES.len() {
            return Err(ActivateError::QueueCount {
                expected: QUEUE_SIZES.len(),
                found: activation.queues.len(),
            });
        }
        let memory = View::new(activation.memory).map_err(std::io::Error::other)?;
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = activation
            .queues
            .into_iter()
            .map(|mut active| {
                active.queue.set_event_idx(event_idx);
                Served {
                    queue: active.queue,
                    kick: active.kick,
                    broken: false,
                }
            })
            .collect();
        self.active = Some(Active {
            memory,
            queues,
            interrupt: activation.interrupt,
            stop: activation.stop,
        });
        self.control.write(1)?;
        Ok(())
    }

    fn reset(&mut self) {
        // Closing the guest's files may take long: the device's thread does it, not the vCPU's.
        self.active = None;
        self.stale = true;
        self.wake();
    }
}

impl Subscriber for Fs {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.control.as_raw_fd()]
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::with_data(&self.control, CONTROL, EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("virtio-fs: cannot watch the device's eventfd: {error:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.forget_last_driver();
        match events.data() {
            CONTROL => {
                let _ = self.control.read();
                self.follow_transport(ops);
                // The driver may have filled the queues before they were watched.
                (0..QUEUE_SIZES.len()).for_each(|index| self.serve(index));
            }
            data => {
                let index = (data - QUEUE) as usize;
                if let Some(kick) = self.watched.get(index) {
                    let _ = kick.read();
                }
                self.serve(index);
            }
        }
    }
}
