//! A container's devices, before libcontainer makes their nodes.
//!
//! Block devices of the host are disks of the guest: [`Disks`] knows which is which, and puts the
//! guest's numbers where config.json has the host's. Every disk was there when the kernel booted, and
//! its driver is built in, so nothing is waited for. Loop devices are the guest's own, made when a
//! container lists them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hull_protocol::agent::BlockDevice;
use hull_protocol::paths::DISKS;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType,
};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, chmod, chownat, makedev, mknodat, stat};

use crate::error::Error;
use crate::sys;

/// Where the kernel lists the guest's block devices.
const SYSFS: &str = "/sys/block";

/// The major number of loop devices, of which the guest has its own.
const LOOP: i64 = 7;

/// A device's major and minor number.
type Number = (i64, i64);

/// The disks of a container.
#[derive(Debug, Default)]
pub struct Disks(Vec<Disk>);

#[derive(Debug)]
struct Disk {
    /// Its number on the host, which config.json has.
    host: Number,
    guest: Number,
}

impl Disks {
    /// Finds the guest's disks of these devices, and makes a node in [`DISKS`] for each: that is what
    /// config.json's bind mounts of them have as their source.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn find(devices: &[BlockDevice]) -> Result<Self, Error> {
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
                return Err(Error::Missing(what));
            };
            let node = nodes.join(&device.serial);
            let kind = FileType::BlockDevice;
            let owner = (Some(device.uid), Some(device.gid));
            make_node(&node, kind, *guest, device.mode, owner)
                .map_err(Error::io(format!("make {}", node.display())))?;
            disks.push(Disk {
                host: (device.major.into(), device.minor.into()),
                guest: *guest,
            });
        }
        Ok(Self(disks))
    }

    /// Puts the guest's numbers where a config.json has the host's.
    pub fn translate(&self, linux: &mut Linux) {
        for device in linux.devices_mut().iter_mut().flatten() {
            if let Some(disk) = self.of(device) {
                device.set_major(disk.guest.0).set_minor(disk.guest.1);
            }
        }
        let resources = linux.resources_mut().as_mut();
        if let Some(rules) = resources.and_then(|resources| resources.devices_mut().as_mut()) {
            *rules = rules.iter().flat_map(|rule| self.rules(rule)).collect();
        }
    }

    fn of(&self, device: &LinuxDevice) -> Option<&Disk> {
        let number = (device.major(), device.minor());
        let mut disks = self.0.iter();
        disks.find(|disk| device.typ() == LinuxDeviceType::B && disk.host == number)
    }

    /// What one rule of the host's block devices means for the guest's: a rule for each disk that it is
    /// about. It stays as it is if it is about all of them, or about loop devices. A rule about what
    /// the guest doesn't have goes: its numbers may be another disk's here.
    fn rules(&self, rule: &LinuxDeviceCgroup) -> Vec<LinuxDeviceCgroup> {
        let given = |number: Option<i64>| number.filter(|number| *number >= 0);
        let (major, minor) = (given(rule.major()), given(rule.minor()));
        let is_block = rule.typ() == Some(LinuxDeviceType::B);
        if !is_block || (major.is_none() && minor.is_none()) {
            return vec![rule.clone()];
        }
        let is = |disk: &&Disk| {
            major.is_none_or(|major| major == disk.host.0)
                && minor.is_none_or(|minor| minor == disk.host.1)
        };
        let mut rules: Vec<_> = self
            .0
            .iter()
            .filter(is)
            .map(|disk| {
                let mut rule = rule.clone();
                rule.set_major(Some(disk.guest.0))
                    .set_minor(Some(disk.guest.1));
                rule
            })
            .collect();
        let is_one_disk = major.is_some() && minor.is_some() && !rules.is_empty();
        if major.is_none_or(|major| major == LOOP) && !is_one_disk {
            let mut loops = rule.clone();
            loops.set_major(Some(LOOP));
            rules.push(loops);
        }
        rules
    }
}

/// The serial numbers of the guest's disks, and their numbers.
fn disks_in(sysfs: &Path) -> io::Result<Vec<(String, Number)>> {
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

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Makes what the guest itself lacks of the devices that a container lists: loop devices, and in a user
/// namespace, where nobody can make nodes, the nodes that libcontainer binds instead.
///
/// # Errors
/// When one can't be made, or the guest has another device of that name.
pub fn provide(linux: &Linux) -> Result<(), Error> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let bound = namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    for device in linux.devices().iter().flatten() {
        let path = device.path();
        if device.typ() == LinuxDeviceType::B && device.major() == LOOP {
            sys::add_loop_device(device.minor()).map_err(Error::io(format!(
                "add a loop device for {}",
                path.display()
            )))?;
        }
        if bound {
            provide_node(device).map_err(Error::io(format!("make {}", path.display())))?;
        }
    }
    Ok(())
}

fn provide_node(device: &LinuxDevice) -> io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let number = (device.major(), device.minor());
    let mode = device.file_mode().unwrap_or(0o666);
    make_node(
        device.path(),
        kind,
        number,
        mode,
        (device.uid(), device.gid()),
    )
}

/// Makes a node, unless it is there already.
fn make_node(
    path: &Path,
    kind: FileType,
    (major, minor): Number,
    mode: u32,
    (uid, gid): (Option<u32>, Option<u32>),
) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let major = u32::try_from(major).map_err(invalid)?;
    let device = makedev(major, u32::try_from(minor).map_err(invalid)?);
    if let Ok(there) = stat(path) {
        let same = FileType::from_raw_mode(there.st_mode) == kind
            && (kind == FileType::Fifo || there.st_rdev == device);
        return if same {
            Ok(())
        } else {
            Err(io::ErrorKind::AlreadyExists.into())
        };
    }
    fs::create_dir_all(path.parent().map_or_else(PathBuf::new, Path::to_owned))?;
    let mode = Mode::from_raw_mode(mode);
    mknodat(CWD, path, kind, mode, device)?;
    chmod(path, mode)?; // whatever the umask
    chownat(
        CWD,
        path,
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        rustix::fs::AtFlags::empty(),
    )?;
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
        disks().translate(&mut linux);
        serde_json::to_value(linux).expect("JSON")
    }

    /// What becomes of a rule, as majors and minors.
    fn rules(rule: Value) -> Vec<(Option<i64>, Option<i64>)> {
        let rule = serde_json::from_value(rule).expect("a rule");
        let rules = disks().rules(&rule);
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
    fn rules_are_about_the_same_devices_as_before() {
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
        let sysfs = tempfile::tempdir().expect("a folder");
        for (name, serial, number) in [("vda", "hull-1", "254:0"), ("vdb", "hull-0", "254:16")] {
            let disk = sysfs.path().join(name);
            fs::create_dir(&disk).expect("a folder");
            fs::write(disk.join("serial"), serial).expect("a file");
            fs::write(disk.join("dev"), format!("{number}\n")).expect("a file");
        }
        fs::create_dir(sysfs.path().join("loop0")).expect("a folder");
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
}
