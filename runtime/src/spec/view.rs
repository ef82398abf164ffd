//! What the host sees of a container's files by the VM process's pid: its root, with the mounts of config.json in it.
//!
//! Engines copy files in that way. What is the guest's own, as a tmpfs, is an empty place there that can't be written.

use std::path::Path;

use hull_vmm::jail::tree::{Content, Share, View, ViewMount};
use oci_spec::runtime::{Linux, LinuxIdMapping, Mount, Root, Spec};

use super::mounts::Maker;

/// The view of a container whose shares are in this folder of the tree. `guest` is its config.json as the guest is to see it, whose
/// mappings are from its ids to those that the VM process writes.
pub fn of(guest: &Spec, folder: &str, mounts: Vec<ViewMount>) -> View {
    let linux = guest.linux().as_ref();
    let owner = |maps: fn(&Linux) -> &Option<Vec<LinuxIdMapping>>| {
        let maps = linux.and_then(|linux| maps(linux).as_deref());
        let of_root = maps
            .unwrap_or_default()
            .iter()
            .find(|map| map.container_id() == 0);
        of_root.map_or(0, LinuxIdMapping::host_id)
    };
    View {
        root: format!("{folder}/rootfs").into(),
        read_only: guest.root().as_ref().and_then(Root::readonly) == Some(true),
        owner: (owner(Linux::uid_mappings), owner(Linux::gid_mappings)),
        mounts,
    }
}

/// What is at the destination of a mount, for which the host may have a share. None for a change of a mount that is
/// there.
pub fn content(mount: &Mount, maker: Maker, share: Option<&Share>) -> Option<Content> {
    let options = mount.options().as_deref().unwrap_or_default();
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if let Some(share) = share {
        return Some(Content::Share(share.target.clone()));
    }
    if options.iter().any(|option| option == "remount") {
        return None;
    }
    // The guest's own folders of the kernel and of devices; else the source is a device.
    let binds_folder = source == Path::new("/dev") || !source.starts_with("/dev");
    Some(match (maker, mount.typ().as_deref()) {
        (Maker::Guest, Some("proc")) => Content::Processes,
        (Maker::Shared, _) if source == Path::new("/proc") => Content::Processes,
        (Maker::Shared, _) if !binds_folder => Content::EmptyFile,
        _ => Content::EmptyDirectory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content_of(kind: &str, source: &str, maker: Maker) -> Option<Content> {
        let mount =
            json!({"destination": "/x", "type": kind, "source": source, "options": ["bind"]});
        content(
            &serde_json::from_value(mount).expect("a mount"),
            maker,
            None,
        )
    }

    #[test]
    fn what_is_the_guests_own_is_an_empty_place() {
        use Content::{EmptyDirectory, EmptyFile, Processes};
        for (kind, source, maker, expected) in [
            ("tmpfs", "tmpfs", Maker::Guest, EmptyDirectory),
            ("proc", "proc", Maker::Guest, Processes),
            ("bind", "/proc", Maker::Shared, Processes),
            ("bind", "/sys", Maker::Shared, EmptyDirectory),
            ("bind", "/dev", Maker::Shared, EmptyDirectory),
            ("bind", "/dev/null", Maker::Shared, EmptyFile),
            ("ext4", "/dev/loop0", Maker::Disk, EmptyDirectory),
        ] {
            assert_eq!(
                content_of(kind, source, maker),
                Some(expected),
                "{kind} {source}"
            );
        }
        let change = json!({"destination": "/x", "options": ["remount", "ro"]});
        let change = serde_json::from_value(change).expect("a mount");
        assert_eq!(content(&change, Maker::Guest, None), None);
    }

    #[test]
    fn mount_points_belong_to_the_containers_root() {
        let mapping = json!([{"containerID": 1, "hostID": 7, "size": 1}, {"containerID": 0, "hostID": 9, "size": 1}]);
        let guest = json!({"ociVersion": "1.2.0", "root": {"path": "r", "readonly": true},
                           "linux": {"uidMappings": mapping}});
        let view = of(
            &serde_json::from_value(guest).expect("a config.json"),
            "c1",
            Vec::new(),
        );
        assert_eq!(
            (view.root.to_str(), view.read_only, view.owner),
            (Some("c1/rootfs"), true, (9, 0))
        );
    }
}
