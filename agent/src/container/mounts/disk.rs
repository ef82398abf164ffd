//! File systems on the host's block devices, which are disks of the guest.
//!
//! They are mounted in the guest's own mount namespace, by its root: a container may have no access to the device,
//! and a user namespace may not mount such a file system. They are mounted with all their attributes, and the
//! container's mounts are bind mounts of them. They stay mounted, so that they can be written back after the
//! container has ended: nothing is unmounted when a guest ends.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use hull_protocol::paths::DISKS;
use oci_spec::runtime::Mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsmount, mount_remount,
    move_mount, unmount,
};

use super::file_system::{self, MountError};
use super::options::{AttributeChange, Options, is_mount_option};
use super::{change_attributes, is_bind};
use crate::error::Failure;

/// The directory of their mount points, whose names begin with the helper's pid, to be unique.
const MOUNT_POINTS: &str = "/run/hull/mounted";

/// The mounted disks of a container that is being made. Dropping this unmounts them.
#[derive(Debug, Default)]
pub struct Disks(Vec<PathBuf>);

impl Disks {
    /// If a mount is of a disk's file system, mounts that, and replaces the mount by a bind mount of it.
    ///
    /// # Errors
    /// When the kernel refuses. The message has the mount's index in `mounts`.
    pub fn mount(&mut self, index: usize, mount: &mut Mount) -> Result<(), Failure> {
        let source = mount.source().clone().unwrap_or_default();
        if is_bind(mount) || !source.starts_with(DISKS) {
            return Ok(());
        }
        let kind = mount.typ().clone().unwrap_or_default();
        let options = Options::read(mount);
        let mount_point = Path::new(MOUNT_POINTS).join(format!("{}-{index}", std::process::id()));
        mount_disk(&kind, &source, &options, &mount_point).map_err(|error| {
            let destination = mount.destination().display();
            Failure::config(format!(
                "mounts[{index}]: {destination}: cannot mount {kind}: {error}"
            ))
        })?;
        self.0.push(mount_point.clone());
        let words = mount.options().iter().flatten();
        let words = words.filter(|word| is_mount_option(word)).cloned();
        let options = std::iter::once("bind".to_owned()).chain(words).collect();
        mount
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(mount_point))
            .set_options(Some(options));
        Ok(())
    }

    /// Leaves them mounted until the guest ends.
    pub fn keep_mounted(&mut self) {
        self.0.clear();
    }
}

/// Remounts the file systems on disks read-only, which writes them back and closes their journals, so that they can
/// be mounted read-only next. One that still has writers is only synced, and needs its journal replayed.
pub fn write_back() {
    let mount_points = fs::read_dir(MOUNT_POINTS).into_iter().flatten().flatten();
    for mount_point in mount_points.map(|entry| entry.path()) {
        let closed = mount_remount(&mount_point, MountFlags::RDONLY, c"");
        let written = closed.or_else(|_| file_system::write_back(&mount_point));
        if let Err(e) = written {
            log::warn!("write {} back: {e}", mount_point.display());
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for mount_point in self.0.drain(..) {
            // In a loop, as a mount may be on top of it: see `source::cover_with_attributes`.
            while unmount(&mount_point, UnmountFlags::DETACH).is_ok() {}
            if let Err(e) = fs::remove_dir(&mount_point) {
                log::warn!("unmount {}: {e}", mount_point.display());
            }
        }
    }
}

fn mount_disk(
    kind: &str,
    disk: &Path,
    options: &Options,
    mount_point: &Path,
) -> Result<(), MountError> {
    let context = file_system::create(kind, Some(disk), options.remount_options())?;
    fs::create_dir_all(mount_point)
        .map_err(|e| MountError::Other(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = fsmount(&context, flags, MountAttrFlags::empty()).map_err(MountError::Other)?;
    // As in mount(2), attributes that aren't named are cleared, and the default for access times is relatime.
    let attributes = AttributeChange {
        set: options.set,
        clear: options.cleared_by_remount(),
    };
    change_attributes(mount.as_fd(), attributes).map_err(MountError::Other)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, mount_point, flags).map_err(MountError::Other)
}
