//! The mounts of config.json, made as runc makes them, in two steps.
//!
//! - [`Mounts::prepare`] runs in the guest's own mount namespace, with all privileges. A container's mount namespace
//!   has only copies of these mounts, whose restrictive attributes are locked in a user namespace: so this prepares
//!   the sources of bind mounts to be copied, and mounts disks' file systems, to be bound.
//! - [`Mounts::mount_all`] runs in the container's mount namespace, as root there: one mount after the other, each
//!   with its destination resolved within the root at that time. [`DeferredChanges`] are applied last: `ro` of mounts
//!   in which mount points have to be made first, and `remount`.
//!
//! The host does what concerns its files: sharing them, and mapping their owners.

mod copy;
mod dev;
mod disk;
mod file_system;
mod mount_point;
mod options;
mod source;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hull_protocol::paths::SHARE;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_reconfigure,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fspick, move_mount, open_tree,
};

use super::in_root::{self, Symlinks};
use crate::error::Failure;
use crate::sys::{self, MountChange};
use file_system::MountError;
use mount_point::MountPoint;
use options::{AttributeChange, Options, Propagation};

/// The prepared mounts of a container.
#[derive(Debug, Default)]
pub struct Mounts {
    entries: Vec<Entry>,
    /// The container's root, outside of the container.
    root: PathBuf,
    /// The directory of the container's cgroup.
    cgroup: PathBuf,
    /// The indices in `mounts` of the entries that bind the guest's /dev.
    dev_binds: Vec<usize>,
    disks: disk::Disks,
    deferred: DeferredChanges,
}

/// One entry of `mounts`, or a mount below it.
#[derive(Debug)]
struct Entry {
    /// Its index in `mounts`, for messages.
    index: usize,
    mount: Mount,
    options: Options,
}

/// Changes to mounts that are made once all mount points exist.
#[derive(Debug, Default)]
pub struct DeferredChanges {
    changes: Vec<DeferredChange>,
    /// The propagation of the container's root.
    propagation: Option<Propagation>,
    /// Whether the container's root is to be read-only.
    read_only_root: bool,
}

/// A deferred change to one mount.
#[derive(Debug)]
struct DeferredChange {
    /// The field, for messages.
    field: String,
    mount: OwnedFd,
    change: AttributeChange,
    /// The options to reconfigure its file system with, if it is to be.
    options: Option<Vec<String>>,
}

impl Mounts {
    /// Prepares the mounts of a config.json, and applies `root_options` to the root.
    ///
    /// # Errors
    /// Names the mount that can't be prepared.
    pub fn prepare(
        spec: &Spec,
        root_options: Vec<String>,
        cgroup: PathBuf,
    ) -> Result<Self, Failure> {
        let root = spec.root().as_ref();
        let root = root.ok_or_else(|| Failure::config("root: it is required and isn't there"))?;
        source::prepare_root(root.path(), root_options).map_err(Failure::io("root.path"))?;
        let linux = spec.linux().as_ref();
        let mut mounts = Self {
            root: root.path().clone(),
            cgroup,
            ..Self::default()
        };
        mounts.deferred.read_only_root = root.readonly().unwrap_or(false);
        mounts.deferred.propagation = linux
            .and_then(|linux| linux.rootfs_propagation().as_deref())
            .and_then(Propagation::of);
        let mut namespaces = linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten();
        let user_namespace =
            namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        for (index, mount) in spec.mounts().clone().into_iter().flatten().enumerate() {
            mounts.add(index, mount, user_namespace)?;
        }
        Ok(mounts)
    }

    fn add(&mut self, index: usize, mut mount: Mount, user_namespace: bool) -> Result<(), Failure> {
        let mut below = None;
        if !Options::read(&mount).remount {
            self.disks.mount(index, &mut mount)?;
            below = dev::replace(&mut mount);
        }
        if below.is_some() {
            self.dev_binds.push(index);
        }
        for mount in std::iter::once(mount).chain(below.into_iter().flatten()) {
            let mut options = Options::read(&mount);
            if !options.remount {
                prepare_source(&mount, &mut options, user_namespace)
                    .map_err(Failure::io(format!("mounts[{index}].source")))?;
            }
            self.entries.push(Entry {
                index,
                mount,
                options,
            });
        }
        Ok(())
    }

    /// The indices in `mounts` of the entries that bind the guest's /dev. They are replaced by new file systems,
    /// whose devices have to be made.
    pub fn dev_binds(&self) -> &[usize] {
        &self.dev_binds
    }

    /// Makes them in the container's root, which is returned opened. The caller is in the container's mount
    /// namespace, as root.
    ///
    /// # Errors
    /// Names the mount that can't be made.
    pub fn mount_all(&mut self) -> Result<(OwnedFd, DeferredChanges), Failure> {
        let mut deferred = std::mem::take(&mut self.deferred);
        let mut root = self.open_root()?;
        for entry in &self.entries {
            deferred
                .changes
                .extend(entry.make(root.as_fd(), &self.cgroup)?);
            // The root may have been mounted on.
            root = self.open_root()?;
        }
        Ok((root, deferred))
    }

    fn open_root(&self) -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &self.root, flags, Mode::empty()).map_err(Failure::field("root.path"))
    }

    /// Leaves the disks mounted: the container has been made.
    pub fn keep_disks(&mut self) {
        self.disks.keep_mounted();
    }
}

/// Writes back to the host what containers have written, once they have ended: nothing is unmounted when a guest
/// ends.
pub fn write_back() {
    if let Err(e) = file_system::write_back(Path::new(SHARE)) {
        log::warn!("write the shared tree back: {e}");
    }
    disk::write_back();
}

/// Mounts a new tmpfs in the guest's own mount namespace.
///
/// # Errors
/// When the kernel refuses an option.
pub fn mount_tmpfs(place: &Path, options: Vec<String>) -> Result<(), MountError> {
    let mount = new_mount("tmpfs", Some(Path::new("shm")), options)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mount, "", CWD, place, flags)?)
}

/// Prepares the source of a bind mount, before the container's mount namespace has a copy of it.
fn prepare_source(mount: &Mount, options: &mut Options, user_namespace: bool) -> Result<(), Errno> {
    let Some(source) = mount.source() else {
        return Ok(());
    };
    for submount in &options.submounts {
        source::trigger_submount(source, submount)?;
    }
    if !user_namespace || !is_bind(mount) {
        return Ok(());
    }
    match options.take_atime() {
        Some(atime) => source::cover_with_attributes(source, atime),
        None => Ok(()),
    }
}

fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|o| matches!(o.as_str(), "bind" | "rbind"))
}

impl Entry {
    /// Makes the mount, and returns the change that has to be made to it last, if any.
    fn make(&self, root: BorrowedFd<'_>, cgroup: &Path) -> Result<Option<DeferredChange>, Failure> {
        let index = self.index;
        let destination = mount_point::resolve_destination(root, &self.mount)
            .map_err(|why| Failure::config(format!("mounts[{index}].destination: {why}")))?;
        let field = format!("mounts[{index}]: {}", destination.display());
        if self.options.remount {
            return match in_root::open(root, &destination, Symlinks::Refuse) {
                Ok(mount) => Ok(Some(self.remount(field, mount))),
                Err(e) => Err(Failure::field(field)(e)),
            };
        }
        let mount = self.mount(root, &destination, cgroup).map_err(|error| {
            let what = match self.mount.typ().as_deref() {
                Some(kind) if !is_bind(&self.mount) => format!("cannot mount {kind}"),
                _ => "cannot bind it there".to_owned(),
            };
            Failure::config(format!("{field}: {what}: {error}"))
        })?;
        for propagation in &self.options.propagation {
            set_propagation(mount.as_fd(), *propagation).map_err(Failure::field(field.as_str()))?;
        }
        let last = self.deferred_attributes(&destination);
        Ok((last.set != 0).then_some(DeferredChange {
            field,
            mount,
            change: last,
            options: None,
        }))
    }

    fn remount(&self, field: String, mount: OwnedFd) -> DeferredChange {
        DeferredChange {
            field,
            mount,
            change: AttributeChange {
                set: self.options.set,
                clear: self.options.cleared_by_remount(),
            },
            options: (!is_bind(&self.mount)).then(|| self.options.remount_options()),
        }
    }

    /// The attributes to set last, as mount points have to be made in it first. As with runc, that is `ro` of a
    /// tmpfs and of /dev.
    fn deferred_attributes(&self, destination: &Path) -> AttributeChange {
        let bits = match self.is_tmpfs() || destination == Path::new("/dev") {
            true => libc::MOUNT_ATTR_RDONLY,
            false => 0,
        };
        AttributeChange {
            set: self.options.set & bits,
            clear: 0,
        }
    }

    fn is_tmpfs(&self) -> bool {
        self.mount.typ().as_deref() == Some("tmpfs") && !is_bind(&self.mount)
    }

    fn mount(
        &self,
        root: BorrowedFd<'_>,
        destination: &Path,
        cgroup: &Path,
    ) -> Result<OwnedFd, MountError> {
        let (mount, mount_point) = match is_bind(&self.mount) {
            true => {
                let source = self.mount.source().as_deref().ok_or(Errno::INVAL)?;
                let mount = clone_mount(source, self.options.recursive_bind)?;
                let is_directory = is_directory(&mount)?;
                (mount, MountPoint::make(root, destination, is_directory)?)
            }
            false => {
                let mount_point = MountPoint::make(root, destination, true)?;
                (self.new_file_system(&mount_point, cgroup)?, mount_point)
            }
        };
        let mut new = self.options.new_mount_attributes();
        new.set &= !self.deferred_attributes(destination).set;
        change_attributes(mount.as_fd(), new)?;
        if self.options.recursive != AttributeChange::default() {
            change_attributes_recursively(mount.as_fd(), self.options.recursive)?;
        }
        let both =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&mount, "", &mount_point.file, "", both)?;
        if self.is_tmpfs() && self.options.copy_up && mount_point.existed {
            copy::copy_contents(&mount_point.file, &mount)?;
        }
        Ok(mount)
    }

    /// A new file system, which isn't mounted yet. A tmpfs gets the mode of the directory that it is mounted on,
    /// unless its options name one.
    fn new_file_system(
        &self,
        mount_point: &MountPoint,
        cgroup: &Path,
    ) -> Result<OwnedFd, MountError> {
        let kind = self.mount.typ().as_deref().unwrap_or_default();
        let source = self.mount.source().as_deref();
        let mut options = self.options.new_file_system_options();
        if self.is_tmpfs() && mount_point.existed && !self.options.has_mode() {
            let mode = fstat(&mount_point.file)?.st_mode & 0o7777;
            options.insert(0, format!("mode={mode:o}"));
        }
        if kind != "cgroup" {
            return new_mount(kind, source, options);
        }
        // Without a cgroup namespace a user namespace may not mount cgroup2: then the container's cgroup is bound.
        new_mount("cgroup2", source, options).or_else(|_| Ok(clone_mount(cgroup, false)?))
    }
}

/// A detached mount of a new file system.
fn new_mount(
    kind: &str,
    source: Option<&Path>,
    options: Vec<String>,
) -> Result<OwnedFd, MountError> {
    let context = file_system::create(kind, source, options)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(fsmount(&context, flags, MountAttrFlags::empty())?)
}

/// A detached clone of the mount at a path, with the mounts below it if `recursive`.
fn clone_mount(source: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
}

fn is_directory(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode).is_dir())
}

impl DeferredChanges {
    /// Makes the changes.
    ///
    /// # Errors
    /// Names the mount that can't be changed.
    pub fn apply(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for change in &self.changes {
            change
                .apply()
                .map_err(Failure::field(change.field.as_str()))?;
        }
        if self.read_only_root {
            let read_only = AttributeChange {
                set: libc::MOUNT_ATTR_RDONLY,
                clear: 0,
            };
            change_attributes(root, read_only).map_err(Failure::field("root.readonly"))?;
        }
        Ok(())
    }

    /// Sets the propagation of the container's root. This comes last, as masking paths takes bind mounts, which an
    /// unbindable root refuses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_root_propagation(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        match self.propagation {
            Some(propagation) => set_propagation(root, propagation)
                .map_err(Failure::field("linux.rootfsPropagation")),
            None => Ok(()),
        }
    }
}

impl DeferredChange {
    fn apply(&self) -> Result<(), Errno> {
        if let Some(options) = &self.options {
            reconfigure(&self.mount, options)?;
        }
        change_attributes(self.mount.as_fd(), self.change)
    }
}

fn change_attributes(
    mount: BorrowedFd<'_>,
    AttributeChange { set, clear }: AttributeChange,
) -> Result<(), Errno> {
    let change = MountChange {
        set,
        clear,
        ..MountChange::default()
    };
    sys::mount_setattr(mount, change)
}

/// Changes a mount and those below it.
fn change_attributes_recursively(
    mount: BorrowedFd<'_>,
    AttributeChange { set, clear }: AttributeChange,
) -> Result<(), Errno> {
    let change = MountChange {
        set,
        clear,
        recursive: true,
        ..MountChange::default()
    };
    sys::mount_setattr(mount, change)
}

fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Errno> {
    let change = MountChange {
        propagation: propagation.flag,
        recursive: propagation.recursive,
        ..MountChange::default()
    };
    sys::mount_setattr(mount, change)
}

/// Changes the options of a mounted file system.
fn reconfigure(mount: &OwnedFd, options: &[String]) -> Result<(), Errno> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mount, "", flags)?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option.as_str())?,
        }
    }
    fsconfig_reconfigure(&context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The entry of a config.json with only this mount.
    fn entry(mount: &Value) -> Entry {
        let spec = json!({
            "ociVersion": "1.2.0", "root": {"path": "/nowhere"}, "mounts": [mount],
        });
        let spec = serde_json::from_value(spec).expect("a config.json");
        let mounts = Mounts::prepare(&spec, Vec::new(), PathBuf::new()).expect("ready");
        mounts.entries.into_iter().next().expect("an entry")
    }

    #[test]
    fn a_tmpfs_and_dev_become_read_only_last() {
        let last = |mount: Value| {
            let entry = entry(&mount);
            entry.deferred_attributes(entry.mount.destination()).set
        };
        let read_only = libc::MOUNT_ATTR_RDONLY;
        let of =
            |kind, place, option| json!({"type": kind, "destination": place, "options": [option]});
        assert_eq!(last(of("tmpfs", "/a", "ro")), read_only);
        assert_eq!(last(of("bind", "/dev", "ro")), read_only);
        assert_eq!(last(of("bind", "/a", "ro")), 0);
        assert_eq!(last(of("tmpfs", "/a", "nosuid")), 0);
    }

    #[test]
    fn an_error_names_the_mount_by_its_index() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), "").expect("write");
        let root = std::fs::File::open(root.path()).expect("the root");
        let message = |mount: Value| {
            let mut entry = entry(&mount);
            entry.index = 3;
            let made = entry.make(root.as_fd(), Path::new("/nowhere"));
            made.expect_err("refused").message
        };
        let bind =
            |place: &str| json!({"destination": place, "source": "/proc", "options": ["bind"]});
        // Only root may mount.
        if rustix::process::geteuid().is_root() {
            for place in ["/file", "/file/below"] {
                let expected = format!(
                    "config.json: mounts[3]: {place}: cannot bind it there: not a directory"
                );
                assert_eq!(message(bind(place)), expected);
            }
            let mount = json!({"destination": "/a", "type": "nonsense", "source": "x"});
            let expected = "config.json: mounts[3]: /a: cannot mount nonsense: the guest's kernel has no such file system";
            assert_eq!(message(mount), expected);
        }
        let remount = json!({"destination": "/b", "type": "bind", "options": ["bind", "remount"]});
        let expected = "config.json: mounts[3]: /b: no such file or directory";
        assert_eq!(message(remount), expected);
    }
}
