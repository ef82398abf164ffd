//! A disk as the backend that is plugged into a [slot]. The line of the request says whether the
//! disk can only be read, and its serial number.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use super::{Disk, DisklessBlock, SERIAL_SIZE};
use crate::virtio::slot::{self, Backend, PluggedDevice, Slot, SlotError};

/// A slot for a disk, which a thread of its own serves, as a [`Block`](super::Block).
pub type DiskSlot = Slot<Disk>;

/// The end of a slot's socket pair by which a disk is sent to its thread.
pub type SlotHandle = slot::SlotHandle<Disk>;

impl SlotHandle {
    /// Sends a disk to the slot's thread, which validates the descriptor and answers later. Doesn't
    /// block.
    ///
    /// # Errors
    /// There is a disk in the slot, or its thread hasn't received the last one yet.
    pub fn send_disk(
        &self,
        device: BorrowedFd<'_>,
        serial: &str,
        read_only: bool,
    ) -> io::Result<()> {
        let line = format!("{} {serial}", if read_only { "ro" } else { "rw" });
        self.send(&line, &[device])
    }
}

impl Backend for Disk {
    type BareDevice = DisklessBlock;

    const REQUEST: &'static str = "a disk and its serial number";

    /// `rw`, a space, and the serial number.
    const LONGEST_LINE: usize = 3 + SERIAL_SIZE;

    fn activation_eventfd(bare: &DisklessBlock) -> RawFd {
        bare.activation_eventfd()
    }

    fn from_request(
        _: &DisklessBlock,
        line: &str,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, SlotError> {
        let malformed = || SlotError::Malformed(Self::REQUEST);
        let (serial, read_only) = parse(line).ok_or_else(malformed)?;
        let [device] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| malformed())?;
        Ok(Disk::from_received_fd(device, serial, read_only)?)
    }

    fn insert_into(self, bare: DisklessBlock) -> (PluggedDevice, Option<DisklessBlock>) {
        let block = Arc::new(Mutex::new(bare.insert_disk(self)));
        let plugged = PluggedDevice {
            device: block.clone(),
            subscriber: block,
        };
        (plugged, None)
    }
}

/// The serial number, and whether the disk can only be read.
fn parse(line: &str) -> Option<(&str, bool)> {
    match line.split_once(' ')? {
        ("ro", serial) => Some((serial, true)),
        ("rw", serial) => Some((serial, false)),
        _ => None,
    }
}
