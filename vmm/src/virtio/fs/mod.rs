//! virtio-fs (virtio 1.3, chapter 5.11): the shared tree, served in this process.
//!
//! The FUSE protocol and the file system are virtiofsd's, used as a library; this module gives it the
//! guest's queues, bounds what the guest can ask of it, and decides how the file system behaves (see
//! [`Options`]). The device does blocking file I/O, so it runs on a thread of its own: [`spawn`].
//!
//! What a guest that has mounted the share has looked up and opened is in the library, as descriptors of
//! this process, and has no form that could be saved: the device can be saved only before the guest mounts
//! the share, or after it has unmounted it ([`SaveError::ShareMounted`]).
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
mod tests;

pub use options::{CACHE_TIMEOUT, Options, RESERVED_FDS, fd_limit};
pub use thread::{FsThread, spawn};

use std::fs::File;
use std::os::fd::RawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::life::{Active, Life, Told};
use super::queue::Turn;
use super::{ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice};
use crate::event_loop::Subscriber;
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
    life: Life<{ QUEUE_SIZES.len() }>,
    /// The last driver is gone and its files are still open.
    stale: bool,
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
            life: Life::new("virtio-fs".to_owned()).map_err(Error::EventFd)?,
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

    /// Closes the last driver's files. Any event of a new driver may come first, so this comes before
    /// all of them.
    fn forget_last_driver(&mut self) {
        if std::mem::take(&mut self.stale)
            && let Some(service) = &self.service
        {
            service.forget();
        }
    }

    /// Serves a queue until it is empty or the budget is spent; then the rest waits for the next turn
    /// of the event loop.
    fn serve(&mut self, index: usize) {
        let (Some(active), Some(service)) = (self.life.active(), &self.service) else {
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
            tell_each: Some(interrupt),
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

    fn doorbell(&self) -> Option<RawFd> {
        Some(self.life.doorbell())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.life.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.life.stop()
    }

    fn reset(&mut self) {
        // Closing the guest's files may take long: the device's thread does it, not the vCPU's.
        self.stale = true;
        self.life.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        match &self.service {
            Some(service) if service.is_mounted() && !self.stale => Err(SaveError::ShareMounted),
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
        vec![self.life.doorbell()]
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps) {
        self.life.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.forget_last_driver();
        match self.life.on_event(&events, ops) {
            Told::Kick(index) => self.serve(index),
            _ => (0..QUEUE_SIZES.len()).for_each(|index| self.serve(index)),
        }
        self.life.end_turn();
    }
}
