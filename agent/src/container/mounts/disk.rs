//! File systems on the host's block devices, which are disks of the guest.
//!
//! They are mounted in the guest's own mount namespace, by its root: a container may have no right to the
//! device, and its user namespace none to mount such a file system. There they get all their attributes,
//! and the container's mounts are binds of them. There they stay, so that they can be written back when the
//! container has ended: nobody unmounts anything in a guest that ends.

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

use super::file_system::{self, Refused};
use super::options::{Change, Options, is_of_the_mount};
use super::{change, is_bind};
use crate::error::Failure;

/// Where they are. The helper's pid makes their names its own.
const PLACES: &str = "/run/hull/mounted";

/// The file systems on disks of a container that is being made. Dropped, they are unmounted.
#[derive(Debug, Default)]
pub struct Disks(Vec<PathBuf>);

impl Disks {
    /// Mounts it if a mount is of a disk's file system, and makes it a bind mount of that.
    ///
    /// # Errors
    /// When the kernel refuses, which names the mount by its place in `mounts`.
    pub fn mount(&mut self, index: usize, mount: &mut Mount) -> Result<(), Failure> {
        let source = mount.source().clone().unwrap_or_default();
        if is_bind(mount) || !source.starts_with(DISKS) {
            return Ok(());
        }
        let kind = mount.typ().clone().unwrap_or_default();
        let options = Options::read(mount);
        let place = Path::new(PLACES).join(format!("{}-{index}", std::process::id()));
        attach(&kind, &source, &options, &place).map_err(|refused| {
            let destination = mount.destination().display();
            Failure::config(format!(
                "mounts[{index}]: {destination}: cannot mount {kind}: {refused}"
            ))
        })?;
        self.0.push(place.clone());
        let words = mount.options().iter().flatten();
        let words = words.filter(|word| is_of_the_mount(word)).cloned();
        let options = std::iter::once("bind".to_owned()).chain(words).collect();
        mount
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(place))
            .set_options(Some(options));
        Ok(())
    }

    /// Leaves them mounted, for as long as the guest runs.
    pub fn keep(&mut self) {
        self.0.clear();
    }
}

/// Has the file systems on disks written back, and their journals closed, so that they can be mounted
/// read-only next. Whoever still writes to one leaves it as after a crash, but with all that was written.
pub fn write_back() {
    let places = fs::read_dir(PLACES).into_iter().flatten().flatten();
    for place in places.map(|entry| entry.path()) {
        let closed = mount_remount(&place, MountFlags::RDONLY, c"");
        let written = closed.or_else(|_| file_system::write_back(&place));
        if let Err(e) = written {
            log::warn!("write {} back: {e}", place.display());
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for place in self.0.drain(..) {
            // With what covers it: see `source::cover`.
            while unmount(&place, UnmountFlags::DETACH).is_ok() {}
            if let Err(e) = fs::remove_dir(&place) {
                log::warn!("unmount {}: {e}", place.display());
            }
        }
    }
}

fn attach(kind: &str, disk: &Path, options: &Options, place: &Path) -> Result<(), Refused> {
    let context = file_system::make(kind, Some(disk), options.file_system())?;
    fs::create_dir_all(place)
        .map_err(|e| Refused::Whole(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = fsmount(&context, flags, MountAttrFlags::empty()).map_err(Refused::Whole)?;
    // As in mount(2), all that isn't named is cleared, and access times are kept as `relatime` has them.
    let attributes = Change {
        set: options.set,
        clear: options.others(),
    };
    change(mount.as_fd(), attributes).map_err(Refused::Whole)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, place, flags).map_err(Refused::Whole)
}
