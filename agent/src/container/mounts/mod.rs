//! The mounts of config.json, made as runc makes them, in two steps.
//!
//! - [`Mounts::prepare`] works in the guest's own mount namespace, with all rights. In a container's there
//!   are only copies of its mounts, and in a user namespace what they forbid is locked: so the sources of
//!   bind mounts are made ready to be copied, and a disk's file system is mounted, to be bound.
//! - [`Mounts::make`] works in the container's mount namespace, as the root there: one mount after the
//!   other, each at a place that was found within the root as it is then. [`Finish`] comes last: `ro`,
//!   where further mount points are made below first, and `remount`.
//!
//! What has to do with the host's files (sharing them, mapping their owners) is the host's.

mod copy;
mod dev;
mod disk;
mod file_system;
mod options;
mod place;
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

use super::inside::{self, Links};
use crate::error::Failure;
use crate::sys::{self, MountChange};
use file_system::Refused;
use options::{Change, Options, Propagation};
use place::Place;

/// The mounts of a container, ready to be made.
#[derive(Debug, Default)]
pub struct Mounts {
    entries: Vec<Entry>,
    /// The container's root, outside of the container.
    root: PathBuf,
    /// The directory of the container's cgroup.
    cgroup: PathBuf,
    /// The places in `mounts` of those that bind the guest's /dev.
    of_dev: Vec<usize>,
    disks: disk::Disks,
    finish: Finish,
}

/// One of them.
#[derive(Debug)]
struct Entry {
    /// Its place in `mounts`, for messages.
    index: usize,
    mount: Mount,
    options: Options,
}

/// What is left to do once all mount points are made.
#[derive(Debug, Default)]
pub struct Finish {
    steps: Vec<Step>,
    /// Of the container's root.
    propagation: Option<Propagation>,
    /// Whether the container's root is to be read-only.
    read_only_root: bool,
}

/// What is left to do about one mount.
#[derive(Debug)]
struct Step {
    /// The field, for messages.
    field: String,
    mount: OwnedFd,
    change: Change,
    /// What its file system is told.
    options: Option<Vec<String>>,
}

impl Mounts {
    /// Makes those of a config.json ready. The root gets `root_options` now.
    ///
    /// # Errors
    /// Names the mount that can't be had.
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
        mounts.finish.read_only_root = root.readonly().unwrap_or(false);
        mounts.finish.propagation = linux
            .and_then(|linux| linux.rootfs_propagation().as_deref())
            .and_then(Propagation::of);
        let mut namespaces = linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten();
        let own_users = namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        for (index, mount) in spec.mounts().clone().into_iter().flatten().enumerate() {
            mounts.add(index, mount, own_users)?;
        }
        Ok(mounts)
    }

    fn add(&mut self, index: usize, mut mount: Mount, own_users: bool) -> Result<(), Failure> {
        let mut below = None;
        if !Options::read(&mount).remount {
            self.disks.mount(index, &mut mount)?;
            below = dev::replace(&mut mount);
        }
        if below.is_some() {
            self.of_dev.push(index);
        }
        for mount in std::iter::once(mount).chain(below.into_iter().flatten()) {
            let mut options = Options::read(&mount);
            if !options.remount {
                prepare_source(&mount, &mut options, own_users)
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

    /// The places in `mounts` of those that bind the guest's /dev: new file systems without its devices.
    pub fn of_dev(&self) -> &[usize] {
        &self.of_dev
    }

    /// Makes them in the container's root, and opens that. The caller is in the container's mount namespace,
    /// as the root there.
    ///
    /// # Errors
    /// Names the mount that can't be had.
    pub fn make(&mut self) -> Result<(OwnedFd, Finish), Failure> {
        let mut finish = std::mem::take(&mut self.finish);
        let mut root = self.open_root()?;
        for entry in &self.entries {
            finish.steps.extend(entry.make(root.as_fd(), &self.cgroup)?);
            // It may have a mount on it now.
            root = self.open_root()?;
        }
        Ok((root, finish))
    }

    fn open_root(&self) -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &self.root, flags, Mode::empty()).map_err(Failure::field("root.path"))
    }

    /// Leaves the disks mounted: the container has been made.
    pub fn keep(&mut self) {
        self.disks.keep();
    }
}

/// Has what containers have written reach the host, once they have ended: nobody unmounts anything in a
/// guest that ends.
pub fn write_back() {
    if let Err(e) = file_system::write_back(Path::new(SHARE)) {
        log::warn!("write the shared tree back: {e}");
    }
    disk::write_back();
}

/// Does with the source of a bind mount what has to be done before the container has a copy of it.
fn prepare_source(mount: &Mount, options: &mut Options, own_users: bool) -> Result<(), Errno> {
    let Some(source) = mount.source() else {
        return Ok(());
    };
    for below in &options.below {
        source::cross(source, below)?;
    }
    if !own_users || !is_bind(mount) {
        return Ok(());
    }
    match options.take_times() {
        Some(times) => source::cover(source, times),
        None => Ok(()),
    }
}

fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|o| matches!(o.as_str(), "bind" | "rbind"))
}

impl Entry {
    /// Makes the mount, and returns what is to be done about it last.
    fn make(&self, root: BorrowedFd<'_>, cgroup: &Path) -> Result<Option<Step>, Failure> {
        let index = self.index;
        let destination = place::destination(root, &self.mount)
            .map_err(|why| Failure::config(format!("mounts[{index}].destination: {why}")))?;
        let field = format!("mounts[{index}]: {}", destination.display());
        if self.options.remount {
            return match inside::find(root, &destination, Links::Refused) {
                Ok(mount) => Ok(Some(self.remount(field, mount))),
                Err(e) => Err(Failure::field(field)(e)),
            };
        }
        let mount = self.mount(root, &destination, cgroup).map_err(|refused| {
            let what = match self.mount.typ().as_deref() {
                Some(kind) if !is_bind(&self.mount) => format!("cannot mount {kind}"),
                _ => "cannot bind it there".to_owned(),
            };
            Failure::config(format!("{field}: {what}: {refused}"))
        })?;
        for propagation in &self.options.propagation {
            propagate(mount.as_fd(), *propagation).map_err(Failure::field(field.as_str()))?;
        }
        let last = self.last(&destination);
        Ok((last.set != 0).then_some(Step {
            field,
            mount,
            change: last,
            options: None,
        }))
    }

    fn remount(&self, field: String, mount: OwnedFd) -> Step {
        Step {
            field,
            mount,
            change: Change {
                set: self.options.set,
                clear: self.options.others(),
            },
            options: (!is_bind(&self.mount)).then(|| self.options.file_system()),
        }
    }

    /// What is changed of it last: mount points are made in it first, as runc does.
    fn last(&self, destination: &Path) -> Change {
        let deferred = match self.is_tmpfs() || destination == Path::new("/dev") {
            true => libc::MOUNT_ATTR_RDONLY,
            false => 0,
        };
        Change {
            set: self.options.set & deferred,
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
    ) -> Result<OwnedFd, Refused> {
        let (mount, place) = match is_bind(&self.mount) {
            true => {
                let source = self.mount.source().as_deref().ok_or(Errno::INVAL)?;
                let mount = copy_of(source, self.options.below_too)?;
                let is_folder = is_folder(&mount)?;
                (mount, Place::make(root, destination, is_folder)?)
            }
            false => {
                let place = Place::make(root, destination, true)?;
                (self.new_file_system(&place, cgroup)?, place)
            }
        };
        let mut new = self.options.of_a_new_mount();
        new.set &= !self.last(destination).set;
        change(mount.as_fd(), new)?;
        if self.options.recursive != Change::default() {
            change_all(mount.as_fd(), self.options.recursive)?;
        }
        let both =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&mount, "", &place.file, "", both)?;
        if self.is_tmpfs() && self.options.copy_up && place.was_there {
            copy::fill(&place.file, &mount)?;
        }
        Ok(mount)
    }

    /// A new file system, which is mounted nowhere yet. A tmpfs has the mode of the folder that it covers,
    /// unless it names one.
    fn new_file_system(&self, place: &Place, cgroup: &Path) -> Result<OwnedFd, Refused> {
        let kind = self.mount.typ().as_deref().unwrap_or_default();
        let source = self.mount.source().as_deref();
        let mut options = self.options.of_a_new_file_system();
        if self.is_tmpfs() && place.was_there && !self.options.names_mode() {
            let mode = fstat(&place.file)?.st_mode & 0o7777;
            options.insert(0, format!("mode={mode:o}"));
        }
        if kind != "cgroup" {
            return mount_of(kind, source, options);
        }
        // In a user namespace, that takes a cgroup namespace.
        mount_of("cgroup2", source, options).or_else(|_| Ok(copy_of(cgroup, false)?))
    }
}

/// A mount of a new file system.
fn mount_of(kind: &str, source: Option<&Path>, options: Vec<String>) -> Result<OwnedFd, Refused> {
    let context = file_system::make(kind, source, options)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(fsmount(&context, flags, MountAttrFlags::empty())?)
}

/// The mount at a path once more, with those below it if they are wanted.
fn copy_of(source: &Path, below_too: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if below_too {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
}

fn is_folder(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode).is_dir())
}

impl Finish {
    /// Does it.
    ///
    /// # Errors
    /// Names the mount that can't be had so.
    pub fn apply(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for step in &self.steps {
            step.apply().map_err(Failure::field(step.field.as_str()))?;
        }
        if self.read_only_root {
            let read_only = Change {
                set: libc::MOUNT_ATTR_RDONLY,
                clear: 0,
            };
            change(root, read_only).map_err(Failure::field("root.readonly"))?;
        }
        Ok(())
    }

    /// Sets what the container's root passes on and gets. This comes last: what is unbindable can't be
    /// bound any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn propagate_root(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        match self.propagation {
            Some(propagation) => {
                propagate(root, propagation).map_err(Failure::field("linux.rootfsPropagation"))
            }
            None => Ok(()),
        }
    }
}

impl Step {
    fn apply(&self) -> Result<(), Errno> {
        if let Some(options) = &self.options {
            reconfigure(&self.mount, options)?;
        }
        change(self.mount.as_fd(), self.change)
    }
}

fn change(mount: BorrowedFd<'_>, Change { set, clear }: Change) -> Result<(), Errno> {
    let change = MountChange {
        set,
        clear,
        ..MountChange::default()
    };
    sys::mount_setattr(mount, change)
}

/// The same for the mounts below as well.
fn change_all(mount: BorrowedFd<'_>, Change { set, clear }: Change) -> Result<(), Errno> {
    let change = MountChange {
        set,
        clear,
        recursive: true,
        ..MountChange::default()
    };
    sys::mount_setattr(mount, change)
}

fn propagate(mount: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Errno> {
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

    /// An entry of a config.json that has it alone.
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
            entry.last(entry.mount.destination()).set
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
    fn a_mount_that_cannot_be_had_is_named_by_its_place() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), "").expect("write");
        let root = std::fs::File::open(root.path()).expect("the root");
        let told = |mount: Value| {
            let mut entry = entry(&mount);
            entry.index = 3;
            let made = entry.make(root.as_fd(), Path::new("/nowhere"));
            made.expect_err("refused").message
        };
        let bind =
            |place: &str| json!({"destination": place, "source": "/proc", "options": ["bind"]});
        // Only root may ask.
        if rustix::process::geteuid().is_root() {
            for place in ["/file", "/file/below"] {
                let expected = format!(
                    "config.json: mounts[3]: {place}: cannot bind it there: not a directory"
                );
                assert_eq!(told(bind(place)), expected);
            }
            let mount = json!({"destination": "/a", "type": "nonsense", "source": "x"});
            let expected = "config.json: mounts[3]: /a: cannot mount nonsense: the guest's kernel has no such file system";
            assert_eq!(told(mount), expected);
        }
        let remount = json!({"destination": "/b", "type": "bind", "options": ["bind", "remount"]});
        let expected = "config.json: mounts[3]: /b: no such file or directory";
        assert_eq!(told(remount), expected);
    }
}
