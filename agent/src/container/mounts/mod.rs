//! The mounts of config.json, as far as libcontainer doesn't make them as runc does.
//!
//! libcontainer makes them, in the container's namespaces, and runs nothing of ours until it has left the
//! old root. So what it can't is done around it:
//! - before, by [`prepare`]: what is asked of the root file system as it is, and options in words that
//!   libcontainer passes on. A destination is followed through symbolic links, a tmpfs gets the mode of
//!   the directory that it covers, what lies there is opened to be copied. The source of a bind mount is
//!   made ready to be copied to the container's mount namespace, and a disk's file system is mounted, to
//!   be bound.
//! - after, by [`Rest::apply`], in the container's mount namespace: propagation, `nosymfollow`,
//!   `remount`, `tmpcopyup`, and `ro` where further mount points had to be made below first. Nobody can
//!   tell: until the container is started, none of its programs runs.
//!
//! What has to do with the host's files (sharing them, mapping their owners) is the host's.

mod copy;
mod dev;
mod disk;
mod failure;
mod file_system;
mod options;
mod place;
mod source;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hull_protocol::paths::SHARE;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fspick,
};

use super::inside::Inside;
use crate::error::Failure;
use crate::sys::{self, MountChange};
pub use failure::Theirs;
use options::{Options, Propagation};
use place::Places;

/// What is left to do once libcontainer has made the mounts.
#[derive(Debug, Default)]
pub struct Rest {
    steps: Vec<Step>,
    /// What is libcontainer's.
    theirs: Vec<Theirs>,
    /// Of the container's root.
    propagation: Option<Propagation>,
    /// Whether the container's root is to be read-only.
    read_only_root: bool,
    user_namespace: bool,
    /// The places in `mounts` of those that bind the guest's /dev.
    of_dev: Vec<usize>,
    disks: disk::Disks,
}

/// What is left to do about one mount.
#[derive(Debug)]
struct Step {
    /// Its place in `mounts`, for messages.
    index: usize,
    destination: PathBuf,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// Fill it with what this directory holds.
    Fill(OwnedFd),
    /// Set and clear attributes, `MOUNT_ATTR_*`.
    Change { set: u64, clear: u64 },
    /// Change the mount that is there already: its attributes, and its file system's options where
    /// there are any.
    Remount {
        set: u64,
        clear: u64,
        options: Option<Vec<String>>,
    },
    /// Change what it passes on and gets.
    Propagate(Propagation),
}

/// Rewrites the mounts of a config.json for libcontainer. Returns what it won't do. The root gets
/// `root_options` before.
///
/// # Errors
/// When a destination may not be mounted on, or can't be looked at.
pub fn prepare(spec: &mut Spec, root_options: Vec<String>) -> Result<Rest, Failure> {
    let mut rest = Rest::default();
    let root = spec.root_mut().as_mut();
    let root = root.ok_or_else(|| Failure::config("root: it is required and isn't there"))?;
    rest.read_only_root = root.readonly().unwrap_or(false);
    root.set_readonly(None);
    let root = root.path().clone();
    if let Some(linux) = spec.linux().clone() {
        let kinds = linux.namespaces().iter().flatten();
        rest.user_namespace = kinds
            .into_iter()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        rest.propagation = linux
            .rootfs_propagation()
            .as_deref()
            .and_then(Propagation::of);
        let mut linux = linux;
        linux.set_rootfs_propagation(None);
        spec.set_linux(Some(linux));
    }
    source::prepare_root(&root, root_options).map_err(Failure::io("root.path"))?;
    let mut places = Places::open(&root).map_err(Failure::field("root.path"))?;
    let mut kept = Vec::new();
    for (index, mut mount) in spec.mounts().clone().into_iter().flatten().enumerate() {
        let destination = places
            .destination(&mount)
            .map_err(|why| Failure::config(format!("mounts[{index}].destination: {why}")))?;
        mount.set_destination(destination.clone());
        if !Options::read(&mount).remount {
            rest.disks.mount(index, &mut mount)?;
        }
        let below = dev::replace(&mut mount);
        if below.is_some() {
            rest.of_dev.push(index);
        }
        let options = Options::read(&mount);
        if let Some(work) = remount(&mount, &options) {
            rest.push(index, &destination, work);
        } else {
            prepare_source(&mount, &options, rest.user_namespace)
                .map_err(Failure::io(format!("mounts[{index}].source")))?;
            let work = divide(&mut mount, options, &places);
            rest.forget_below(&destination);
            for work in work {
                rest.push(index, &destination, work);
            }
            for mount in std::iter::once(mount).chain(below.into_iter().flatten()) {
                rest.theirs.push(Theirs::new(index, &mount, &root));
                places.cover(&mount);
                kept.push(mount);
            }
        }
    }
    spec.set_mounts(Some(kept));
    Ok(rest)
}

/// Has what containers have written reach the host, once they have ended: nobody unmounts anything in a
/// guest that ends.
pub fn write_back() {
    if let Err(e) = file_system::write_back(Path::new(SHARE)) {
        log::warn!("write the shared tree back: {e}");
    }
    disk::write_back();
}

/// The work of an entry that makes no mount but changes one.
fn remount(mount: &Mount, options: &Options) -> Option<Work> {
    options.remount.then(|| Work::Remount {
        set: options.set,
        clear: options.others(),
        options: (!is_bind(mount)).then(|| options.file_system()),
    })
}

/// Does with the source of a bind mount what has to be done before the container has a copy of it.
fn prepare_source(mount: &Mount, options: &Options, user_namespace: bool) -> Result<(), Errno> {
    let Some(source) = mount.source() else {
        return Ok(());
    };
    for below in &options.below {
        source::cross(source, below)?;
    }
    match options.times() {
        Some(times) if user_namespace && is_bind(mount) => {
            source::cover(source, times.set, times.clear)
        }
        _ => Ok(()),
    }
}

/// Leaves libcontainer its part of a mount, and returns the rest, in the order in which it is due.
fn divide(mount: &mut Mount, options: Options, places: &Places) -> Vec<Work> {
    let mut work = Vec::new();
    let tmpfs = mount.typ().as_deref() == Some("tmpfs") && !is_bind(mount);
    let mut theirs = options.libcontainers(is_bind(mount));
    if tmpfs && let Some(covered) = places.covered(mount.destination()) {
        if let Some(mode) = covered.mode.filter(|_| !options.names_mode()) {
            theirs.insert(0, format!("mode={mode:o}"));
        }
        if let Some(directory) = covered.directory.filter(|_| options.copy_up) {
            work.push(Work::Fill(directory));
        }
    }
    let mut set = options.set & libc::MOUNT_ATTR_NOSYMFOLLOW;
    // Mount points are made in it first, as runc does.
    if tmpfs || mount.destination() == Path::new("/dev") {
        theirs.retain(|option| option != "ro");
        set |= options.set & libc::MOUNT_ATTR_RDONLY;
    }
    if set != 0 {
        work.push(Work::Change { set, clear: 0 });
    }
    work.extend(options.propagation.into_iter().map(Work::Propagate));
    mount.set_options((!theirs.is_empty()).then_some(theirs));
    work
}

fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|o| matches!(o.as_str(), "bind" | "rbind"))
}

impl Rest {
    fn push(&mut self, index: usize, destination: &Path, work: Work) {
        self.steps.push(Step {
            index,
            destination: destination.to_owned(),
            work,
        });
    }

    /// Leaves out what is about mounts that a further one covers: by their names, only that one could be
    /// reached any more.
    fn forget_below(&mut self, destination: &Path) {
        self.steps
            .retain(|step| !step.destination.starts_with(destination));
    }

    /// Takes the mounts that are libcontainer's, to tell by its log which of them it can't make.
    pub fn take_theirs(&mut self) -> Vec<Theirs> {
        std::mem::take(&mut self.theirs)
    }

    /// The places in `mounts` of those that bind the guest's /dev: new file systems without its devices.
    pub fn of_dev(&self) -> &[usize] {
        &self.of_dev
    }

    /// Does it, with the rights that the container's first process had when it made the mounts.
    ///
    /// # Errors
    /// Names the mount that can't be had.
    pub fn apply(&mut self, container: &Inside) -> Result<(), Failure> {
        self.disks.keep();
        if self.user_namespace {
            container.become_root()?;
        }
        let root = container.root();
        for step in self.steps.drain(..) {
            let field = format!("mounts[{}]: {}", step.index, step.destination.display());
            step.apply(root).map_err(Failure::field(field))?;
        }
        if self.read_only_root {
            change(root, libc::MOUNT_ATTR_RDONLY, 0).map_err(Failure::field("root.readonly"))?;
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
    fn apply(self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let mount = openat2(
            root,
            &self.destination,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?;
        match self.work {
            Work::Fill(source) => copy::fill(&source, &mount),
            Work::Change { set, clear } => change(mount.as_fd(), set, clear),
            Work::Remount {
                set,
                clear,
                options,
            } => {
                if let Some(options) = options {
                    reconfigure(&mount, &options)?;
                }
                change(mount.as_fd(), set, clear)
            }
            Work::Propagate(propagation) => propagate(mount.as_fd(), propagation),
        }
    }
}

fn change(mount: BorrowedFd<'_>, set: u64, clear: u64) -> Result<(), Errno> {
    let change = MountChange {
        set,
        clear,
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
    use serde_json::json;

    /// What libcontainer gets of a mount, and what is left, in a root with a directory `/data` of mode
    /// 0710.
    fn divided(mount: serde_json::Value) -> (Option<Vec<String>>, String) {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o710)).expect("a mode");
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "root": {"path": root.path()}, "mounts": [mount],
        }))
        .expect("a config.json");
        let rest = prepare(&mut spec, Vec::new()).expect("divided");
        let theirs = spec.mounts().as_ref().and_then(|mounts| mounts.first());
        let theirs = theirs.and_then(|mount| mount.options().clone());
        let work: Vec<_> = rest.steps.iter().map(|step| name(&step.work)).collect();
        (theirs, work.join(" "))
    }

    fn name(work: &Work) -> &'static str {
        match work {
            Work::Fill(_) => "fill",
            Work::Change { .. } => "change",
            Work::Remount { .. } => "remount",
            Work::Propagate(_) => "propagate",
        }
    }

    #[test]
    fn a_tmpfs_has_the_mode_of_what_it_covers_unless_it_names_one() {
        let tmpfs =
            |options| divided(json!({"destination": "/data", "type": "tmpfs", "options": options}));
        let of = |options: &[&str]| Some(options.iter().map(|o| (*o).to_owned()).collect());
        assert_eq!(tmpfs(json!([])), (of(&["mode=710"]), String::new()));
        assert_eq!(
            tmpfs(json!(["mode=1777"])),
            (of(&["mode=1777"]), String::new())
        );
        let (theirs, rest) = tmpfs(json!(["ro", "tmpcopyup", "sync", "rshared", "unbindable"]));
        assert_eq!(theirs, of(&["mode=710", "sync="]));
        assert_eq!(rest, "fill change propagate propagate");
    }

    #[test]
    fn what_libcontainer_can_do_is_left_to_it() {
        let bind = json!({
            "destination": "/data", "type": "bind", "source": "/x",
            "options": ["rbind", "ro", "rnosuid", "noatime", "sync"],
        });
        let theirs = ["rbind", "ro", "rnosuid", "noatime"].map(str::to_owned);
        assert_eq!(divided(bind), (Some(theirs.to_vec()), String::new()));
    }

    #[test]
    fn what_a_further_mount_covers_is_left_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let tmpfs =
            |destination| json!({"destination": destination, "type": "tmpfs", "options": ["ro"]});
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "root": {"path": root.path()},
            "mounts": [tmpfs("/a/b"), tmpfs("/ab"), tmpfs("/a"), tmpfs("/a/c")],
        }))
        .expect("a config.json");
        let rest = prepare(&mut spec, Vec::new()).expect("divided");
        let left: Vec<_> = rest.steps.iter().map(|step| step.index).collect();
        assert_eq!(left, [1, 2, 3]);
    }

    #[test]
    fn a_remount_makes_no_mount() {
        let remount =
            json!({"destination": "/data", "type": "bind", "options": ["bind", "remount", "ro"]});
        assert_eq!(divided(remount), (None, "remount".to_owned()));
    }
}
