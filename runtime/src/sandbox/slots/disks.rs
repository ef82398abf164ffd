//! Disks that a VM process gets while it runs.
//!
//! `DISK <serial> ro` or `DISK <serial> rw`, with one descriptor: a block device of the host or a regular file, open for
//! reading alone or for reading and writing. The serial number, by which the guest finds the disk, has 1 to 20 letters,
//! digits, `-`, `_` and `.`, the first a letter or a digit, and is that of no other disk of the VM.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hull_vmm::virtio::block::{Disk, SERIAL_SIZE};
use hull_vmm::virtio::slot::SlotHandle;

use super::{DeviceLine, hand};
use crate::sandbox::AgentError;
use crate::store::SandboxDir;

/// What is said of a disk.
pub struct DiskLine {
    serial: String,
    read_only: bool,
}

impl DeviceLine for DiskLine {
    type Backend = Disk;

    const VERB: &'static str = "DISK";
    const WHAT: &'static str = "disk";
    const MOST_DESCRIPTORS: usize = 1;
    const REMOVAL: Option<&'static str> = None;
    const NO_SLOTS: &'static str =
        "its VM has no slots for disks (disk_slots of hull.toml, before it is created)";

    fn parse(words: &str) -> Result<Self, &'static str> {
        let (serial, read_only) = match words.split_once(' ') {
            Some((serial, "ro")) => (serial, true),
            Some((serial, "rw")) => (serial, false),
            _ => return Err("expected DISK, a serial number, and ro or rw"),
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins_well = serial.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !begins_well || serial.len() > SERIAL_SIZE || !serial.bytes().all(is_plain) {
            return Err(
                "a serial number has 1 to 20 letters, digits, \"-\", \"_\" and \".\", the first a letter or a digit",
            );
        }
        let serial = serial.to_owned();
        Ok(Self { serial, read_only })
    }

    fn name(&self) -> String {
        self.serial.clone()
    }

    fn send(&self, slot: &SlotHandle<Disk>, descriptors: &[OwnedFd]) -> io::Result<()> {
        let device = descriptors.first().ok_or(io::ErrorKind::InvalidInput)?;
        slot.send_disk(device.as_fd(), &self.serial, self.read_only)
    }
}

/// Hands a block device of the host, or a regular file, to the VMM of the sandbox whose folder this is: open
/// for reading alone if `read_only`, else for reading and writing. Returns the number of the slot that it is in
/// from then on, which the agent has to be told.
///
/// # Errors
/// When the VMM doesn't answer, has no empty slot, or refuses the device.
pub fn hand_disk(
    dir: &SandboxDir,
    device: BorrowedFd<'_>,
    serial: &str,
    read_only: bool,
) -> Result<u8, AgentError> {
    let mode = if read_only { "ro" } else { "rw" };
    hand::<DiskLine>(&dir.socket_path(), &format!("{serial} {mode}"), &[device])
}
