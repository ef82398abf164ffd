//! Block devices of the host that a container gets as disks: found, opened, and named.
//!
//! config.json names one by its numbers (`linux.devices`) or by a node of it (the source of a bind mount, or
//! of a file system that lies on it).
//! The guest has it under numbers of its own; the agent knows which disk is which by their serial
//! numbers, and puts the guest's numbers where config.json has the host's.
//!
//! Loop devices are the guest's own, unless the host's device of that number is in use: then it is a
//! disk like any other.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hull_protocol::agent::BlockDevice;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, makedev, minor, openat};
use rustix::io::Errno;

use super::SpecError;

/// The most block devices of a container: each has a thread in the VMM process.
const MOST: usize = 16;

/// The major number of loop devices (Documentation/admin-guide/devices.txt of Linux).
const LOOP: u32 = 7;

/// A device's major and minor number.
pub(super) type Number = (u32, u32);

/// A block device of the host that the guest gets as a disk.
#[derive(Debug)]
pub struct Disk {
    /// The device, open for reading, and for writing unless it is read-only.
    pub device: OwnedFd,
    /// Whether the host refuses writes.
    pub read_only: bool,
    /// What the agent is told of it.
    pub about: BlockDevice,
    /// Whether it is kept from others who would mount it.
    claimed: bool,
}

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// What config.json's rules allow the container.
    Rules,
    /// To be mounted and read: as the rules say, beyond that.
    Read,
    /// To be mounted and written, whatever the rules say of the device itself. Two kernels that write one
    /// file system destroy it, so it is claimed: open(2), `O_EXCL`.
    Mount,
}

/// Where config.json names a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The field, as a JSON path.
    pub(super) field: &'a str,
    /// The path that it names.
    pub(super) path: &'a Path,
}

impl Place<'_> {
    fn refuse(self, why: impl std::fmt::Display) -> SpecError {
        SpecError::invalid(self.field, format!("{}: {why}", self.path.display()))
    }

    fn failed(self, error: impl Into<io::Error>) -> SpecError {
        SpecError::Source {
            field: self.field.to_owned(),
            path: self.path.to_owned(),
            source: error.into(),
        }
    }
}

/// The disks of a container, in the order in which config.json names them first.
#[derive(Debug)]
pub(super) struct Disks<'a> {
    rules: &'a [LinuxDeviceCgroup],
    /// What their serial numbers begin with.
    serials: &'a str,
    disks: Vec<Disk>,
}

impl<'a> Disks<'a> {
    /// None yet; which of them may be written is up to the config.json's rules. Their serial numbers are `serials` and
    /// a number: no more than 16 characters of it, for a serial number has 20.
    pub(super) fn of(spec: &'a Spec, serials: &'a str) -> Self {
        let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        Self {
            rules: rules.unwrap_or_default(),
            serials,
            disks: Vec::new(),
        }
    }

    /// Opens the block devices of `linux.devices`.
    ///
    /// # Errors
    /// When one can't be opened. One that the host lacks is no disk.
    pub(super) fn add_devices(&mut self, spec: &Spec) -> Result<(), SpecError> {
        let devices = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
        for (index, device) in devices.into_iter().flatten().enumerate() {
            if device.typ() != LinuxDeviceType::B {
                continue;
            }
            let field = format!("linux.devices[{index}]");
            let place = Place {
                field: &field,
                path: device.path(),
            };
            let number = u32::try_from(device.major()).ok();
            let number = number.zip(u32::try_from(device.minor()).ok());
            let number = number.ok_or_else(|| place.refuse("no device has such numbers"))?;
            if is_guests_loop(number) || self.find(number).is_some() {
                continue;
            }
            match node_of(number, place)? {
                Some(node) => {
                    self.open(&node, number, Access::Rules, place)?;
                }
                // As with runc, there is a node, and nothing behind it.
                None => log::warn!(
                    "config.json: {field}: {}: this host has no block device {}:{}",
                    place.path.display(),
                    number.0,
                    number.1
                ),
            }
        }
        Ok(())
    }

    /// Opens the block device that `node`, opened with O_PATH, is of. Returns where the guest has a
    /// node of it.
    ///
    /// # Errors
    /// When it is none or can't be opened, or is a loop device that the guest would have to have.
    pub(super) fn add_node(
        &mut self,
        node: BorrowedFd<'_>,
        access: Access,
        place: Place<'_>,
    ) -> Result<PathBuf, SpecError> {
        let stat = fstat(node).map_err(|e| place.failed(e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            let why = "it is not a block device; make it one (losetup) and name that";
            return Err(place.refuse(why));
        }
        let number = (major(stat.st_rdev), minor(stat.st_rdev));
        if is_guests_loop(number) {
            let why = "it is a loop device that is not in use; name it in linux.devices for the \
                       guest's own";
            return Err(place.refuse(why));
        }
        let node = PathBuf::from(format!("/proc/self/fd/{}", node.as_raw_fd()));
        let serial = match self.find(number) {
            Some(index) => self.claim(index, &node, access, place)?,
            None => self.open(&node, number, access, place)?,
        };
        Ok(Path::new(hull_protocol::paths::DISKS).join(serial))
    }

    /// All of them.
    pub(super) fn into_vec(self) -> Vec<Disk> {
        self.disks
    }

    /// The place of the disk that has this number.
    fn find(&self, number: Number) -> Option<usize> {
        let same = |disk: &Disk| (disk.about.major, disk.about.minor) == number;
        self.disks.iter().position(same)
    }

    /// Opens a disk, and returns its serial number.
    fn open(
        &mut self,
        node: &Path,
        number: Number,
        access: Access,
        place: Place<'_>,
    ) -> Result<String, SpecError> {
        if self.disks.len() >= MOST {
            return Err(place.refuse(format_args!(
                "a container can have {MOST} block devices at the most"
            )));
        }
        let writable = may_write(self.rules, number);
        let (device, read_only) = open_device(node, writable, access, place)?;
        let stat = fstat(&device).map_err(|e| place.failed(e))?;
        let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        if !is_block || stat.st_rdev != makedev(number.0, number.1) {
            let (major, minor) = number;
            let node = node.display();
            return Err(place.refuse(format_args!("{node} is not block device {major}:{minor}")));
        }
        let serial = format!("{}-{}", self.serials, self.disks.len());
        let about = BlockDevice {
            serial: serial.clone(),
            major: number.0,
            minor: number.1,
            mode: Mode::from_raw_mode(stat.st_mode).bits(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            ..Default::default()
        };
        self.disks.push(Disk {
            device,
            read_only,
            about,
            claimed: access == Access::Mount,
        });
        Ok(serial)
    }

    /// Opens a disk that is there already once more, if this access needs more than it was opened for.
    /// Returns its serial number.
    fn claim(
        &mut self,
        index: usize,
        node: &Path,
        access: Access,
        place: Place<'_>,
    ) -> Result<String, SpecError> {
        let lost = || place.refuse("it was lost");
        let disk = self.disks.get_mut(index).ok_or_else(lost)?;
        if access == Access::Mount && !disk.claimed {
            (disk.device, disk.read_only) = open_device(node, true, access, place)?;
            disk.claimed = true;
        }
        Ok(disk.about.serial.clone())
    }
}

/// Whether the guest's own loop device of this number is meant: the host's has no file.
pub(super) fn is_guests_loop((major, minor): Number) -> bool {
    let file = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    major == LOOP && !Path::new(&file).exists()
}

/// The node that the kernel itself has made of a device, if the host has it.
fn node_of((major, minor): Number, place: Place<'_>) -> Result<Option<PathBuf>, SpecError> {
    let file = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(place.failed(e)),
    };
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| place.refuse(format_args!("{file} names no node")))?;
    Ok(Some(Path::new("/dev").join(name)))
}

/// Opens a device, and says whether it can only be read.
fn open_device(
    node: &Path,
    writable: bool,
    access: Access,
    place: Place<'_>,
) -> Result<(OwnedFd, bool), SpecError> {
    let claims = access == Access::Mount;
    let open = |flags: OFlags| openat(CWD, node, flags | OFlags::CLOEXEC, Mode::empty());
    if writable || claims {
        let mut flags = OFlags::RDWR;
        flags.set(OFlags::EXCL, claims);
        match open(flags) {
            // A disk that is write-protected, or somebody who may only read it.
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {}
            Err(Errno::BUSY) if claims => {
                return Err(place.refuse(
                    "it is mounted or otherwise in use; mount it on the host and bind that, or mount it \
                     with \"ro\"",
                ));
            }
            opened => return Ok((opened.map_err(|e| place.failed(e))?, false)),
        }
    }
    let opened = open(OFlags::RDONLY).map_err(|e| place.failed(e))?;
    Ok((opened, true))
}

/// Whether `linux.resources.devices` lets a block device be written: of the rules about it, the last
/// counts.
fn may_write(rules: &[LinuxDeviceCgroup], (major, minor): Number) -> bool {
    let is = |wanted: Option<i64>, number: u32| {
        wanted.is_none_or(|wanted| wanted < 0 || wanted == i64::from(number))
    };
    let mut may = false;
    for rule in rules {
        let applies = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => true,
            LinuxDeviceType::B => {
                let access = rule.access().as_deref().unwrap_or_default();
                let writes = access.is_empty() || access.contains('w');
                writes && is(rule.major(), major) && is(rule.minor(), minor)
            }
            _ => false,
        };
        if applies {
            may = rule.allow();
        }
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn may_write_8_16(rules: Value) -> bool {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).expect("rules");
        may_write(&rules, (8, 16))
    }

    #[test]
    fn the_last_rule_about_a_device_counts() {
        let deny_all = json!({"allow": false, "access": "rwm"});
        let ours = json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rw"});
        let all_disks = json!({"allow": true, "type": "b", "access": "rwm"});
        let no_writes = json!({"allow": false, "type": "b", "major": 8, "access": "w"});
        let to_read = json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rm"});
        let other = json!({"allow": true, "type": "b", "major": 8, "minor": 17, "access": "rw"});
        let char = json!({"allow": true, "type": "c", "major": 8, "minor": 16, "access": "rw"});
        assert!(!may_write_8_16(json!([])), "denied by default, as by runc");
        assert!(may_write_8_16(json!([deny_all, ours])));
        assert!(may_write_8_16(json!([deny_all, all_disks])));
        assert!(may_write_8_16(json!([{"allow": true}])));
        let whatever = json!({"allow": true, "type": "b", "major": 8, "minor": 16});
        assert!(may_write_8_16(json!([whatever])), "all access, as by runc");
        assert!(!may_write_8_16(json!([ours, deny_all])));
        assert!(!may_write_8_16(json!([all_disks, no_writes])));
        assert!(may_write_8_16(json!([no_writes, ours, to_read])));
        assert!(!may_write_8_16(json!([deny_all, to_read, other, char])));
    }

    #[test]
    fn a_loop_device_without_a_file_is_the_guests() {
        assert!(is_guests_loop((LOOP, 0xf_ffff)));
        assert!(!is_guests_loop((8, 0)));
    }
}
