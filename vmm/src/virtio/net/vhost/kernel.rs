//! An open `/dev/vhost-net` and its ioctls (linux/vhost.h), by rust-vmm's crate. The crate's own type opens
//! the device by its path, which no thread can that serves one; so the crate's traits are implemented
//! for a descriptor that is open already.
#![allow(unsafe_code)] // the ioctls that the crate implements for its own type only

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::net::VhostNet as SetBackend;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_GET_FEATURES, VHOST_NET_SET_BACKEND, VHOST_SET_OWNER, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};

use super::super::config::RING_FEATURES;
use crate::virtio::device::ActiveQueue;

/// Why the kernel can't serve the queues of a NIC.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// An ioctl failed.
    #[error("vhost-net: cannot {what}")]
    Ioctl {
        /// What it was for.
        what: &'static str,
        /// The reason.
        #[source]
        source: vhost::Error,
    },
    /// It supports no virtio from 1.0 on.
    #[error("vhost-net: the host's kernel lacks VIRTIO_F_VERSION_1, and must be 4.0 or newer")]
    TooOld,
    /// A ring of the driver spans two regions of guest memory.
    #[error("vhost-net: a ring is not in a single region of guest memory")]
    Ring,
}

/// Adds what an ioctl was for to its error.
fn cannot(what: &'static str) -> impl FnOnce(vhost::Error) -> VhostError {
    move |source| VhostError::Ioctl { what, source }
}

/// An open `/dev/vhost-net`.
#[derive(Debug)]
pub struct Vhost {
    file: File,
    /// The features of [`RING_FEATURES`] that it has.
    features: u64,
    /// This process owns it: the kernel accesses the memory of this process.
    is_owned: bool,
}

impl Vhost {
    /// Validates a descriptor, which may be of anything.
    ///
    /// # Errors
    /// The descriptor is not vhost-net, or the kernel is too old.
    pub fn new(descriptor: OwnedFd) -> Result<Self, VhostError> {
        let file = File::from(descriptor);
        let mut features = 0_u64;
        // SAFETY: vhost writes an integer of this type, and what is not vhost refuses this number.
        check(unsafe { ioctl_with_mut_ref(&file, VHOST_GET_FEATURES(), &mut features) })
            .map_err(cannot("read its features"))?;
        if features & (1 << VIRTIO_F_VERSION_1) == 0 {
            return Err(VhostError::TooOld);
        }
        Ok(Self {
            file,
            features: features & RING_FEATURES,
            is_owned: false,
        })
    }

    /// The features of [`RING_FEATURES`] that it has.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Makes the kernel serve a pair of queues: move their frames to and from `tap`. If it fails, one of
    /// the queues may be served.
    pub(super) fn start(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        features: u64,
        queues: &[ActiveQueue],
        irqfd: &EventFd,
        tap: &File,
    ) -> Result<(), VhostError> {
        self.become_owner()?;
        let (file, memory) = (&self.file, Arc::clone(memory));
        let device = Device { file, memory };
        device
            .set_features(features & self.features)
            .map_err(cannot("set its features"))?;
        let regions: Vec<_> = device.memory.iter().map(region).collect();
        device
            .set_mem_table(&regions)
            .map_err(cannot("set the guest's memory"))?;
        for (index, queue) in queues.iter().enumerate() {
            device.set_up_queue(index, queue, irqfd)?;
        }
        for index in 0..queues.len() {
            let set = device.set_backend(index, Some(tap));
            set.map_err(cannot("set the tap"))?;
        }
        Ok(())
    }

    /// Makes the kernel stop serving a queue, waits until its worker has, and returns the queue's state
    /// with its positions in the rings.
    pub(super) fn take_back(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        index: usize,
        queue: &Queue,
    ) -> Result<QueueState, VhostError> {
        let (file, memory) = (&self.file, Arc::clone(memory));
        let device = Device { file, memory };
        let base = device
            .set_backend(index, None)
            .and_then(|()| device.get_vring_base(index))
            .map_err(cannot("take a queue back"))?;
        Ok(QueueState {
            // It has returned all chains that it popped.
            next_avail: base as u16,
            next_used: base as u16,
            ..queue.state()
        })
    }

    /// Makes this process the owner, which creates the kernel's worker.
    fn become_owner(&mut self) -> Result<(), VhostError> {
        if !self.is_owned {
            // SAFETY: the ioctl takes no argument.
            check(unsafe { ioctl(&self.file, VHOST_SET_OWNER()) })
                .map_err(cannot("become its owner"))?;
            self.is_owned = true;
        }
        Ok(())
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The descriptor and the guest's memory, for which the crate's traits are implemented.
struct Device<'a> {
    file: &'a File,
    memory: Arc<GuestMemoryMmap>,
}

impl Device<'_> {
    fn set_up_queue(
        &self,
        index: usize,
        active: &ActiveQueue,
        irqfd: &EventFd,
    ) -> Result<(), VhostError> {
        let queue = &active.queue;
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: queue.desc_table(),
            used_ring_addr: queue.used_ring(),
            avail_ring_addr: queue.avail_ring(),
            log_addr: None,
        };
        if !self.is_valid(&config) {
            return Err(VhostError::Ring);
        }
        self.set_vring_num(index, queue.size())
            .and_then(|()| self.set_vring_base(index, queue.next_avail()))
            .and_then(|()| self.set_vring_addr(index, &config))
            .and_then(|()| self.set_vring_call(index, irqfd))
            .and_then(|()| self.set_vring_kick(index, &active.kick))
            .map_err(cannot("set up a queue"))
    }
}

impl VhostKernBackend for Device<'_> {
    type AS = Arc<GuestMemoryMmap>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// Whether each ring is in a single mapping: the kernel is given the address of its first byte
    /// only. The transport has checked everything else. (The crate's own check refuses a ring at the
    /// end of memory.)
    fn is_valid(&self, config: &VringConfigData) -> bool {
        let size = usize::from(config.queue_size);
        let rings = [
            (config.desc_table_addr, 16 * size),
            (config.avail_ring_addr, 6 + 2 * size),
            (config.used_ring_addr, 6 + 8 * size),
        ];
        let is_mapped =
            |(address, size)| self.memory.get_slice(GuestAddress(address), size).is_ok();
        rings.into_iter().all(is_mapped)
    }
}

impl SetBackend for Device<'_> {
    fn set_backend(&self, index: usize, tap: Option<&File>) -> vhost::Result<()> {
        let file = vhost_vring_file {
            index: index as u32,
            fd: tap.map_or(-1, AsRawFd::as_raw_fd),
        };
        // SAFETY: the kernel reads a structure of this type, which is borrowed for the call.
        check(unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) })
    }
}

impl AsRawFd for Device<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A region of guest memory: its addresses in the guest and in this process. The other fields are for
/// vhost-user only.
fn region(region: &GuestRegionMmap) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..VhostUserMemoryRegionInfo::default()
    }
}

fn check(result: libc::c_int) -> vhost::Result<()> {
    match result {
        ..0 => Err(vhost::Error::IoctlError(std::io::Error::last_os_error())),
        _ => Ok(()),
    }
}
