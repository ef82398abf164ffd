//! The nodes of a container's devices.
//!
//! They are made once libcontainer has made the mounts, in the container's mount namespace: wherever
//! config.json has them, with its mode and owner, in directories of mode 0755.
//!
//! In a user namespace no node can be opened that lies on a file system of that namespace's. There, as
//! runc does, a node from outside is mounted: one that is made for it, with the owner that config.json
//! names in the numbers of the container.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Process, Spec,
};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, makedev,
    mkdirat, mknodat, openat, openat2, statat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};

use crate::error::Failure;

/// Whoever has no number, `overflowuid` of the kernel.
const NOBODY: u32 = 65534;

/// Where the guest has its own devices.
pub const DEV: &str = "/dev";

/// What libcontainer makes whether it is listed or not.
const DEFAULTS: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/urandom",
    "/dev/random",
];

/// A link to the devpts of the container, as with runc.
const PTMX: &str = "/dev/ptmx";

/// Where a container with a terminal has that.
const CONSOLE: &str = "/dev/console";

/// The mode of a node for which config.json has none, runc's.
const DEFAULT_MODE: u32 = 0o666;

/// What is left to do once libcontainer has made the mounts.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    /// The owner of what is made on the way.
    root: (Uid, Gid),
}

/// One node.
#[derive(Debug)]
struct Node {
    /// Where config.json names it, for messages.
    field: String,
    path: PathBuf,
    kind: FileType,
    device: Dev,
    mode: Mode,
    owner: (Uid, Gid),
    /// What to mount there, in a user namespace.
    tree: Option<OwnedFd>,
}

/// Who is who in a container.
struct Owners {
    user_namespace: bool,
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Nodes {
    /// Takes a config.json's devices out of libcontainer's part, but for its own. Those of `mounts`, by
    /// their places, get the guest's devices. In a user namespace, what is to be mounted is made below
    /// `directory`.
    ///
    /// # Errors
    /// Names the device that can't be had.
    pub fn prepare(spec: &mut Spec, mounts: &[usize], directory: &Path) -> Result<Self, Failure> {
        let owners = Owners::of(spec);
        let mut nodes = listed(spec, &owners);
        nodes.extend(guests_own(mounts)?);
        let terminal = spec.process().as_ref().and_then(Process::terminal) == Some(true);
        nodes.retain(|node| {
            let console = terminal && node.path == Path::new(CONSOLE);
            node.path != Path::new(PTMX) && !console
        });
        if owners.user_namespace {
            mount_from(&directory.join("devices"), &mut nodes)?;
        }
        if let Some(linux) = spec.linux_mut()
            && let Some(devices) = linux.devices_mut()
        {
            devices.retain(|device| DEFAULTS.iter().any(|path| device.path() == Path::new(path)));
        }
        Ok(Self {
            nodes,
            root: owners.owner(0, 0),
        })
    }

    /// Makes the nodes in a container's root. The caller is in its mount namespace, with the rights of
    /// the guest's root.
    ///
    /// # Errors
    /// Names the device that can't be had.
    pub fn make(self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let mut nodes = self.nodes.iter();
        nodes.try_for_each(|node| {
            let what = format!("{}: make {}", node.field, node.path.display());
            node.make(root, self.root).map_err(Failure::field(what))
        })
    }
}

/// The devices that config.json lists.
fn listed(spec: &Spec, owners: &Owners) -> Vec<Node> {
    let devices = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    let node = |(index, device): (usize, &LinuxDevice)| Node {
        field: format!("linux.devices[{index}]"),
        path: device.path().clone(),
        kind: match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A | LinuxDeviceType::C | LinuxDeviceType::U => {
                FileType::CharacterDevice
            }
        },
        // The kernel's own numbers are of 32 bits and less.
        device: makedev(device.major() as u32, device.minor() as u32),
        mode: Mode::from_raw_mode(device.file_mode().unwrap_or(DEFAULT_MODE)),
        owner: owners.owner(device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        tree: None,
    };
    let devices = devices.into_iter().flatten().enumerate();
    devices.map(node).collect()
}

/// The guest's own devices, for each of the mounts that are to have them.
fn guests_own(mounts: &[usize]) -> Result<Vec<Node>, Failure> {
    let mut nodes = Vec::new();
    for index in mounts {
        let field = format!("mounts[{index}]");
        add_below(Path::new(DEV), &field, &mut nodes)
            .map_err(Failure::field(format!("{field}: list {DEV}")))?;
    }
    Ok(nodes)
}

/// Adds the nodes in a directory of the guest's. What other file systems have there is not among them.
fn add_below(directory: &Path, field: &str, nodes: &mut Vec<Node>) -> std::io::Result<()> {
    let device = fs::symlink_metadata(directory)?.dev();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let about = fs::symlink_metadata(&path)?;
        let kind = about.file_type();
        if kind.is_dir() && about.dev() == device && path != Path::new(hull_protocol::paths::DISKS)
        {
            add_below(&path, field, nodes)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push(Node {
                field: field.to_owned(),
                kind: FileType::from_raw_mode(about.mode()),
                device: about.rdev(),
                mode: Mode::from_raw_mode(about.mode()),
                owner: (Uid::from_raw(about.uid()), Gid::from_raw(about.gid())),
                tree: None,
                path,
            });
        }
    }
    Ok(())
}

/// Makes nodes to be mounted where they are wanted: on a file system of their own, which is there as
/// long as one of them is. A FIFO needs none.
fn mount_from(directory: &Path, nodes: &mut [Node]) -> Result<(), Failure> {
    fs::create_dir(directory).map_err(Failure::io("make a place for device nodes"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devices", directory, "tmpfs", flags, None)
        .map_err(Failure::io("mount a place for device nodes"))?;
    let made = nodes
        .iter_mut()
        .enumerate()
        .filter(|(_, node)| node.kind != FileType::Fifo)
        .try_for_each(|(index, node)| node.detach(&directory.join(index.to_string())));
    unmount(directory, UnmountFlags::DETACH)
        .map_err(Failure::io("unmount the place for device nodes"))?;
    made
}

impl Node {
    /// Makes the node there, to be mounted elsewhere.
    fn detach(&mut self, path: &Path) -> Result<(), Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = self
            .mknod(CWD, path.as_os_str())
            .and_then(|()| open_tree(CWD, path, flags))
            .map_err(Failure::field(format!("{}: make its node", self.field)))?;
        self.tree = Some(tree);
        Ok(())
    }

    fn make(&self, root: BorrowedFd<'_>, owner: (Uid, Gid)) -> Result<(), Errno> {
        let name = self.path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let parent = directory(root, parent, owner)?;
        let made = match &self.tree {
            None => self.mknod(parent.as_fd(), name),
            Some(tree) => self.mount(tree, parent.as_fd(), name),
        };
        match made {
            // As with runc, it stays as it is.
            Err(Errno::EXIST) if self.is(parent.as_fd(), name)? => Ok(()),
            made => made,
        }
    }

    /// Makes the node.
    fn mknod(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        mknodat(parent, name, self.kind, self.mode, self.device)?;
        let (uid, gid) = self.owner;
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        chmodat(parent, name, self.mode, AtFlags::empty()) // whatever the umask
    }

    /// Mounts the node on a file, unless it is there already.
    fn mount(&self, tree: &OwnedFd, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(parent, name, flags, Mode::from_raw_mode(0o644)) {
            Err(Errno::EXIST) if self.is(parent, name)? => return Ok(()),
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        move_mount(
            tree,
            "",
            parent,
            name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    }

    /// Whether a file is a node of this device.
    fn is(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
        let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let same_device = self.kind == FileType::Fifo || there.st_rdev == self.device;
        Ok(FileType::from_raw_mode(there.st_mode) == self.kind && same_device)
    }
}

/// Opens a directory below `root`, and makes what is missing on the way.
fn directory(root: BorrowedFd<'_>, path: &Path, owner: (Uid, Gid)) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut opened = openat(root, ".", flags, Mode::empty())?;
    let mut way = PathBuf::new();
    for name in path.components() {
        way.push(name);
        let open = || openat2(root, &way, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        opened = match open() {
            Err(Errno::NOENT) => {
                let name = name.as_os_str();
                mkdirat(&opened, name, Mode::from_raw_mode(0o755))?;
                chownat(
                    &opened,
                    name,
                    Some(owner.0),
                    Some(owner.1),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
                open()?
            }
            opened => opened?,
        };
    }
    Ok(opened)
}

impl Owners {
    fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let mut namespaces = linux
            .and_then(|l| l.namespaces().as_ref())
            .into_iter()
            .flatten();
        let mappings = |get: fn(&oci_spec::runtime::Linux) -> &Option<Vec<LinuxIdMapping>>| {
            linux
                .and_then(|linux| get(linux).clone())
                .unwrap_or_default()
        };
        Self {
            user_namespace: namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User),
            uids: mappings(oci_spec::runtime::Linux::uid_mappings),
            gids: mappings(oci_spec::runtime::Linux::gid_mappings),
        }
    }

    /// An owner in the guest's numbers. Whoever has none there is nobody in the container, too.
    fn owner(&self, uid: u32, gid: u32) -> (Uid, Gid) {
        let outside = |mappings: &[LinuxIdMapping], id: u32| {
            if !self.user_namespace {
                return id;
            }
            let inside =
                |m: &LinuxIdMapping| id.checked_sub(m.container_id()).filter(|i| *i < m.size());
            let mut mappings = mappings.iter();
            let found = mappings.find_map(|m| inside(m).and_then(|i| m.host_id().checked_add(i)));
            found.unwrap_or(NOBODY)
        };
        let (uid, gid) = (outside(&self.uids, uid), outside(&self.gids, gid));
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn spec(linux: &Value) -> Spec {
        serde_json::from_value(json!({ "ociVersion": "1.2.0", "linux": linux })).expect("valid")
    }

    fn fifo(path: &str) -> Value {
        let id = rustix::process::getuid().as_raw();
        json!({ "path": path, "type": "p", "fileMode": 0o620, "uid": id })
    }

    fn make(root: &Path, devices: &Value) -> Result<(), Failure> {
        let mut spec = spec(&json!({ "devices": devices }));
        let nodes = Nodes::prepare(&mut spec, &[], root).expect("devices");
        let root = fs::File::open(root).expect("a root");
        nodes.make(root.as_fd())
    }

    #[test]
    fn a_node_is_anywhere_in_the_root_and_links_do_not_lead_out() {
        let root = tempfile::tempdir().expect("a directory");
        symlink("/dev/deep", root.path().join("link")).expect("a link");
        let devices = json!([
            fifo("/dev/deep/er/pipe"),
            fifo("/link/../pipe"),
            fifo("/tmp/")
        ]);
        make(root.path(), &devices).expect("made");
        let mode = |path: &str| {
            let about = fs::symlink_metadata(root.path().join(path)).expect("it is there");
            about.permissions().mode() & 0o7777
        };
        assert_eq!((mode("dev"), mode("dev/deep/er")), (0o755, 0o755));
        for pipe in ["dev/deep/er/pipe", "dev/pipe", "tmp"] {
            assert_eq!(mode(pipe), 0o620, "{pipe}");
        }
    }

    #[test]
    fn what_is_there_is_kept_if_it_is_the_same_and_named_if_not() {
        let root = tempfile::tempdir().expect("a directory");
        make(root.path(), &json!([fifo("/pipe")])).expect("made");
        make(root.path(), &json!([fifo("/pipe")])).expect("kept");
        fs::write(root.path().join("file"), "").expect("a file");
        let error = make(root.path(), &json!([fifo("/pipe"), fifo("/file")])).expect_err("other");
        assert_eq!(
            error.message,
            "config.json: linux.devices[1]: make /file: file exists"
        );
    }

    #[test]
    fn libcontainer_gets_its_own_devices_alone() {
        let device = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 3 });
        let devices = json!([device("/dev/null"), device("/dev/x"), device(PTMX)]);
        let mut spec = spec(&json!({ "devices": devices }));
        let nodes = Nodes::prepare(&mut spec, &[], Path::new("/nowhere")).expect("devices");
        let ours: Vec<_> = nodes.nodes.iter().map(|node| node.path.as_path()).collect();
        assert_eq!(ours, [Path::new("/dev/null"), Path::new("/dev/x")]);
        let theirs = spec
            .linux()
            .clone()
            .and_then(|linux| linux.devices().clone());
        assert_eq!(theirs.expect("devices").len(), 1);
    }

    #[test]
    fn owners_are_in_the_numbers_of_the_guest() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 11 }]);
        let mut linux = json!({ "uidMappings": map, "gidMappings": map });
        let of = |linux: &Value| {
            let (uid, gid) = Owners::of(&spec(linux)).owner(10, 11);
            (uid.as_raw(), gid.as_raw())
        };
        assert_eq!(of(&linux), (10, 11));
        linux["namespaces"] = json!([{ "type": "user" }]);
        assert_eq!(of(&linux), (1010, NOBODY));
    }
}
