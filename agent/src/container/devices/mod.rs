//! A container's devices.
//!
//! - [`Disks`]: the host's block devices, which the guest has under other numbers.
//! - [`Nodes`]: the nodes of the devices that config.json lists, and of those that every container has.
//! - [`enforce`]: the rules of who may use which device.

mod bpf;
mod disks;
mod nodes;
mod rules;

pub use disks::Disks;
pub use nodes::{DEV, Nodes};
pub use rules::enforce;

use oci_spec::runtime::{Linux, LinuxDeviceType};

use crate::error::Error;
use crate::sys;

/// The major number of loop devices, of which the guest has its own.
const LOOP: i64 = 7;

/// A device's major and minor number.
type Number = (i64, i64);

/// Makes a config.json's devices, and its rules about them, those of the guest.
///
/// # Errors
/// When the guest lacks one of them.
pub fn prepare(linux: &mut Linux, disks: &Disks) -> Result<(), Error> {
    disks.translate(linux)?;
    for device in linux.devices().iter().flatten() {
        if device.typ() == LinuxDeviceType::B && device.major() == LOOP {
            let path = device.path().display();
            sys::add_loop_device(device.minor())
                .map_err(Error::io(format!("add a loop device for {path}")))?;
        }
    }
    Ok(())
}
