//! `mounts[]`: which are refused, and what the host does for the others.
//!
//! The guest's kernel makes what needs nothing of the host's, and mounts what lies on a disk: a guest may
//! have written that disk, and the host's kernel isn't to read what it made of a file system. The host
//! shares what is bound from it, and mounts every other file system itself: an overlay's directories are
//! the host's.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use serde_json::Value;

use super::mount_options::{Treatment, flags, treatment};
use super::refuse::{Node, Refusal, is_unset};
use super::user_namespace;
use hull_vmm::jail::tree::{FileSystem, Owners};

/// What a guest's kernel makes out of nothing that is the host's.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "bpf",
    "cgroup",
    "cgroup2",
    "debugfs",
    "devpts",
    "devtmpfs",
    "hugetlbfs",
    "mqueue",
    "proc",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// What the guest's kernel mounts of a disk.
const GUEST_DISK_FILE_SYSTEMS: &[&str] = &["erofs", "ext2", "ext3", "ext4"];

/// Linux's other file systems on disks. That none is left out that one day will be there, the split sees
/// to: no source of what the host mounts is a block device.
const OTHER_DISK_FILE_SYSTEMS: &[&str] = &[
    "adfs", "affs", "bcachefs", "befs", "bfs", "btrfs", "cramfs", "efs", "exfat", "f2fs",
    "fuseblk", "gfs2", "hfs", "hfsplus", "hpfs", "iso9660", "jfs", "minix", "msdos", "nilfs2",
    "ntfs", "ntfs3", "ocfs2", "omfs", "qnx4", "qnx6", "reiserfs", "romfs", "squashfs", "sysv",
    "udf", "ufs", "vfat", "vxfs", "xfs", "zonefs",
];

/// Why the host doesn't mount what lies on a disk.
pub const ON_A_DISK: &str = "the guest's kernel mounts what lies on a disk, and knows erofs, ext2, ext3 \
                             and ext4 alone";

/// What to do about it.
pub const OTHER_WAYS: &str = "use one of these, or mount it on the host and bind that";

/// Whether a mount, as it stands in config.json, is a bind mount.
pub fn is_bind<'a>(mount_type: Option<&str>, mut options: impl Iterator<Item = &'a str>) -> bool {
    options.any(|option| matches!(option, "bind" | "rbind")) || mount_type == Some("bind")
}

/// Who makes a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The host shares its source.
    Shared,
    /// The host mounts it, and shares that.
    Host,
    /// The guest, of a disk that the host hands over.
    Disk,
    /// The guest alone. That is so of a change of a mount, too.
    Guest,
}

/// Who makes a mount of this type with these options.
pub fn maker<'a>(kind: Option<&str>, options: impl Iterator<Item = &'a str> + Clone) -> Maker {
    if options.clone().any(|option| option == "remount") {
        Maker::Guest
    } else if is_bind(kind, options) {
        Maker::Shared
    } else if kind.is_none_or(|kind| GUEST_FILE_SYSTEMS.contains(&kind)) {
        Maker::Guest
    } else if kind.is_some_and(|kind| GUEST_DISK_FILE_SYSTEMS.contains(&kind)) {
        Maker::Disk
    } else {
        Maker::Host
    }
}

/// `mounts[]`: its type, its options and its mappings, which are to be judged together.
pub fn check(node: Node<'_>) -> Option<Refusal> {
    let mount = Judged::of(node);
    mount
        .options
        .iter()
        .enumerate()
        .find_map(|(index, option)| {
            let refusal = mount.option(option)?;
            Some(refusal.at(format!(".options[{index}]")))
        })
        .or_else(|| mount.mappings())
        .or_else(|| mount.kind())
        .or_else(|| mount.destination())
}

/// A mount under judgement. What has the wrong type is left out: others say so.
struct Judged<'a> {
    node: Node<'a>,
    kind: Option<&'a str>,
    options: Vec<&'a str>,
    bind: bool,
}

impl<'a> Judged<'a> {
    fn of(node: Node<'a>) -> Self {
        let kind = node.value["type"].as_str();
        let options: Vec<_> = node.value["options"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|option| option.as_str().unwrap_or_default())
            .collect();
        Self {
            bind: is_bind(kind, options.iter().copied()),
            node,
            kind,
            options,
        }
    }

    fn option(&self, option: &str) -> Option<Refusal> {
        let refused = |reason: &str, remedy: &'static str| {
            Some(Refusal::new(format!("{option:?}: {reason}"), remedy))
        };
        match treatment(option) {
            Some(Treatment::Refused(reason)) => refused(reason, "remove it"),
            Some(Treatment::Owners) if !self.bind => {
                refused("only a bind mount's owners can be mapped", "remove it")
            }
            Some(Treatment::Owners) if !self.has_mappings() && !self.container_has_mappings() => {
                refused(
                    "there is no mapping",
                    "give the mount uidMappings and gidMappings",
                )
            }
            Some(Treatment::Fill) if self.bind || self.kind != Some("tmpfs") => {
                refused("only a tmpfs can be filled", "remove it")
            }
            Some(Treatment::Propagation) if self.reaches_the_host(option) => refused(
                "with this linux.rootfsPropagation, it asks that mounts made by the container \
                 appear on the host, and a guest's cannot",
                "use \"rslave\", which lets the host's mounts appear in the container",
            ),
            // The kernel would ignore it without a word: runc refuses it too.
            None if self.bind && !option.is_empty() => {
                refused("it is not an option of bind mounts", "remove it")
            }
            _ => None,
        }
    }

    /// Whether a mount made in the container would have to appear on the host: if the source is shared,
    /// and the container's root has not become a slave of the host's before.
    fn reaches_the_host(&self, option: &str) -> bool {
        self.bind
            && matches!(option, "shared" | "rshared")
            && matches!(
                self.node.root["linux"]["rootfsPropagation"].as_str(),
                Some("shared" | "rshared")
            )
    }

    fn has_mappings(&self) -> bool {
        let unset = |key: &str| is_unset(&self.node.value[key]);
        !unset("uidMappings") || !unset("gidMappings")
    }

    fn container_has_mappings(&self) -> bool {
        !is_unset(&self.node.root["linux"]["uidMappings"])
    }

    fn mappings(&self) -> Option<Refusal> {
        if !self.has_mappings() {
            return None;
        }
        for key in ["uidMappings", "gidMappings"] {
            let given = matches!(&self.node.value[key], Value::Array(maps) if !maps.is_empty());
            let refusal = if !given {
                Refusal::new("a mount has both kinds of mappings or none", "give both")
            } else if !self.bind {
                Refusal::new("only a bind mount's owners can be mapped", "remove it")
            } else {
                continue;
            };
            return Some(refusal.at(format!(".{key}")));
        }
        None
    }

    fn kind(&self) -> Option<Refusal> {
        let remount = self.options.contains(&"remount");
        let other = |kind| OTHER_DISK_FILE_SYSTEMS.contains(&kind);
        if self.kind.is_some_and(other) && !self.bind && !remount {
            return Some(Refusal::new(ON_A_DISK, OTHER_WAYS).at(".type"));
        }
        let nothing = self.kind.is_none() && !self.bind && self.node.value.is_object();
        (nothing && !remount).then(|| {
            Refusal::new(
                "it has neither a type nor the option \"bind\"",
                "give it one",
            )
        })
    }

    /// runc's rule for what would cover a part of /proc; where symbolic links lead to is seen in the
    /// guest.
    fn destination(&self) -> Option<Refusal> {
        let named = Path::new(self.node.value["destination"].as_str()?);
        let destination = within_root(named);
        let source = self.node.value["source"].as_str().map(Path::new);
        let own = self.bind && source == Some(Path::new("/proc"));
        if destination != Path::new("/proc") || own || self.kind == Some("proc") && !self.bind {
            return None;
        }
        let reason = format!("{named:?} cannot be mounted because it is not of type proc");
        Some(Refusal::new(reason, "give it the type proc").at(".destination"))
    }
}

/// A path as it stands, from the root, without `.` and `..`: those above the root mean the root.
pub fn within_root(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Whether mounts that the host makes later are to appear: a slave of the host's gets them, and so does
/// what is shared anew with a container's own namespaces.
pub fn receives(mount: &Mount, spec: &Spec) -> bool {
    let root = spec.linux().as_ref();
    let root = root.and_then(|linux| linux.rootfs_propagation().as_deref());
    let alone = |word: &str| word.ends_with("private") || word.ends_with("unbindable");
    let options = mount.options().iter().flatten().rev();
    let mut kinds = options.filter(|option| treatment(option) == Some(Treatment::Propagation));
    kinds.next().is_some_and(|last| !alone(last)) && !root.is_some_and(alone)
}

/// Whose the files of a bind mount are to be in the guest.
pub fn owners(mount: &Mount, index: usize, spec: &Spec) -> Option<Owners> {
    let asked = |word: &str| {
        mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == word)
    };
    let ranges = |maps: &Option<Vec<LinuxIdMapping>>| {
        user_namespace::ranges(maps.as_deref().unwrap_or_default())
    };
    let recursive = asked("ridmap");
    let uids = ranges(mount.uid_mappings());
    let (name, uids, gids) = if !uids.is_empty() {
        let name = format!("mounts[{index}].uidMappings");
        (name, uids, ranges(mount.gid_mappings()))
    } else if asked("idmap") || recursive {
        let linux = spec.linux().as_ref()?;
        let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
        let name = format!("mounts[{index}].options");
        (name, ranges(uids), ranges(gids))
    } else {
        return None;
    };
    Some(Owners {
        name: format!("config.json: {name}"),
        uids,
        gids,
        recursive,
    })
}

/// What mount(2) is told of a file system that the host mounts.
pub fn file_system(mount: &Mount) -> FileSystem {
    let kind = mount.typ().clone().unwrap_or_default();
    let device = mount.source().as_ref();
    let options = mount.options().as_deref().unwrap_or_default();
    let own: Vec<_> = options
        .iter()
        .map(String::as_str)
        .filter(|option| !option.is_empty() && treatment(option).is_none())
        .collect();
    FileSystem {
        device: device.map_or_else(|| kind.clone(), |device| device.display().to_string()),
        kind,
        flags: u32::try_from(flags(options)).unwrap_or_default(),
        options: own.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused_in(root: &Value, mount: &Value) -> Option<String> {
        let node = Node {
            key: "",
            value: mount,
            root,
        };
        check(node).map(|refusal| refusal.at)
    }

    fn refused(mount: &Value) -> Option<String> {
        refused_in(&Value::Null, mount)
    }

    #[test]
    fn each_mount_has_its_maker() {
        let maker = |kind, words: &[&str]| maker(Some(kind), words.iter().copied());
        assert_eq!(maker("tmpfs", &["ro"]), Maker::Guest);
        assert_eq!(maker("overlay", &["ro"]), Maker::Host);
        assert_eq!(maker("ext4", &["ro"]), Maker::Disk);
        assert_eq!(maker("nfs", &["rbind"]), Maker::Shared);
        assert_eq!(maker("bind", &["remount"]), Maker::Guest);
    }

    #[test]
    fn a_file_systems_own_option_is_refused_on_a_bind_alone() {
        let of = |kind| json!({"type": kind, "options": ["ro", "size=1m"]});
        assert_eq!(refused(&of("tmpfs")), None);
        assert_eq!(refused(&of("bind")).as_deref(), Some(".options[1]"));
        assert_eq!(refused(&json!({})).as_deref(), Some(""));
    }

    #[test]
    fn what_only_the_hosts_kernel_could_mount_of_a_disk_is_refused() {
        let of = |kind, options: &[&str]| refused(&json!({"type": kind, "options": options}));
        assert_eq!(of("xfs", &["ro"]).as_deref(), Some(".type"));
        assert_eq!(of("xfs", &["bind"]), None);
        assert_eq!(of("erofs", &[]), None);
        assert!(OTHER_DISK_FILE_SYSTEMS.is_sorted());
    }

    #[test]
    fn what_would_reach_the_host_is_refused() {
        let shared = json!({"type": "bind", "options": ["ro", "rshared"]});
        assert_eq!(refused(&shared), None);
        let root = json!({"linux": {"rootfsPropagation": "rshared"}});
        let at = refused_in(&root, &shared);
        assert_eq!(at.as_deref(), Some(".options[1]"));
        let tmpfs = json!({"type": "tmpfs", "options": ["rshared"]});
        assert_eq!(refused_in(&root, &tmpfs), None);
    }

    #[test]
    fn mappings_are_whole_and_of_bind_mounts() {
        let maps = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let both = |kind| json!({"type": kind, "uidMappings": maps, "gidMappings": maps});
        assert_eq!(refused(&both("bind")), None);
        assert_eq!(refused(&both("tmpfs")).as_deref(), Some(".uidMappings"));
        let one = json!({"type": "bind", "uidMappings": maps});
        assert_eq!(refused(&one).as_deref(), Some(".gidMappings"));
        let asks = json!({"type": "bind", "options": ["idmap"]});
        assert_eq!(refused(&asks).as_deref(), Some(".options[0]"));
        let root = json!({"linux": {"uidMappings": maps}});
        assert_eq!(refused_in(&root, &asks), None);
    }

    #[test]
    fn proc_is_proc() {
        let at = |destination, kind, source| {
            refused(&json!({"destination": destination, "type": kind, "source": source}))
        };
        assert_eq!(at("/proc", "proc", "proc"), None);
        assert_eq!(at("/proc", "bind", "/proc"), None);
        assert!(at("/x/../proc/", "tmpfs", "tmpfs").is_some());
        assert!(at("proc", "bind", "/tmp").is_some());
    }

    #[test]
    fn a_file_system_of_the_hosts_is_mounted_with_its_flags_and_options() {
        let overlay: Mount = serde_json::from_value(json!({
            "destination": "/o", "type": "overlay", "source": "none",
            "options": ["ro", "noexec", "rw", "nosuid", "rslave", "lowerdir=/a:/b", "userxattr"],
        }))
        .expect("a mount");
        let expected = FileSystem {
            kind: "overlay".into(),
            device: "none".into(),
            flags: u32::try_from(libc::MS_NOEXEC | libc::MS_NOSUID).expect("flags"),
            options: "lowerdir=/a:/b,userxattr".into(),
        };
        assert_eq!(file_system(&overlay), expected);
    }
}
