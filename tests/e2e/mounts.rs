//! Bind mounts of folders and files, and tmpfs.

use std::fs;
use std::os::unix::fs::symlink;

use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container, only_hull};
use serde_json::json;

#[test]
fn a_folder_is_shared_both_ways_while_it_runs() {
    let bundle = Bundle::new().shell("echo ready; exec sleep 3600");
    let shared = bundle.folder("shared");
    fs::write(shared.join("before"), "from the host").unwrap();
    let container = Container::new(bundle.bind(&shared, "/mnt/new/place", &[]));
    let _running = container.run_until_ready();

    let read = container.exec(&["cat", "/mnt/new/place/before"]).ok();
    assert_eq!(read.out(), "from the host");
    let _ = container
        .exec_shell("cd /mnt/new/place && echo guest >made && rm before")
        .ok();
    assert_eq!(fs::read_to_string(shared.join("made")).unwrap(), "guest\n");
    assert!(!shared.join("before").exists());
    fs::write(shared.join("during"), "a new file").unwrap();
    let read = container.exec(&["cat", "/mnt/new/place/during"]).ok();
    assert_eq!(read.out(), "a new file");
}

#[test]
fn a_read_only_folder_is_not_written() {
    let bundle = Bundle::new().shell(
        "cat /mnt/kept; touch /mnt/new; echo $?; echo x >/mnt/kept; echo $?; rm /mnt/kept; echo $?",
    );
    let shared = bundle.folder("shared");
    fs::write(shared.join("kept"), "kept\n").unwrap();
    let container = Container::new(bundle.bind(&shared, "/mnt", &["ro"]));

    let done = container.run().ok();

    assert_eq!(done.out(), "kept\n1\n1\n1");
    assert!(
        done.err().contains("Read-only file system"),
        "{}",
        done.err()
    );
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 1);
}

#[test]
fn one_file_is_shared_and_nothing_beside_it() {
    let bundle = Bundle::new().shell(
        "cat /etc/one /etc/two; echo more >>/etc/one; echo more >>/etc/two; echo $?; ls /etc",
    );
    let folder = bundle.folder("shared");
    for name in ["one", "two", "secret"] {
        fs::write(folder.join(name), format!("{name}\n")).unwrap();
    }
    let bundle = bundle.bind(&folder.join("one"), "/etc/one", &[]).bind(
        &folder.join("two"),
        "/etc/two",
        &["ro"],
    );
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "one\ntwo\n1\ngroup\none\npasswd\ntwo");
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(
        (text("one").as_str(), text("two").as_str()),
        ("one\nmore\n", "two\n")
    );
}

#[test]
fn read_only_holds_against_root_in_the_guest() {
    only_hull!("with runc, CAP_SYS_ADMIN in the container undoes a read-only bind mount");
    let bundle = Bundle::new()
        .shell(
            "mount -o remount,rw,bind /mnt; touch /mnt/new; echo x >/mnt/kept;
             mount -o remount,rw,bind /etc/kept; echo x >/etc/kept; echo tried",
        )
        .capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_CHROOT"]);
    let shared = bundle.folder("shared");
    fs::write(shared.join("kept"), "kept").unwrap();
    let bundle =
        bundle
            .bind(&shared, "/mnt", &["ro"])
            .bind(&shared.join("kept"), "/etc/kept", &["ro"]);
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "tried");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 1, "a file was made");
    assert_eq!(fs::read_to_string(shared.join("kept")).unwrap(), "kept");
}

#[test]
fn tmpfs_is_of_its_size_and_not_on_the_host() {
    let bundle = Bundle::new()
        .shell(
            "df -k /mem | tail -n 1 | tr -s ' ' | cut -d' ' -f2; echo x >/mem/file;
                stat -c %a /mem; mount -t tmpfs | grep ' /mem ' | grep -c noexec",
        )
        .push(
            "/mounts",
            json!({
                "destination": "/mem", "type": "tmpfs", "source": "tmpfs",
                "options": ["noexec", "nosuid", "size=2048k", "mode=710"],
            }),
        );
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "2048\n710\n1");
    assert!(!container.bundle.rootfs().join("mem/file").exists());
}

#[test]
fn mounts_lie_above_one_another_in_their_order() {
    let bundle = Bundle::new().shell("cat /mnt/outer /mnt/sub/inner; /mnt/sub/script; echo $?");
    let outer = bundle.folder("outer");
    fs::create_dir(outer.join("sub")).unwrap();
    fs::write(outer.join("outer"), "outer\n").unwrap();
    let inner = bundle.folder("inner");
    fs::write(inner.join("inner"), "inner\n").unwrap();
    fs::copy(bundle.rootfs().join("bin/busybox"), inner.join("script")).unwrap();
    let bundle = bundle
        .bind(&outer, "/mnt", &[])
        .bind(&inner, "/mnt/sub", &["noexec"]);
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "outer\ninner\n126");
    assert_eq!(fs::read_dir(outer.join("sub")).unwrap().count(), 0);
}

#[test]
fn a_link_in_the_root_does_not_lead_out_of_it() {
    let bundle = Bundle::new().shell("cat /link/target/file");
    let shared = bundle.folder("shared");
    fs::write(shared.join("file"), "shared").unwrap();
    let outside = bundle.folder("outside");
    symlink(&outside, bundle.rootfs().join("link")).unwrap();
    let container = Container::new(bundle.bind(&shared, "/link/target", &[]));

    let done = container.run();

    // refused or resolved within the root, but never made outside
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    if done.status.success() {
        assert_eq!(done.out(), "shared");
    }
}

#[test]
fn a_missing_source_is_named() {
    let bundle = Bundle::new();
    let missing = bundle.beside("missing");
    let container = Container::new(bundle.bind(&missing, "/mnt", &[]));
    let _ = container.run().exits(1).fails_saying("missing");
}

#[test]
fn a_destination_leads_through_links_within_the_root() {
    let bundle = Bundle::new().shell("cat /real/place/file /new/place/file; ls -d /link /gone");
    let shared = bundle.folder("shared");
    fs::write(shared.join("file"), "shared\n").unwrap();
    fs::create_dir(bundle.rootfs().join("real")).unwrap();
    symlink("/real", bundle.rootfs().join("link")).unwrap();
    symlink("../../new", bundle.rootfs().join("gone")).unwrap();
    let bundle = bundle
        .bind(&shared, "/link/place", &[])
        .bind(&shared, "/gone/place", &[]);
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "shared\nshared\n/gone\n/link");
}

#[test]
fn nothing_is_mounted_over_proc() {
    for destination in ["/proc/cmdline", "/hidden/cmdline", "/proc"] {
        let bundle = Bundle::new();
        symlink("proc", bundle.rootfs().join("hidden")).unwrap();
        let file = bundle.file("file", "made up");
        let container = Container::new(bundle.bind(&file, destination, &[]));
        let _ = container.run().exits(1).fails_saying("cannot be mounted");
    }
    let bundle = Bundle::new().args(&["cat", "/proc/uptime"]);
    let file = bundle.file("file", "made up");
    let done = Container::new(bundle.bind(&file, "/proc/uptime", &[]))
        .run()
        .ok();
    assert_eq!(done.out(), "made up");
}

#[test]
fn proc_is_not_led_elsewhere() {
    let bundle = Bundle::new();
    fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("/elsewhere", bundle.rootfs().join("proc")).unwrap();
    let done = Container::new(bundle).run().exits(1);
    let _ = done.fails_saying("must be mounted on ordinary directory");
}

#[test]
fn a_read_only_root_has_its_mount_points_made_first() {
    let bundle = Bundle::new()
        .shell("touch /new; echo $?; cat /made/for/it; mount -o remount,rw /; touch /new; echo $?")
        .set("/root/readonly", json!(true));
    let bundle = if is_hull() {
        // root in the guest can't undo it, as root in a container of runc's could
        bundle.capabilities(&["CAP_SYS_ADMIN"])
    } else {
        bundle
    };
    let file = bundle.file("file", "shared\n");
    let container = Container::new(bundle.bind(&file, "/made/for/it", &[]));
    let done = container.run().ok();
    assert_eq!(done.out(), "1\nshared\n1");
    assert!(!container.bundle.rootfs().join("new").exists());
}
