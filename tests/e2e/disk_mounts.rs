//! File systems on block devices of the host, mounted for a container.

use std::process::Command;

use hull_tests::disk::HostDisk;
use hull_tests::namespace::mounts_of_the_tree;
use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container, only_hull, skip};
use serde_json::{Value, json};

/// A disk with an ext4 on it that has a file `from-host`; ends the test where there are no loop devices.
macro_rules! ext4 {
    ($bundle:expr) => {
        match HostDisk::new($bundle, "image", 8 << 20) {
            Some(disk) => {
                tool("mkfs.ext4", &["-q"], &disk);
                let file = $bundle.file("from-host", "from the host");
                let write = format!("write {} from-host", file.display());
                tool("debugfs", &["-w", "-R", &write], &disk);
                disk
            }
            None => skip!("no loop devices on this machine"),
        }
    };
}

#[track_caller]
fn tool(program: &str, args: &[&str], disk: &HostDisk) -> String {
    let output = Command::new(program).args(args).arg(&disk.path).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ext4_at(destination: &str, disk: &HostDisk, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "ext4", "source": disk.path, "options": options})
}

#[test]
fn it_has_its_files_and_options_and_lasts() {
    let bundle = Bundle::new()
        .shell(
            "cat /mnt/from-host; echo; echo inside >/mnt/made
             awk '$5 == \"/mnt\" {print $6}' /proc/self/mountinfo; grep -c ' /mnt ext4 .*,sync' /proc/mounts",
        )
        .add_capability("CAP_DAC_OVERRIDE");
    let disk = ext4!(&bundle);
    let options = ["nosuid", "noexec", "noatime", "sync", "errors=remount-ro"];
    let bundle = bundle.push("/mounts", ext4_at("/mnt", &disk, &options));
    let done = Container::new(bundle).run().ok();
    assert_eq!(
        done.out(),
        "from the host\nrw,nosuid,noexec,noatime\n1",
        "{}",
        done.err()
    );
    tool("fsck.ext4", &["-f", "-n"], &disk);
    assert_eq!(tool("debugfs", &["-R", "cat made"], &disk), "inside\n");

    let bundle = Bundle::new()
        .shell("cat /mnt/made; touch /mnt/new || echo read-only")
        .push("/mounts", ext4_at("/mnt", &disk, &["ro"]));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "inside\nread-only", "{}", done.err());
}

#[test]
fn the_hosts_kernel_never_reads_it() {
    only_hull!("a container of runc's has the host's kernel");
    let bundle = Bundle::new().shell("echo ready; exec sleep 3600");
    let disk = ext4!(&bundle);
    let container = Container::new(bundle.push("/mounts", ext4_at("/mnt", &disk, &[])));
    let _running = container.run_until_ready();
    assert!(!mounts_of_the_tree(container.state().pid).contains(" ext4 "));

    let other = Bundle::new().push("/mounts", ext4_at("/mnt", &disk, &[]));
    let refused = Container::new(other).run().exits(1);
    let _ = refused.fails_saying("it is mounted or otherwise in use");
}

#[test]
fn it_is_had_in_a_user_namespace() {
    only_hull!("a user namespace may not mount it, and runc mounts it there");
    let bundle = Bundle::new()
        .shell("cat /mnt/from-host; echo; touch /mnt/new && echo written")
        .in_user_namespace(json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]));
    let disk = ext4!(&bundle);
    let container =
        Container::new(bundle.push("/mounts", ext4_at("/mnt", &disk, &["nodev", "noatime"])));
    let done = container.run().ok();
    assert_eq!(done.out(), "from the host\nwritten", "{}", done.err());
}

#[test]
fn what_the_guest_cannot_mount_is_refused_by_name() {
    let bundle = Bundle::new();
    let file = bundle.file("image", "no disk");
    let cases = [
        (
            "xfs",
            "mounts[7].type: the guest's kernel mounts what lies on a disk",
        ),
        ("ext4", "it is not a block device"),
    ];
    for (kind, said) in cases {
        let mount = json!({"destination": "/mnt", "type": kind, "source": file});
        let refused = Container::new(Bundle::new().push("/mounts", mount)).run();
        if is_hull() {
            let _ = refused.exits(1).fails_saying(said);
        }
    }
    let disk = ext4!(&bundle);
    let mount = json!({"destination": "/mnt", "type": "nosuchfs", "source": disk.path});
    let refused = Container::new(Bundle::new().push("/mounts", mount)).run();
    if is_hull() {
        let said = "mounts[7].source: ";
        let _ = refused
            .exits(1)
            .fails_saying(said)
            .fails_saying("erofs, ext2");
    }
}
