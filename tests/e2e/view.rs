//! The container's files as the host sees them by the pid of `state`: engines enter that process's mount namespace to
//! copy files.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use hull_tests::namespace::in_mounts_of;
use hull_tests::{Bundle, Container, only_hull};
use serde_json::json;

use crate::lifecycle::waiting;
use crate::rootless::{of_user, rootless};

/// The errno of writing a new file.
fn errno(path: &str) -> Option<i32> {
    fs::write(path, "of the host")
        .err()
        .and_then(|e| e.raw_os_error())
}

const READ_ONLY: Option<i32> = Some(libc::EROFS);

#[test]
fn an_engine_finds_and_writes_the_containers_files_by_its_pid() {
    let bundle = Bundle::new().shell(
        "cat /data/file; echo ready; until grep -q new /data/file; do sleep 0.1; done; cat /made; exec sleep 3600",
    );
    let volume = bundle.folder("volume");
    fs::write(volume.join("file"), "of the volume\n").unwrap();
    let file = bundle.file("conf", "of one file");
    let secret = bundle.file("secret", "of the host");
    symlink(&secret, bundle.rootfs().join("out")).unwrap();
    fs::write(bundle.rootfs().join("in-the-root"), "of the root").unwrap();
    let bundle = bundle
        .bind(&volume, "/data", &["rw"])
        .bind(&file, "/etc/made/conf", &["ro"]);
    let container = Container::new(bundle);
    let mut running = container.start_run();
    assert_eq!(running.line(), "of the volume");
    assert_eq!(running.line(), "ready");

    in_mounts_of(container.state().pid, || {
        assert_eq!(fs::read_to_string("/in-the-root").unwrap(), "of the root");
        assert_eq!(fs::read_to_string("/data/file").unwrap(), "of the volume\n");
        assert_eq!(fs::read_to_string("/etc/made/conf").unwrap(), "of one file");
        assert_eq!(errno("/etc/made/conf"), READ_ONLY);
        fs::read("/out").unwrap_err();
        fs::metadata(&secret).unwrap_err();
        fs::write("/made", "by an engine\n").unwrap();
        fs::write("/data/file", "new\n").unwrap();
    });
    assert_eq!(running.line(), "by an engine");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "new\n");
}

#[test]
fn what_is_the_guests_own_is_empty_and_refuses_writes() {
    only_hull!("a container's tmpfs is the host's with runc");
    let tmpfs = json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"});
    let bundle = waiting().push("/mounts", tmpfs);
    fs::write(bundle.rootfs().join("mnt/below"), "covered").unwrap();
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let pid = container.state().pid;
    let seen = container.bundle.rootfs();

    in_mounts_of(pid, || {
        for place in ["/mnt", "/dev", "/dev/pts", "/sys"] {
            assert_eq!(errno(&format!("{place}/new")), READ_ONLY, "{place}");
        }
        assert_eq!(fs::read_dir("/mnt").unwrap().count(), 0);
        // The process is the first of its pid namespace.
        assert_eq!(fs::read_to_string("/proc/1/comm").unwrap(), "hull-vmm\n");
        fs::read("/proc/1/root/etc/passwd").unwrap_err();
        fs::metadata("/proc/1/exe").unwrap_err();
        let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap();
        let places: Vec<_> = mounts
            .lines()
            .map(|line| line.split(' ').nth(4).unwrap())
            .collect();
        let expected = container.bundle.config()["mounts"]
            .as_array()
            .unwrap()
            .len()
            + 1;
        assert_eq!(places.len(), expected, "{places:?}");
    });
    assert!(!seen.join("mnt/new").exists());
}

#[test]
fn a_read_only_root_is_not_written_by_the_pid() {
    let bundle = waiting().set("/root/readonly", json!(true));
    let volume = bundle.folder("volume");
    let container = Container::new(bundle.bind(&volume, "/made/data", &["rw"]));
    let _running = container.run_until_ready();

    in_mounts_of(container.state().pid, || {
        assert_eq!(errno("/new"), READ_ONLY);
        fs::write("/made/data/new", "").unwrap();
    });
    assert!(volume.join("new").exists());
    let _ = container.exec_shell("test -e /made/data/new").ok();
}

#[test]
fn mount_points_belong_to_the_containers_root() {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = Bundle::new()
        .shell("stat -c %u /made /made/data")
        .in_user_namespace(map);
    let volume = bundle.folder("volume");
    for folder in [bundle.rootfs(), volume.clone()] {
        std::os::unix::fs::chown(folder, Some(100_000), Some(100_000)).unwrap();
    }
    let container = Container::new(bundle.bind(&volume, "/made/data", &["rw"]));

    let done = container.run().ok();

    assert_eq!(done.out(), "0\n0");
    let made = fs::metadata(container.bundle.rootfs().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 100_000));
}

#[test]
fn an_ordinary_users_container_is_seen_by_its_pid() {
    let bundle = rootless(waiting());
    let volume = bundle.folder("volume");
    fs::write(volume.join("file"), "of the volume").unwrap();
    let container = of_user(bundle.bind(&volume, "/made/data", &["rw"]));
    let _running = container.run_until_ready();

    in_mounts_of(container.state().pid, || {
        assert_eq!(
            fs::read_to_string("/made/data/file").unwrap(),
            "of the volume"
        );
        assert!(Path::new("/bin/busybox").exists());
        assert!(
            !Path::new("/made/data")
                .join(volume.strip_prefix("/").unwrap())
                .exists()
        );
    });
}

#[test]
fn the_process_is_called_after_hull() {
    only_hull!("the process is the container's with runc");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let name = fs::read_to_string(format!("/proc/{}/comm", container.state().pid));
    assert_eq!(name.unwrap(), "hull-vmm\n");
}
