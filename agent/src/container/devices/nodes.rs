//! The nodes of a container's devices, and the links that lie beside them.
//!
//! They are made once the mounts are there, by the container's first process: wherever config.json has
//! them, with its mode and owner, in directories of mode 0755.
//!
//! In a user namespace no node can be made, and none can be opened that lies on a file system of that
//! namespace's. There, as runc does, a node from outside is mounted: of what every container has, the guest's
//! own; else one that is made for it, with the owner that config.json names in the numbers of the container.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, makedev, mknodat,
    openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};

use crate::container::inside::{self, Links};
use crate::error::Failure;

/// Whoever has no number, `overflowuid` of the kernel.
const NOBODY: u32 = 65534;

/// Where the guest has its own devices.
pub const DEV: &str = "/dev";

/// What every container has, by name and number (config-linux.md, "Default Devices").
const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/random", 1, 8),
];

/// The links in a container's /dev, but for `ptmx`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", KCORE),
];

/// Not every kernel has it.
const KCORE: &str = "/proc/kcore";

/// A link to the devpts of the container, as with runc.
const PTMX: &str = "/dev/ptmx";

/// Where a container with a terminal has that.
const CONSOLE: &str = "/dev/console";

/// A mount that is nowhere yet.
const DETACHED: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// The mode of a node for which config.json has none, runc's.
const DEFAULT_MODE: u32 = 0o666;

/// The nodes of a container, ready to be made.
#[derive(Debug)]
pub struct Nodes(Vec<Node>);

/// One node.
#[derive(Debug)]
struct Node {
    /// Where config.json names it, for messages.
    field: String,
    path: PathBuf,
    kind: FileType,
    device: Dev,
    mode: Mode,
    /// In the numbers of the container.
    owner: (Uid, Gid),
    /// In the numbers of the guest.
    outside: (Uid, Gid),
    way: Way,
}

/// How a node comes to be where it is wanted.
#[derive(Debug)]
enum Way {
    /// It is made there.
    Make,
    /// The guest's node of the same name is mounted there.
    BindGuests,
    /// This one is mounted there.
    Mount(OwnedFd),
}

/// Who is who in a container.
struct Owners {
    user_namespace: bool,
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Nodes {
    /// A config.json's devices, and those that every container has; with a terminal, that is the console.
    /// Those of `mounts`, by their places, get the guest's devices. In a user namespace, what is to be
    /// mounted is made below `directory`.
    ///
    /// # Errors
    /// Names the device that can't be had.
    pub fn prepare(
        spec: &Spec,
        terminal: bool,
        mounts: &[usize],
        directory: &Path,
    ) -> Result<Self, Failure> {
        let owners = Owners::of(spec);
        let mut nodes = listed(spec, &owners);
        nodes.extend(guests_own(mounts)?);
        add_defaults(&mut nodes, &owners);
        nodes.retain(|node| {
            let console = terminal && node.path == Path::new(CONSOLE);
            node.path != Path::new(PTMX) && !console
        });
        if owners.user_namespace {
            detach(&directory.join("devices"), &mut nodes)?;
        }
        Ok(Self(nodes))
    }

    /// Makes the nodes in a container's root, and the links in its /dev. The caller is in its mount
    /// namespace, as the root there.
    ///
    /// # Errors
    /// Names the device that can't be had.
    pub fn make(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for node in &self.0 {
            let what = format!("{}: make {}", node.field, node.path.display());
            node.make(root).map_err(Failure::field(what))?;
        }
        link(root).map_err(Failure::io("make the links in /dev"))
    }
}

/// Makes the links. As with runc, what has such a name already stays, but for `ptmx`: a terminal must be
/// the container's.
fn link(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let dev = inside::folder(root, Path::new(DEV), Links::Followed)?;
    let has_kcore = Path::new(KCORE).exists();
    for (name, target) in LINKS.iter().filter(|(_, to)| has_kcore || *to != KCORE) {
        match symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    match unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    symlinkat("pts/ptmx", &dev, "ptmx")
}

/// The devices that config.json lists.
fn listed(spec: &Spec, owners: &Owners) -> Vec<Node> {
    let devices = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    let ids = |device: &LinuxDevice| (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
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
        owner: own(ids(device)),
        outside: owners.outside(ids(device)),
        way: Way::Make,
    };
    let devices = devices.into_iter().flatten().enumerate();
    devices.map(node).collect()
}

/// Adds what every container has and nobody has named.
fn add_defaults(nodes: &mut Vec<Node>, owners: &Owners) {
    for (path, major, minor) in DEFAULTS {
        if nodes.iter().any(|node| node.path == Path::new(path)) {
            continue;
        }
        nodes.push(Node {
            field: "linux.devices".to_owned(),
            path: PathBuf::from(path),
            kind: FileType::CharacterDevice,
            device: makedev(*major, *minor),
            mode: Mode::from_raw_mode(DEFAULT_MODE),
            owner: own((0, 0)),
            outside: owners.outside((0, 0)),
            way: Way::Make,
        });
    }
}

fn own((uid, gid): (u32, u32)) -> (Uid, Gid) {
    (Uid::from_raw(uid), Gid::from_raw(gid))
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
                owner: own((about.uid(), about.gid())),
                outside: own((about.uid(), about.gid())),
                way: Way::Make,
                path,
            });
        }
    }
    Ok(())
}

/// Makes nodes ready to be mounted where they are wanted. A FIFO needs no such thing.
fn detach(directory: &Path, nodes: &mut [Node]) -> Result<(), Failure> {
    let nodes = nodes.iter_mut().filter(|node| node.kind != FileType::Fifo);
    let (defaults, mut others): (Vec<_>, Vec<_>) = nodes.partition(|node| node.is_default());
    for node in defaults {
        node.way = Way::BindGuests;
    }
    match others.is_empty() {
        true => Ok(()),
        false => make_apart(directory, &mut others),
    }
}

/// Makes nodes on a file system of their own, which is there as long as one of them is.
fn make_apart(directory: &Path, nodes: &mut [&mut Node]) -> Result<(), Failure> {
    fs::create_dir(directory).map_err(Failure::io("make a place for device nodes"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devices", directory, "tmpfs", flags, None)
        .map_err(Failure::io("mount a place for device nodes"))?;
    let made = nodes
        .iter_mut()
        .enumerate()
        .try_for_each(|(index, node)| node.make_apart(&directory.join(index.to_string())));
    unmount(directory, UnmountFlags::DETACH)
        .map_err(Failure::io("unmount the place for device nodes"))?;
    made
}

impl Node {
    /// Whether it is what every container has.
    fn is_default(&self) -> bool {
        let mut defaults = DEFAULTS.iter();
        defaults.any(|(path, major, minor)| {
            self.path == Path::new(path) && self.device == makedev(*major, *minor)
        })
    }

    /// Makes the node there, to be mounted elsewhere.
    fn make_apart(&mut self, path: &Path) -> Result<(), Failure> {
        let tree = self
            .mknod(CWD, path.as_os_str(), self.outside)
            .and_then(|()| open_tree(CWD, path, DETACHED))
            .map_err(Failure::field(format!("{}: make its node", self.field)))?;
        self.way = Way::Mount(tree);
        Ok(())
    }

    fn make(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = self.path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let parent = inside::folder(root, parent, Links::Followed)?;
        let made = match &self.way {
            Way::Make => self.mknod(parent.as_fd(), name, self.owner),
            Way::BindGuests => open_tree(CWD, &self.path, DETACHED)
                .and_then(|tree| self.mount(&tree, parent.as_fd(), name)),
            Way::Mount(tree) => self.mount(tree, parent.as_fd(), name),
        };
        match made {
            // As with runc, it stays as it is.
            Err(Errno::EXIST) if self.is(parent.as_fd(), name)? => Ok(()),
            made => made,
        }
    }

    /// Makes the node.
    fn mknod(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        (uid, gid): (Uid, Gid),
    ) -> Result<(), Errno> {
        mknodat(parent, name, self.kind, self.mode, self.device)?;
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
    fn outside(&self, (uid, gid): (u32, u32)) -> (Uid, Gid) {
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
        own((outside(&self.uids, uid), outside(&self.gids, gid)))
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
        let spec = spec(&json!({ "devices": devices }));
        let nodes = listed(&spec, &Owners::of(&spec));
        let root = fs::File::open(root).expect("a root");
        Nodes(nodes).make(root.as_fd())
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
    fn every_container_has_the_default_devices_once() {
        let device = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 3 });
        let devices = json!([device("/dev/null"), device("/dev/x"), device(PTMX)]);
        let spec = spec(&json!({ "devices": devices }));
        let Nodes(nodes) =
            Nodes::prepare(&spec, false, &[], Path::new("/nowhere")).expect("devices");
        let ours: Vec<_> = nodes.iter().map(|node| node.path.as_path()).collect();
        assert_eq!(ours[..2], [Path::new("/dev/null"), Path::new("/dev/x")]);
        assert_eq!(ours.len(), DEFAULTS.len() + 1);
    }

    #[test]
    fn the_links_in_dev_stay_if_they_are_there_but_for_the_terminals() {
        let root = tempfile::tempdir().expect("a directory");
        let dev = root.path().join("dev");
        fs::create_dir(&dev).expect("a directory");
        fs::write(dev.join("core"), "").expect("a file");
        symlink("elsewhere", dev.join("ptmx")).expect("a link");
        make(root.path(), &json!([])).expect("made");
        let link = |name: &str| fs::read_link(dev.join(name)).expect("a link");
        assert_eq!(link("ptmx"), Path::new("pts/ptmx"));
        assert_eq!(link("stderr"), Path::new("/proc/self/fd/2"));
        assert!(dev.join("core").is_file());
    }

    #[test]
    fn owners_are_in_the_numbers_of_the_guest() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 11 }]);
        let mut linux = json!({ "uidMappings": map, "gidMappings": map });
        let of = |linux: &Value| {
            let (uid, gid) = Owners::of(&spec(linux)).outside((10, 11));
            (uid.as_raw(), gid.as_raw())
        };
        assert_eq!(of(&linux), (10, 11));
        linux["namespaces"] = json!([{ "type": "user" }]);
        assert_eq!(of(&linux), (1010, NOBODY));
    }
}
