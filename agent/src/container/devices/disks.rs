//! The host's block devices, which are disks of the guest.
//!
//! [`Disks`] maps the host's device numbers to the guest's, and replaces them in config.json. A disk was there when
//! the kernel booted, and its driver is built in, so it needn't be waited for; or it was put into a slot later,
//! and the driver has to probe that slot again. Loop devices are the guest's own.

use std::fs;
use std::io;
use std::path::Path;

use hull_protocol::agent::BlockDevice;
use hull_protocol::paths::DISKS;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chmod, chownat, makedev, mknodat};
use rustix::io::Errno;
use tokio::task::spawn_blocking;

use super::{DeviceNumber, LOOP_MAJOR};
use crate::error::{Error, Failure};
use crate::slots;

/// Where the kernel lists the guest's block devices.
const SYSFS: &str = "/sys/block";

/// The disks of a container.
#[derive(Debug, Default)]
pub struct Disks(Vec<Disk>);

#[derive(Debug)]
struct Disk {
    /// Its number on the host, as in config.json.
    host: DeviceNumber,
    guest: DeviceNumber,
}

impl Disks {
    /// Finds the guest's disks for these devices of the host, and makes a node in [`DISKS`] for each: the source of
    /// config.json's bind mounts of them.
    ///
    /// A disk in a slot is bound to its driver first. The kernel reads from the disk then, so that is done in a
    /// thread of its own: the host's device may be slow, and the agent must answer other requests.
    ///
    /// # Errors
    /// When there is no such disk.
    pub async fn find(devices: &[BlockDevice]) -> Result<Self, Error> {
        if devices.iter().any(|device| device.slot != 0) {
            let devices = devices.to_vec();
            let bound =
                spawn_blocking(move || bind_slots(Path::new(slots::DRIVER_BIND), &devices)).await;
            bound.map_err(|e| Error::io("bind the slots of disks")(e.into()))??;
        }
        Self::find_in(Path::new(SYSFS), Path::new(DISKS), devices)
    }

    fn find_in(sysfs: &Path, nodes: &Path, devices: &[BlockDevice]) -> Result<Self, Error> {
        if devices.is_empty() {
            return Ok(Self::default());
        }
        let known = disks_in(sysfs).map_err(Error::io(format!("list {}", sysfs.display())))?;
        let mut disks = Vec::new();
        for device in devices {
            let found = known.iter().find(|(serial, _)| *serial == device.serial);
            let Some((_, guest)) = found else {
                let (major, minor) = (device.major, device.minor);
                let what = format!("disk {} (the host's {major}:{minor})", device.serial);
                return Err(Error::NotFound(what));
            };
            let node = nodes.join(&device.serial);
            make_node(&node, *guest, device)
                .map_err(Error::io(format!("make {}", node.display())))?;
            disks.push(Disk {
                host: (device.major.into(), device.minor.into()),
                guest: *guest,
            });
        }
        Ok(Self(disks))
    }

    /// Replaces the host's device numbers in a config.json by the guest's.
    ///
    /// # Errors
    /// When a device that the host doesn't have has the number of one of the guest's disks.
    pub(super) fn translate(&self, linux: &mut Linux) -> Result<(), Failure> {
        for (index, device) in linux.devices_mut().iter_mut().flatten().enumerate() {
            if let Some(disk) = self.disk_of(device) {
                device.set_major(disk.guest.0).set_minor(disk.guest.1);
            } else if self.has_number_of_a_disk(device) {
                let (path, number) = (device.path().display(), (device.major(), device.minor()));
                return Err(Failure::config(format!(
                    "linux.devices[{index}]: {path}: in the guest, {}:{} is another disk; remove it",
                    number.0, number.1
                )));
            }
        }
        let resources = linux.resources_mut().as_mut();
        if let Some(rules) = resources.and_then(|resources| resources.devices_mut().as_mut()) {
            *rules = rules
                .iter()
                .flat_map(|rule| self.translate_rule(rule))
                .collect();
        }
        Ok(())
    }

    fn disk_of(&self, device: &LinuxDevice) -> Option<&Disk> {
        let number = (device.major(), device.minor());
        let mut disks = self.0.iter();
        disks.find(|disk| device.typ() == LinuxDeviceType::B && disk.host == number)
    }

    /// Whether a device's number is, by coincidence, that of one of the guest's disks.
    fn has_number_of_a_disk(&self, device: &LinuxDevice) -> bool {
        let number = (device.major(), device.minor());
        let mut disks = self.0.iter();
        disks.any(|disk| device.typ() == LinuxDeviceType::B && disk.guest == number)
    }

    /// Translates a rule about the host's block devices into rules about the guest's: one for each disk that it
    /// matches. A rule about all block devices, or about loop devices, is kept as it is. A rule about devices that
    /// the guest doesn't have is dropped, as their numbers may be another disk's in the guest.
    fn translate_rule(&self, rule: &LinuxDeviceCgroup) -> Vec<LinuxDeviceCgroup> {
        let given = |number: Option<i64>| number.filter(|number| *number >= 0);
        let (major, minor) = (given(rule.major()), given(rule.minor()));
        let is_block = rule.typ() == Some(LinuxDeviceType::B);
        if !is_block || (major.is_none() && minor.is_none()) {
            return vec![rule.clone()];
        }
        let matches = |disk: &&Disk| {
            major.is_none_or(|major| major == disk.host.0)
                && minor.is_none_or(|minor| minor == disk.host.1)
        };
        let mut rules: Vec<_> = self
            .0
            .iter()
            .filter(matches)
            .map(|disk| {
                let mut rule = rule.clone();
                rule.set_major(Some(disk.guest.0))
                    .set_minor(Some(disk.guest.1));
                rule
            })
            .collect();
        let is_one_disk = major.is_some() && minor.is_some() && !rules.is_empty();
        if major.is_none_or(|major| major == LOOP_MAJOR) && !is_one_disk {
            let mut loops = rule.clone();
            loops.set_major(Some(LOOP_MAJOR));
            rules.push(loops);
        }
        rules
    }
}

/// Has the driver probe the slots that these disks were put into.
fn bind_slots(driver: &Path, devices: &[BlockDevice]) -> Result<(), Error> {
    for device in devices {
        if let Some(slot) = device.slot.checked_sub(1) {
            let what = format!("bind slot {slot}, of disk {}", device.serial);
            slots::bind(driver, slot).map_err(Error::io(what))?;
        }
    }
    Ok(())
}

/// The serial numbers and device numbers of the guest's disks.
fn disks_in(sysfs: &Path) -> io::Result<Vec<(String, DeviceNumber)>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(sysfs)? {
        let path = entry?.path();
        // A loop device has none.
        let Ok(serial) = fs::read_to_string(path.join("serial")) else {
            continue;
        };
        let number = fs::read_to_string(path.join("dev"))?;
        if let Some(number) = parse_number(number.trim_end()) {
            disks.push((serial.trim_end().to_owned(), number));
        }
    }
    Ok(disks)
}

fn parse_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Makes a disk's node, with the mode and owner that it has on the host. It exists if an earlier container had the
/// same disk.
fn make_node(path: &Path, (major, minor): DeviceNumber, disk: &BlockDevice) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let major = u32::try_from(major).map_err(invalid)?;
    let device = makedev(major, u32::try_from(minor).map_err(invalid)?);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mode = Mode::from_raw_mode(disk.mode);
    match mknodat(CWD, path, FileType::BlockDevice, mode, device) {
        Err(Errno::EXIST) => {}
        made => made?,
    }
    chmod(path, mode)?; // whatever the umask
    let (uid, gid) = (Uid::from_raw(disk.uid), Gid::from_raw(disk.gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Two disks: the host's 8:16 is 254:0, the host's loop device 7:3 is 254:16.
    fn disks() -> Disks {
        Disks(vec![
            Disk {
                host: (8, 16),
                guest: (254, 0),
            },
            Disk {
                host: (7, 3),
                guest: (254, 16),
            },
        ])
    }

    fn translated(linux: Value) -> Value {
        let mut linux = serde_json::from_value(linux).expect("a linux object");
        disks().translate(&mut linux).expect("translated");
        serde_json::to_value(linux).expect("JSON")
    }

    /// The major and minor numbers of the rules that a rule is translated into.
    fn rules(rule: Value) -> Vec<(Option<i64>, Option<i64>)> {
        let rule = serde_json::from_value(rule).expect("a rule");
        let rules = disks().translate_rule(&rule);
        rules
            .iter()
            .map(|rule| (rule.major(), rule.minor()))
            .collect()
    }

    #[test]
    fn a_disk_gets_the_guests_number_and_a_loop_device_keeps_its_own() {
        let device = |kind, major, minor| json!({"path": "/dev/x", "type": kind, "major": major, "minor": minor});
        let linux = translated(json!({"devices": [
            device("b", 8, 16), device("b", 7, 3), device("b", 7, 0), device("c", 8, 16),
        ]}));
        let number = |index: usize| {
            let device = &linux["devices"][index];
            (device["major"].as_i64(), device["minor"].as_i64())
        };
        assert_eq!(number(0), (Some(254), Some(0)));
        assert_eq!(number(1), (Some(254), Some(16)));
        assert_eq!(number(2), (Some(7), Some(0)));
        assert_eq!(number(3), (Some(8), Some(16)));
    }

    #[test]
    fn a_device_with_the_number_of_another_disk_is_refused() {
        let device = json!({"path": "/dev/x", "type": "b", "major": 254, "minor": 16});
        let mut linux =
            serde_json::from_value(json!({"devices": [device]})).expect("a linux object");
        let error = disks().translate(&mut linux).expect_err("refused");
        assert!(
            error
                .message
                .starts_with("config.json: linux.devices[0]: /dev/x: "),
            "{error}"
        );
    }

    #[test]
    fn translated_rules_match_the_same_devices() {
        let block = |major: i64, minor: i64| json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"});
        assert_eq!(rules(block(8, 16)), [(Some(254), Some(0))]);
        assert_eq!(rules(block(7, 3)), [(Some(254), Some(16))]);
        assert_eq!(rules(block(7, 4)), [(Some(7), Some(4))]);
        assert_eq!(rules(block(8, -1)), [(Some(254), Some(0))]);
        assert_eq!(
            rules(block(7, -1)),
            [(Some(254), Some(16)), (Some(7), Some(-1))]
        );
        assert_eq!(
            rules(block(-1, 16)),
            [(Some(254), Some(0)), (Some(7), Some(16))]
        );
        assert_eq!(rules(block(-1, -1)), [(Some(-1), Some(-1))]);
        // A disk of the host's that the guest doesn't have: here it is the number of the first.
        assert_eq!(rules(block(254, 0)), []);
        assert_eq!(
            rules(json!({"allow": false, "access": "rwm"})),
            [(None, None)]
        );
        let null = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"});
        assert_eq!(rules(null), [(Some(1), Some(3))]);
    }

    #[test]
    fn a_disk_is_found_by_its_serial() {
        let sysfs = tempfile::tempdir().expect("a directory");
        for (name, serial, number) in [("vda", "hull-1", "254:0"), ("vdb", "hull-0", "254:16")] {
            let disk = sysfs.path().join(name);
            fs::create_dir(&disk).expect("a directory");
            fs::write(disk.join("serial"), serial).expect("a file");
            fs::write(disk.join("dev"), format!("{number}\n")).expect("a file");
        }
        fs::create_dir(sysfs.path().join("loop0")).expect("a directory");
        let found = disks_in(sysfs.path()).expect("a list");
        assert!(
            found.contains(&("hull-0".to_owned(), (254, 16))),
            "{found:?}"
        );
        assert_eq!(found.len(), 2);

        let missing = BlockDevice {
            serial: "hull-9".to_owned(),
            major: 8,
            ..BlockDevice::default()
        };
        let error = Disks::find_in(sysfs.path(), sysfs.path(), &[missing]).expect_err("missing");
        assert_eq!(
            error.to_string(),
            "disk hull-9 (the host's 8:0) does not exist"
        );
    }

    #[test]
    fn only_filled_slots_are_bound() {
        let directory = tempfile::tempdir().expect("a directory");
        let driver = directory.path().join("bind");
        let device = |slot| BlockDevice {
            serial: "hull-0".to_owned(),
            slot,
            ..BlockDevice::default()
        };
        bind_slots(&driver, &[device(0)]).expect("nothing to do");
        assert!(!driver.exists());
        bind_slots(&driver, &[device(0), device(4)]).expect("bound");
        let written = fs::read_to_string(&driver).expect("what was written");
        assert_eq!(written, "virtio-mmio.3");

        let nowhere = directory.path().join("none/bind");
        let error = bind_slots(&nowhere, &[device(4)]).expect_err("no driver");
        assert!(
            error
                .to_string()
                .starts_with("bind slot 3, of disk hull-0: "),
            "{error}"
        );
    }
}
