//! Devices: those of the host as disks, the guest's own, and what can't be had.

use std::process::Command;
use std::time::Duration;

use hull_tests::disk::HostDisk;
use hull_tests::process::wait_for_death;
use hull_tests::{Bundle, Container, only_hull, skip};
use serde_json::{Value, json};

use crate::lifecycle::signal_pid;

const RULES: &str = "/linux/resources/devices";
const MIB: u64 = 1 << 20;

/// A disk beside the bundle; ends the test where there are none.
macro_rules! disk {
    ($bundle:expr, $name:expr) => {
        match HostDisk::new($bundle, $name, 8 * MIB) {
            Some(disk) => disk,
            None => skip!("no loop devices on this machine"),
        }
    };
}

/// A bundle whose process is a shell script with these capabilities.
fn powerful(script: &str, capabilities: &[&str]) -> Bundle {
    Bundle::new()
        .shell(script)
        .capabilities(capabilities)
        .set("/linux/devices", json!([]))
}

fn bundle(script: &str) -> Bundle {
    powerful(script, &[])
}

fn char_device(path: &str, major: u32, minor: u32) -> Value {
    json!({ "path": path, "type": "c", "major": major, "minor": minor })
}

#[test]
fn a_disk_is_at_its_path_with_its_owner_and_is_written() {
    let bundle = powerful(
        "stat -c '%a %u %g %F' /dev/data/disk
         dd if=/dev/data/disk bs=512 count=1 2>/dev/null | head -c 5; echo
         printf guest | dd of=/dev/data/disk bs=512 seek=4 conv=notrunc 2>/dev/null
         dd if=/dev/data/disk bs=1M 2>/dev/null | wc -c",
        &["CAP_DAC_OVERRIDE"],
    );
    let disk = disk!(&bundle, "image");
    disk.write(0, "hello");
    let mut device = disk.device("/dev/data/disk");
    device["fileMode"] = json!(0o640);
    device["uid"] = json!(1000);
    device["gid"] = json!(6);
    let container = Container::new(
        bundle
            .push("/linux/devices", device)
            .push(RULES, disk.rule("rw")),
    );

    let done = container.run().ok();

    let expected = format!("640 1000 6 block special file\nhello\n{}", 8 * MIB);
    assert_eq!(done.out(), expected, "{}", done.err());
    assert_eq!(disk.read(4 * 512, 5), "guest");
}

#[test]
fn a_disk_that_rules_let_be_read_is_not_written() {
    let bundle = bundle(
        "head -c 4 /dev/disk; echo
         echo x | dd of=/dev/disk conv=notrunc; echo $?; echo x >>/dev/disk; echo $?",
    );
    let disk = disk!(&bundle, "image");
    disk.write(0, "kept");
    let container = Container::new(disk.attach(bundle, "/dev/disk", "r"));

    let done = container.run().ok();

    assert_eq!(done.out(), "kept\n1\n1", "{}", done.err());
    assert_eq!(disk.read(0, 4), "kept");
}

#[test]
fn read_only_holds_whatever_the_guests_kernel_thinks() {
    only_hull!("with runc, the host's kernel is the one that thinks");
    let bundle = bundle("cat /sys/block/vda/ro");
    let disk = disk!(&bundle, "image");
    let container = Container::new(disk.attach(bundle, "/dev/disk", "r"));
    let done = container.run().ok();
    assert_eq!(done.out(), "1", "the device itself is read-only");
}

#[test]
fn a_file_system_on_a_disk_is_mounted_inside_and_whole_afterwards() {
    let bundle = powerful(
        "mount -t ext4 /dev/disk /mnt && cat /mnt/lost+found/../from-host
         echo 'from the guest' >/mnt/made && dd if=/dev/zero of=/mnt/large bs=64k count=40 2>&1 | tail -n 1",
        &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"],
    );
    let disk = disk!(&bundle, "image");
    let host_file = bundle.file("from-host", "from the host");
    let tool = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .arg(&disk.path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    tool("mkfs.ext4", &["-q"]);
    let write = format!("write {} from-host", host_file.display());
    tool("debugfs", &["-w", "-R", &write]);
    let container = Container::new(disk.attach(bundle, "/dev/disk", "rwm"));

    // It is still mounted when the process ends.
    let done = container.run().ok();

    assert!(done.out().starts_with("from the host"), "{}", done.err());
    tool("fsck.ext4", &["-f", "-n"]);
    assert_eq!(tool("debugfs", &["-R", "cat made"]), "from the guest\n");
}

#[test]
fn a_node_is_bound_and_is_the_same_disk_as_a_listed_one() {
    let bundle = bundle(
        "printf one | dd of=/dev/listed conv=notrunc 2>/dev/null; sync
         head -c 3 /dev/again; echo; head -c 3 /mnt/bound; echo; ls -d /sys/block/vd* | wc -l",
    );
    let disk = disk!(&bundle, "image");
    let container = Container::new(
        bundle
            .push("/linux/devices", disk.device("/dev/listed"))
            .push("/linux/devices", disk.device("/dev/again"))
            .bind(&disk.path, "/mnt/bound", &[])
            .push(RULES, disk.rule("rw")),
    );

    let done = container.run().ok();

    let disks = if hull_tests::runtime::is_hull() { 1 } else { 0 };
    assert_eq!(done.out(), format!("one\none\n{disks}"), "{}", done.err());
    assert_eq!(disk.read(0, 3), "one");
}

#[test]
fn a_bound_node_alone_is_written_and_keeps_its_owner() {
    let bundle = bundle(
        "stat -c '%a %u %F' /mnt/disk; printf bound | dd of=/mnt/disk conv=notrunc 2>/dev/null",
    );
    let disk = disk!(&bundle, "image");
    let container = Container::new(
        bundle
            .bind(&disk.path, "/mnt/disk", &[])
            .push(RULES, disk.rule("rw")),
    );
    let done = container.run().ok();
    assert!(
        done.out().ends_with("0 0 block special file"),
        "{}",
        done.out()
    );
    assert_eq!(disk.read(0, 5), "bound");
}

#[test]
fn what_no_rule_allows_is_not_opened() {
    let bundle = powerful(
        "head -c 4 /dev/allowed; echo
         head -c 1 /dev/denied; echo $?
         mknod /dev/mem c 1 1; head -c 1 /dev/mem; echo $?
         mknod /dev/copy b $((0x$(stat -c %t /dev/denied))) $((0x$(stat -c %T /dev/denied))); head -c 1 /dev/copy; echo $?",
        &["CAP_MKNOD"],
    );
    let allowed = disk!(&bundle, "allowed");
    let denied = disk!(&bundle, "denied");
    allowed.write(0, "mine");
    let container = Container::new(
        bundle
            .push("/linux/devices", denied.device("/dev/denied"))
            .push("/linux/devices", allowed.device("/dev/allowed"))
            .push(RULES, allowed.rule("rw")),
    );

    let done = container.run().ok();

    assert_eq!(done.out(), "mine\n1\n1\n1", "{}", done.err());
    assert!(done.err().contains("/dev/denied: Operation not permitted"));
    assert!(done.err().contains("/dev/mem: Operation not permitted"));
}

#[test]
fn a_disk_is_had_in_a_user_namespace() {
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let bundle =
        bundle("stat -c %F /dev/disk /dev/pipe; head -c 4 /dev/disk").in_user_namespace(map);
    only_hull!("runc binds the node that the host has at that path");
    let disk = disk!(&bundle, "image");
    disk.write(0, "user");
    let mut device = disk.device("/dev/disk");
    device["fileMode"] = json!(0o666);
    let container = Container::new(
        bundle
            .push("/linux/devices", device)
            .push(
                "/linux/devices",
                json!({ "path": "/dev/pipe", "type": "p" }),
            )
            .push(RULES, disk.rule("rw")),
    );

    let done = container.run().ok();

    assert_eq!(
        done.out(),
        "block special file\nfifo\nuser",
        "{}",
        done.err()
    );
}

#[test]
fn what_a_guest_has_itself_is_made_there() {
    let bundle = powerful(
        "for device in fuse net/tun loop-control kmsg; do
             stat -c '%F %t:%T' /dev/$device; : <>/dev/$device && echo opened
         done; stat -c '%F %a' /dev/pipe",
        &["CAP_SYSLOG"],
    );
    let mut bundle = bundle.push(
        "/linux/devices",
        json!({ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }),
    );
    for (name, major, minor) in [
        ("fuse", 10, 229),
        ("net/tun", 10, 200),
        ("loop-control", 10, 237),
        ("kmsg", 1, 11),
    ] {
        let device = char_device(&format!("/dev/{name}"), major, minor);
        let rule =
            json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rw" });
        bundle = bundle.push("/linux/devices", device).push(RULES, rule);
    }
    let container = Container::new(bundle);

    let done = container.run().ok();

    let expected = ["a:e5", "a:c8", "a:ed", "1:b"]
        .map(|number| format!("character special file {number}\nopened\n"))
        .concat();
    assert_eq!(done.out(), format!("{expected}fifo 600"), "{}", done.err());
}

#[test]
fn loop_devices_are_the_guests_own() {
    only_hull!("with runc, loop devices are the host's");
    // Who makes a node and opens it has the device made; `mount -o loop` has one open for writing while it mounts.
    let bundle = powerful(
        "cd /tmp && dd if=/dev/zero of=image bs=64k count=16 2>/dev/null && mke2fs -F image >/dev/null
         mknod /dev/loop201 b 7 201 && : </dev/loop201 && echo opened
         losetup /dev/loop200 image && exec 3<>/dev/loop200
         mount -t ext4 /dev/loop200 /mnt && echo text >/mnt/file
         cat /mnt/file; umount /mnt && losetup -d /dev/loop200",
        &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD"],
    );
    let rule = json!({ "allow": true, "type": "b", "major": 7, "access": "rwm" });
    let device = json!({ "path": "/dev/loop200", "type": "b", "major": 7, "minor": 200 });
    let container = Container::new(bundle.push("/linux/devices", device).push(RULES, rule));
    let done = container.run().ok();
    assert_eq!(done.out(), "opened\ntext", "{}", done.err());
}

#[test]
fn a_node_of_a_missing_disk_has_nothing_behind_it() {
    let missing = json!({ "path": "/dev/gone", "type": "b", "major": 8, "minor": 4095 });
    let rule = json!({ "allow": true, "access": "rwm" });
    let bundle = bundle("stat -c %F /dev/gone; head -c 1 /dev/gone");
    let container = Container::new(bundle.push("/linux/devices", missing).push(RULES, rule));
    let done = container.run().exits(1);
    assert_eq!(done.out(), "block special file", "{}", done.err());
    assert!(done.err().contains("/dev/gone: No such device or address"));
}

/// Devices in the root and in /dev, and what the container says of them.
fn placed(bundle: Bundle) -> String {
    let node = |path: &str, minor: u32, mode: u32| {
        json!({
            "path": path, "type": "c", "major": 1, "minor": minor,
            "fileMode": mode, "uid": 10, "gid": 11,
        })
    };
    let bundle = bundle
        .push("/linux/devices", node("/made", 3, 0o157))
        .push("/linux/devices", node("/some/where/made/", 5, 0o640))
        .push("/linux/devices", node("/dev/dir/made", 9, 0o600));
    Container::new(bundle).run().ok().out()
}

const LOOK: &str = "cd /; stat -c '%n %a %u:%g %t:%T' made some some/where/made dev/dir dev/dir/made
    head -c 3 some/where/made | od -An -tx1; head -c 3 dev/dir/made | wc -c; touch /new || echo read-only";

const SEEN: &str = "made 157 10:11 1:3\nsome 755 0:0 0:0\nsome/where/made 640 10:11 1:5\n\
    dev/dir 755 0:0 0:0\ndev/dir/made 600 10:11 1:9\n 00 00 00\n3\nread-only";

#[test]
fn a_node_is_wherever_it_is_named_in_a_read_only_root_too() {
    let bundle = powerful(LOOK, &["CAP_DAC_OVERRIDE"]).set("/root/readonly", json!(true));
    assert_eq!(placed(bundle), SEEN);
}

#[test]
fn a_node_is_the_same_in_a_user_namespace() {
    only_hull!("runc binds the node that the host has at that path");
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let bundle = powerful(LOOK, &["CAP_DAC_OVERRIDE"])
        .set("/root/readonly", json!(true))
        // a sysfs belongs to a network namespace, which here isn't the user namespace's own
        .set(
            "/mounts/5",
            json!({ "destination": "/sys", "type": "tmpfs", "source": "tmpfs" }),
        )
        .in_user_namespace(map);
    assert_eq!(placed(bundle), SEEN);
}

#[test]
fn a_node_that_cannot_be_made_is_named() {
    only_hull!("runc takes whatever is there for the node");
    let fifo = |path: &str| json!({ "path": path, "type": "p" });
    let bundle = bundle("true")
        .push("/linux/devices", fifo("/dev/pipe"))
        .push("/linux/devices", fifo("/etc/passwd"));
    let _ = Container::new(bundle)
        .run()
        .exits(1)
        .fails_saying("linux.devices[1]: make /etc/passwd: file exists");
}

#[test]
fn the_whole_dev_is_bound_and_rules_bind_it() {
    let script = "cd /dev; head -c 2 zero | od -An -tx1; : >null && echo written; ls -d pts shm | tr '\\n' ' '
        true <fuse && echo read; true >fuse || echo denied; true <>fuse || echo denied";
    let read = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" });
    let bundle = bundle(script)
        .bind("/dev".as_ref(), "/dev", &["rbind"])
        .push(RULES, read);
    let done = Container::new(bundle).run().ok();
    let expected = "00 00\nwritten\npts shm read\ndenied\ndenied";
    assert_eq!(done.out(), expected, "{}", done.err());
}

#[test]
fn rules_about_reading_and_writing_hold_for_both_at_once() {
    let rule = |allow: bool, minor: u32, access: &str| json!({ "allow": allow, "type": "c", "major": 10, "minor": minor, "access": access });
    let bundle = bundle(
        "cd /dev; true <>fuse && echo fuse
         true <loop-control && echo loop; true <>loop-control || echo denied",
    )
    .push("/linux/devices", char_device("/dev/fuse", 10, 229))
    .push("/linux/devices", char_device("/dev/loop-control", 10, 237))
    .push(RULES, rule(true, 229, "r"))
    .push(RULES, rule(true, 229, "w"))
    .push(RULES, rule(true, 237, "rw"))
    .push(RULES, rule(false, 237, "w"));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "fuse\nloop\ndenied", "{}", done.err());
}

#[test]
fn without_rules_only_the_usual_devices_can_be_used() {
    let script = ": <>/dev/null && echo null; mknod /dev/mem c 1 1 && head -c 1 /dev/mem; echo $?";
    let bundle = powerful(script, &["CAP_MKNOD"]).set("/linux/resources", Value::Null);
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "null\n1", "{}", done.err());
    assert!(done.err().contains("/dev/mem: Operation not permitted"));
}

#[test]
fn another_device_called_null_is_refused() {
    only_hull!("runc 1.1 masks with whatever has that name");
    let bundle = bundle("true")
        .push("/linux/devices", char_device("/dev/null", 1, 5))
        .set("/linux/maskedPaths", json!(["/etc/passwd", "/etc/group"]));
    let _ = Container::new(bundle)
        .run()
        .exits(1)
        .fails_saying("/dev/null");
}

#[test]
fn what_cannot_be_passed_is_refused_by_name() {
    only_hull!("with runc, the host's devices are all there");
    for (path, major, minor, why) in [
        (
            "/dev/dri/card0",
            226,
            0,
            "hull does not pass GPUs into a VM",
        ),
        ("/dev/kvm", 10, 232, "no virtualisation of its own"),
        ("/dev/tty1", 4, 1, "a terminal of the host"),
        ("/dev/ppp", 108, 0, "a guest has no such character device"),
    ] {
        let device = char_device(path, major, minor);
        let container = Container::new(bundle("true").push("/linux/devices", device));
        let said = format!("config.json: linux.devices[0]: {path} ({major}:{minor}): ");
        let _ = container
            .run()
            .exits(1)
            .fails_saying(&said)
            .fails_saying(why);
    }
}

#[test]
fn a_killed_container_lets_go_of_its_disk() {
    let bundle = bundle("echo ready; exec sleep 3600");
    let disk = disk!(&bundle, "image");
    let container = Container::new(disk.attach(bundle, "/dev/disk", "rw"));
    let _running = container.run_until_ready();
    let pid = container.state().pid;
    signal_pid(&container, libc::SIGKILL);
    assert!(wait_for_death(pid, Duration::from_secs(30)));
    // That nobody has it open any more shows when the disk is dropped, after the container.
}
