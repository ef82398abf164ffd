//! virtio-fs (virtio 1.3, chapter 5.11): the shared tree, served in this process.
//!
//! The FUSE protocol and the file system are virtiofsd's, used as a library; this module connects
//! it to the guest's queues, limits what the guest can ask of it, and configures the file system
//! (see [`Options`]). The device does blocking file I/O, so it runs on a thread of its own:
//! [`spawn`].
//!
//! Once the guest has mounted the share, the library holds its inodes and open files as descriptors
//! of this process, which can't be saved. So the device can be saved only before the guest mounts
//! the share, or after it has unmounted it ([`SaveError::ShareMounted`]).
//!
//! Locks (`flock`, `fcntl`) stay in the guest: the library offers none, so the guest's kernel keeps
//! them, and a lock is seen by every process of the guest and by nobody on the host.

mod connect;
mod options;
mod request;
mod share;
mod thread;
mod unnamed;
mod xattr;

#[cfg(test)]
mod tests;

pub use options::{CACHE_TIMEOUT, Options, RESERVED_FDS, fd_limit};
pub use thread::{FsThread, spawn};

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::lifecycle::{Active, DeviceEvent, Lifecycle};
use super::queue::{DeviceQueue, Turn};
use super::{ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice};
use crate::event_loop::Subscriber;
use request::Service;

/// The `tag` field of the configuration space, in bytes (virtio 1.3, 5.11.4).
const TAG_SIZE: usize = 36;

/// The configuration space: the tag, and `num_request_queues`.
const CONFIG_SIZE: usize = TAG_SIZE + size_of::<u32>();

/// Queue 0 is for FORGET only, queue 1 for all other requests (virtio 1.3, 5.11.2).
///
/// Linux puts at most `queue size - 4` pages in a request, and with 256 pages a request is as large as
/// the library takes. More than one request queue would be served one after the other all the same.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// Requests served in one turn, before the event loop handles other events.
const BUDGET: usize = 64;

/// Why the device can't be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tag doesn't fit in the configuration space.
    #[error("tag: {0:?} must have 1 to {TAG_SIZE} bytes and no NUL")]
    Tag(String),
    /// The library could not open the tree.
    #[error("cannot open the shared tree")]
    Open(#[source] std::io::Error),
    /// An eventfd could not be created.
    #[error("cannot make an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// A virtio-fs device.
pub struct Fs {
    /// Set by [`Fs::open`].
    service: Option<Service>,
    /// Taken by [`Fs::open`].
    options: Option<Options>,
    config: [u8; CONFIG_SIZE],
    lifecycle: Lifecycle<[DeviceQueue; QUEUE_SIZES.len()]>,
    /// The device was reset, and the files of the last driver's FUSE session haven't been closed
    /// yet.
    has_stale_session: bool,
    /// What it gives connections by, to be kept open.
    giver: Option<RawFd>,
}

impl Fs {
    /// Creates a device for the tree of `options`. It serves no requests before [`Self::open`].
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
            giver: options.connections.as_ref().map(AsRawFd::as_raw_fd),
            service: None,
            options: Some(options),
            config,
            lifecycle: Lifecycle::new("virtio-fs".to_owned()).map_err(Error::EventFd)?,
            has_stale_session: false,
        })
    }

    /// Opens the tree. To be called once, on the thread that serves the device. `descriptors` is
    /// that thread's `/proc/thread-self/fd`, through which inodes are opened. The tree's root is
    /// opened only when the guest mounts it.
    ///
    /// Sets the thread's umask to 0, since the guest determines its files' modes.
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

    /// Closes the files of the last driver's session after a reset. Called before every event,
    /// since any of them may be the first of the new driver.
    fn end_stale_session(&mut self) {
        if std::mem::take(&mut self.has_stale_session)
            && let Some(service) = &self.service
        {
            service.end_session();
        }
    }

    /// Serves a queue until it is empty or the budget is used up; the rest is left for the next
    /// turn of the event loop.
    fn serve(&mut self, index: usize) {
        let (Some(active), Some(service)) = (self.lifecycle.active(), &self.service) else {
            return;
        };
        let Active {
            memory,
            queues,
            interrupt,
            stop,
            ..
        } = active;
        let turn = Turn {
            budget: BUDGET,
            stop,
            interrupt_each: Some(interrupt),
        };
        let memory = memory.memory();
        if let Some(queue) = queues.get_mut(index) {
            queue.serve(memory, turn, |chain| {
                let written = service.serve(memory, chain).unwrap_or_else(|error| {
                    log::debug!("virtio-fs: request refused: {error}");
                    0
                });
                Some(written as u32) // at most MAX_BYTES, so it fits
            });
        }
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

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.lifecycle.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        // Closing the guest's files may take long, so the device's thread does it instead of the
        // vCPU's.
        self.has_stale_session = true;
        self.lifecycle.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        match &self.service {
            Some(service) if service.is_mounted() && !self.has_stale_session => {
                Err(SaveError::ShareMounted)
            }
            _ => Ok(DeviceState::Fs),
        }
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Fs => Ok(()),
            _ => Err(RestoreError::Differs { what: "type" }),
        }
    }
}

impl Subscriber for Fs {
    fn descriptors(&self) -> Vec<RawFd> {
        let activation = [self.lifecycle.activation_eventfd()].into_iter();
        activation.chain(self.giver).collect()
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps) {
        self.lifecycle.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.end_stale_session();
        match self.lifecycle.on_event(&events, ops) {
            DeviceEvent::QueueKick(index) => self.serve(index),
            _ => (0..QUEUE_SIZES.len()).for_each(|index| self.serve(index)),
        }
        self.lifecycle.end_turn();
    }
}
