//! The virtio-mmio devices of the guest, by the number of their slot, as sysfs shows them.
//!
//! At boot the kernel's virtio-mmio driver ignores empty slots (virtio 1.3, 4.2.3.1.1). Once the host has plugged a
//! device into one, the driver has to probe it. The drivers of disks and NICs are built in, so the disk or the network
//! interface exists when that is done.

use std::fs;
use std::io;
use std::path::Path;

/// Writing a device's name to this file makes the virtio-mmio driver probe it.
pub const DRIVER_BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

/// Writing a device's name to this file makes the virtio-mmio driver remove it.
pub const DRIVER_UNBIND: &str = "/sys/bus/platform/drivers/virtio-mmio/unbind";

/// Has a directory for each slot.
pub const PLATFORM_DEVICES: &str = "/sys/bus/platform/devices";

/// Has a symbolic link to the directory of each virtio device, which is in that of its slot.
pub const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";

/// Has the driver probe a slot. A slot whose device is bound already is left as it is.
///
/// # Errors
/// When there is no device, or its driver refuses it.
pub fn bind(driver: &Path, slot: u32) -> io::Result<()> {
    match fs::write(driver, name(slot)) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        written => written,
    }
}

/// Has the driver remove the device in a slot: its disk or network interface is gone then, wherever it is in use.
/// A slot without a bound device is left as it is.
///
/// # Errors
/// When the kernel refuses.
pub fn unbind(driver: &Path, slot: u32) -> io::Result<()> {
    match fs::write(driver, name(slot)) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        written => written,
    }
}

/// The name, like `virtio3`, of the virtio device in a slot, if there is one.
///
/// # Errors
/// When there is no such slot.
pub fn device(platform_devices: &Path, slot: u32) -> io::Result<Option<String>> {
    for entry in fs::read_dir(platform_devices.join(name(slot)))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let number = name.strip_prefix("virtio");
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The slot that a device is in; `None` if it isn't a virtio-mmio device.
///
/// # Errors
/// When sysfs can't be read.
pub fn slot_of(virtio_devices: &Path, device: &str) -> io::Result<Option<u32>> {
    let directory = match fs::read_link(virtio_devices.join(device)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        link => link?,
    };
    let slot = directory.parent().and_then(Path::file_name);
    let number = slot.and_then(|slot| slot.to_str()?.strip_prefix("virtio-mmio."));
    Ok(number.and_then(|number| number.parse().ok()))
}

/// The name of a slot's platform device. The kernel numbers the devices of its command line from 0 (vm_cmdline_set in
/// drivers/virtio/virtio_mmio.c). A slot's number is the same.
fn name(slot: u32) -> String {
    format!("virtio-mmio.{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_device_is_found_among_the_files_of_its_directory() {
        let devices = tempfile::tempdir().expect("a directory");
        let slot = devices.path().join("virtio-mmio.4");
        fs::create_dir_all(slot.join("power")).expect("a directory");
        fs::create_dir(slot.join("virtio")).expect("a directory");
        assert_eq!(device(devices.path(), 4).expect("a slot"), None);
        fs::create_dir(slot.join("virtio7")).expect("a directory");
        let found = device(devices.path(), 4).expect("a slot");
        assert_eq!(found.as_deref(), Some("virtio7"));
        assert!(device(devices.path(), 5).is_err());
    }

    #[test]
    fn a_devices_slot_is_the_parent_of_its_directory() {
        let devices = tempfile::tempdir().expect("a directory");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, devices.path().join(name)).expect("a link");
        };
        link(
            "../../../devices/virtio-mmio-cmdline/virtio-mmio.12/virtio7",
            "virtio7",
        );
        link(
            "../../../devices/pci0000:00/0000:00:01.0/virtio0",
            "virtio0",
        );
        let slot = |device| slot_of(devices.path(), device);
        assert_eq!(slot("virtio7").expect("a device"), Some(12));
        assert_eq!(slot("virtio0").expect("a device"), None);
        assert_eq!(slot("eth0").expect("no virtio device"), None);
    }

    #[test]
    fn the_driver_gets_the_slots_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let driver = directory.path().join("unbind");
        unbind(&driver, 12).expect("written");
        let written = fs::read_to_string(&driver).expect("what was written");
        assert_eq!(written, "virtio-mmio.12");
    }
}
