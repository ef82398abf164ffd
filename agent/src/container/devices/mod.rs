//! A container's devices.
//!
//! - [`Disks`]: the host's block devices, which the guest has under other numbers.
//! - [`DeviceNodes`]: the nodes of the devices that config.json lists, and of those that every container has.
//! - [`enforce`]: the device rules of the container's cgroup.

mod disks;
mod nodes;
mod rules;

pub use disks::Disks;
pub use nodes::{DEV, DeviceNodes};
pub use rules::enforce;

use oci_spec::runtime::{Linux, LinuxDeviceType};

use crate::error::Error;
use crate::sys;

/// The major number of loop devices, of which the guest has its own.
const LOOP_MAJOR: i64 = 7;

/// A device's major and minor number.
type DeviceNumber = (i64, i64);

/// Replaces the host's device numbers in a config.json by the guest's, and adds the loop devices that it lists.
///
/// # Errors
/// When the guest lacks one of them.
pub fn prepare(linux: &mut Linux, disks: &Disks) -> Result<(), Error> {
    disks.translate(linux)?;
    for device in linux.devices().iter().flatten() {
        if device.typ() == LinuxDeviceType::B && device.major() == LOOP_MAJOR {
            let path = device.path().display();
            sys::add_loop_device(device.minor())
                .map_err(Error::io(format!("add a loop device for {path}")))?;
        }
    }
    Ok(())
}
