//! The nodes of a container's devices, and the symbolic links in its /dev.
//!
//! The container's first process makes them after the mounts: at config.json's paths, with its modes and owners, in
//! directories of mode 0755.
//!
//! In a user namespace no node can be made, and none can be opened on a file system that was mounted there. So, as
//! runc does, a node from outside is bind-mounted: for the default devices the guest's own; for others one that the
//! helper makes, whose owner in the container is the one that config.json names.

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

use crate::container::in_root::{self, Symlinks};
use crate::error::Failure;

/// The kernel's default overflowuid and overflowgid, for ids that aren't mapped.
const OVERFLOW_ID: u32 = 65534;

/// Where the guest has its own devices.
pub const DEV: &str = "/dev";

/// The default devices, by path and number (config-linux.md, "Default Devices").
const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/random", 1, 8),
];

/// The links in a container's /dev, except `ptmx`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", KCORE),
];

/// A kernel without CONFIG_PROC_KCORE doesn't have it.
const KCORE: &str = "/proc/kcore";

/// A link to the devpts of the container, as with runc.
const PTMX: &str = "/dev/ptmx";

/// Where the terminal of a container's first process is mounted.
const CONSOLE: &str = "/dev/console";

/// Clones a mount, detached: it is not mounted anywhere yet.
const CLONE_DETACHED: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// The mode of a node for which config.json has none, runc's.
const DEFAULT_MODE: u32 = 0o666;

/// The nodes of a container, ready to be made.
#[derive(Debug)]
pub struct DeviceNodes(Vec<Node>);

/// One node.
#[derive(Debug)]
struct Node {
    /// Where config.json names it, for messages.
    field: String,
    path: PathBuf,
    kind: FileType,
    device: Dev,
    mode: Mode,
    /// Its owner, by the container's ids.
    owner: (Uid, Gid),
    /// Its owner, by the guest's ids.
    guest_owner: (Uid, Gid),
    method: Method,
}

/// How a node is put at its path.
#[derive(Debug)]
enum Method {
    /// By mknod(2).
    Mknod,
    /// The guest's node of the same path is bind-mounted.
    BindGuestNode,
    /// This detached mount of a node is moved there.
    MoveMount(OwnedFd),
}

/// The id mappings of a container's user namespace.
struct IdMappings {
    user_namespace: bool,
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl DeviceNodes {
    /// The devices of a config.json, and the default devices. With `terminal`, /dev/console is left out, as the
    /// terminal is mounted there. The entries of `mounts` with these indices get all of the guest's devices. In a
    /// user namespace, nodes to be bind-mounted are made below `directory`.
    ///
    /// # Errors
    /// Names the device that can't be prepared.
    pub fn prepare(
        spec: &Spec,
        terminal: bool,
        mounts: &[usize],
        directory: &Path,
    ) -> Result<Self, Failure> {
        let mappings = IdMappings::of(spec);
        let mut nodes = configured(spec, &mappings);
        nodes.extend(guest_devices(mounts)?);
        add_defaults(&mut nodes, &mappings);
        nodes.retain(|node| {
            let console = terminal && node.path == Path::new(CONSOLE);
            node.path != Path::new(PTMX) && !console
        });
        if mappings.user_namespace {
            prepare_for_user_namespace(&directory.join("devices"), &mut nodes)?;
        }
        Ok(Self(nodes))
    }

    /// Makes the nodes in a container's root, and the links in its /dev. The caller is in the container's mount
    /// namespace, as root.
    ///
    /// # Errors
    /// Names the device that can't be made.
    pub fn make(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        for node in &self.0 {
            let what = format!("{}: make {}", node.field, node.path.display());
            node.make(root).map_err(Failure::field(what))?;
        }
        link(root).map_err(Failure::io("make the links in /dev"))
    }
}

/// Makes the links. As with runc, existing files are kept, except for `ptmx`: terminals must come from the
/// container's devpts.
fn link(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let dev = in_root::open_or_make_directory(root, Path::new(DEV), Symlinks::Follow)?;
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
fn configured(spec: &Spec, mappings: &IdMappings) -> Vec<Node> {
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
        owner: owner(ids(device)),
        guest_owner: mappings.to_guest(ids(device)),
        method: Method::Mknod,
    };
    let devices = devices.into_iter().flatten().enumerate();
    devices.map(node).collect()
}

/// Adds the default devices that config.json doesn't list.
fn add_defaults(nodes: &mut Vec<Node>, mappings: &IdMappings) {
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
            owner: owner((0, 0)),
            guest_owner: mappings.to_guest((0, 0)),
            method: Method::Mknod,
        });
    }
}

fn owner((uid, gid): (u32, u32)) -> (Uid, Gid) {
    (Uid::from_raw(uid), Gid::from_raw(gid))
}

/// The guest's own devices, for each of the mounts that bind its /dev.
fn guest_devices(mounts: &[usize]) -> Result<Vec<Node>, Failure> {
    let mut nodes = Vec::new();
    for index in mounts {
        let field = format!("mounts[{index}]");
        add_nodes_in(Path::new(DEV), &field, &mut nodes)
            .map_err(Failure::field(format!("{field}: list {DEV}")))?;
    }
    Ok(nodes)
}

/// Adds the nodes in a directory of the guest and below it, on the same file system.
fn add_nodes_in(directory: &Path, field: &str, nodes: &mut Vec<Node>) -> std::io::Result<()> {
    let device = fs::symlink_metadata(directory)?.dev();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let about = fs::symlink_metadata(&path)?;
        let kind = about.file_type();
        if kind.is_dir() && about.dev() == device && path != Path::new(hull_protocol::paths::DISKS)
        {
            add_nodes_in(&path, field, nodes)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push(Node {
                field: field.to_owned(),
                kind: FileType::from_raw_mode(about.mode()),
                device: about.rdev(),
                mode: Mode::from_raw_mode(about.mode()),
                owner: owner((about.uid(), about.gid())),
                guest_owner: owner((about.uid(), about.gid())),
                method: Method::Mknod,
                path,
            });
        }
    }
    Ok(())
}

/// Prepares nodes to be bind-mounted. A FIFO is made in place.
fn prepare_for_user_namespace(directory: &Path, nodes: &mut [Node]) -> Result<(), Failure> {
    let nodes = nodes.iter_mut().filter(|node| node.kind != FileType::Fifo);
    let (defaults, mut others): (Vec<_>, Vec<_>) = nodes.partition(|node| node.is_default());
    for node in defaults {
        node.method = Method::BindGuestNode;
    }
    match others.is_empty() {
        true => Ok(()),
        false => make_detached(directory, &mut others),
    }
}

/// Makes nodes on a tmpfs of their own, which the kernel keeps for as long as one of them is mounted.
fn make_detached(directory: &Path, nodes: &mut [&mut Node]) -> Result<(), Failure> {
    fs::create_dir(directory).map_err(Failure::io("make a place for device nodes"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devices", directory, "tmpfs", flags, None)
        .map_err(Failure::io("mount a place for device nodes"))?;
    let made = nodes
        .iter_mut()
        .enumerate()
        .try_for_each(|(index, node)| node.make_detached(&directory.join(index.to_string())));
    unmount(directory, UnmountFlags::DETACH)
        .map_err(Failure::io("unmount the place for device nodes"))?;
    made
}

impl Node {
    /// Whether it is a default device.
    fn is_default(&self) -> bool {
        let mut defaults = DEFAULTS.iter();
        defaults.any(|(path, major, minor)| {
            self.path == Path::new(path) && self.device == makedev(*major, *minor)
        })
    }

    /// Makes the node at `path`, to be mounted elsewhere.
    fn make_detached(&mut self, path: &Path) -> Result<(), Failure> {
        let tree = self
            .mknod(CWD, path.as_os_str(), self.guest_owner)
            .and_then(|()| open_tree(CWD, path, CLONE_DETACHED))
            .map_err(Failure::field(format!("{}: make its node", self.field)))?;
        self.method = Method::MoveMount(tree);
        Ok(())
    }

    fn make(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = self.path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let parent = in_root::open_or_make_directory(root, parent, Symlinks::Follow)?;
        let made = match &self.method {
            Method::Mknod => self.mknod(parent.as_fd(), name, self.owner),
            Method::BindGuestNode => open_tree(CWD, &self.path, CLONE_DETACHED)
                .and_then(|tree| self.mount(&tree, parent.as_fd(), name)),
            Method::MoveMount(tree) => self.mount(tree, parent.as_fd(), name),
        };
        match made {
            // As with runc, an existing node of the same device is kept.
            Err(Errno::EXIST) if self.is_same_as(parent.as_fd(), name)? => Ok(()),
            made => made,
        }
    }

    /// Makes the node, with its owner and mode.
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

    /// Mounts the node on a file, unless a node of the same device exists there.
    fn mount(&self, tree: &OwnedFd, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(parent, name, flags, Mode::from_raw_mode(0o644)) {
            Err(Errno::EXIST) if self.is_same_as(parent, name)? => return Ok(()),
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
    fn is_same_as(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
        let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let same_device = self.kind == FileType::Fifo || there.st_rdev == self.device;
        Ok(FileType::from_raw_mode(there.st_mode) == self.kind && same_device)
    }
}

impl IdMappings {
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

    /// An owner by the guest's ids. One that isn't mapped becomes the overflow id.
    fn to_guest(&self, (uid, gid): (u32, u32)) -> (Uid, Gid) {
        let outside = |mappings: &[LinuxIdMapping], id: u32| {
            if !self.user_namespace {
                return id;
            }
            let inside =
                |m: &LinuxIdMapping| id.checked_sub(m.container_id()).filter(|i| *i < m.size());
            let mut mappings = mappings.iter();
            let found = mappings.find_map(|m| inside(m).and_then(|i| m.host_id().checked_add(i)));
            found.unwrap_or(OVERFLOW_ID)
        };
        owner((outside(&self.uids, uid), outside(&self.gids, gid)))
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
        let nodes = configured(&spec, &IdMappings::of(&spec));
        let root = fs::File::open(root).expect("a root");
        DeviceNodes(nodes).make(root.as_fd())
    }

    #[test]
    fn a_node_is_made_anywhere_in_the_root_and_symlinks_do_not_lead_out() {
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
    fn an_existing_file_is_kept_if_it_is_the_same_and_refused_if_not() {
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
        let DeviceNodes(nodes) =
            DeviceNodes::prepare(&spec, false, &[], Path::new("/nowhere")).expect("devices");
        let ours: Vec<_> = nodes.iter().map(|node| node.path.as_path()).collect();
        assert_eq!(ours[..2], [Path::new("/dev/null"), Path::new("/dev/x")]);
        assert_eq!(ours.len(), DEFAULTS.len() + 1);
    }

    #[test]
    fn existing_links_in_dev_are_kept_except_for_ptmx() {
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
    fn owners_are_mapped_to_the_guests_ids() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 11 }]);
        let mut linux = json!({ "uidMappings": map, "gidMappings": map });
        let of = |linux: &Value| {
            let (uid, gid) = IdMappings::of(&spec(linux)).to_guest((10, 11));
            (uid.as_raw(), gid.as_raw())
        };
        assert_eq!(of(&linux), (10, 11));
        linux["namespaces"] = json!([{ "type": "user" }]);
        assert_eq!(of(&linux), (1010, OVERFLOW_ID));
    }
}
