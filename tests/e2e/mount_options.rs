//! What the options of mounts do, and what hull has to tell its guest of the host's mounts for that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use hull_tests::mount::HostMount;
use hull_tests::{Bundle, Container, only_hull};
use serde_json::json;

/// Prints the line of /proc/self/mountinfo for a place.
const LINE: &str = r#"line() { awk -v at="$1" '$5 == at' /proc/self/mountinfo | tail -n 1; };"#;

fn tmpfs(destination: &str, options: &[&str]) -> serde_json::Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

#[test]
fn propagation_within_the_container() {
    let bundle = Bundle::new().shell(&format!(
        "{LINE} for place in /mnt/shared /mnt/alone /mnt/private; do
             line $place | grep -o -e ' shared:' -e ' unbindable' || echo neither
         done"
    ));
    let folder = bundle.folder("shared");
    let bundle = bundle
        .bind(&folder, "/mnt/shared", &["rshared"])
        .push("/mounts", tmpfs("/mnt/alone", &["unbindable"]))
        .push("/mounts", tmpfs("/mnt/private", &["rprivate"]));
    let done = Container::new(bundle).run().ok();
    assert_eq!(
        done.out().replace(':', "").trim(),
        "shared\n unbindable\nneither"
    );
}

#[test]
fn propagation_of_the_root() {
    only_hull!("runc 1.1 leaves the root private, as later versions don't");
    for (propagation, word, inside) in [
        ("rshared", " shared:", " shared:"),
        ("runbindable", " unbindable", " unbindable"),
        ("shared", " shared:", "neither"),
        ("rprivate", "neither", "neither"),
    ] {
        let bundle = Bundle::new()
            .shell(&format!(
                "{LINE} for place in / /tmp; do
                     line $place | grep -o -e ' shared:' -e ' unbindable' || echo neither
                 done"
            ))
            .push("/mounts", tmpfs("/tmp", &[]))
            .set("/linux/rootfsPropagation", json!(propagation));
        let done = Container::new(bundle).run().ok();
        assert_eq!(
            done.out(),
            format!("{word}\n{inside}").trim(),
            "{propagation}"
        );
    }
}

#[test]
fn mounts_that_would_have_to_appear_on_the_host_are_refused() {
    only_hull!("a container of runc's shares the host's kernel, and can");
    let bundle = Bundle::new().set("/linux/rootfsPropagation", json!("rshared"));
    let folder = bundle.folder("shared");
    let container = Container::new(bundle.bind(&folder, "/mnt", &["rshared"]));
    let refused = container.run().exits(1);
    let _ = refused.fails_saying("mounts[7].options[1]: \"rshared\"");
}

#[test]
fn what_the_host_mounts_later_appears_in_a_slave() {
    let bundle = Bundle::new().shell("echo ready; exec sleep 3600");
    let (follows, stays) = (bundle.folder("follows"), bundle.folder("stays"));
    let container = Container::new(bundle.bind(&follows, "/follows", &["rslave"]).bind(
        &stays,
        "/stays",
        &["rprivate"],
    ));
    let _mounts = [HostMount::shared(&follows), HostMount::shared(&stays)];
    for folder in [&follows, &stays] {
        fs::create_dir(folder.join("below")).unwrap();
    }
    let _running = container.run_until_ready();

    let later =
        [&follows, &stays].map(|folder| HostMount::tmpfs(&folder.join("below"), "size=64k"));
    for folder in [&follows, &stays] {
        fs::write(folder.join("below/later"), "later").unwrap();
    }
    let read = container.exec(&["cat", "/follows/below/later"]).ok();
    assert_eq!(read.out(), "later");
    let _ = container.exec(&["cat", "/stays/below/later"]).exits(1);
    drop(later);
}

#[test]
fn read_only_with_and_without_the_mounts_below() {
    let bundle = Bundle::new().shell(
        "for place in /ro /ro/below /rro /rro/below /rrw /rrw/below; do
             touch $place/new 2>/dev/null && echo $place
         done; true",
    );
    let folder = bundle.folder("shared");
    fs::create_dir(folder.join("below")).unwrap();
    let bundle = bundle
        .bind(&folder, "/ro", &["ro"])
        .bind(&folder, "/rro", &["rro"])
        .bind(&folder, "/rrw", &["rrw", "ro"]);
    let container = Container::new(bundle);
    let _mount = HostMount::tmpfs(&folder.join("below"), "size=64k");
    let done = container.run().ok();
    assert_eq!(done.out(), "/ro/below\n/rrw\n/rrw/below");
}

#[test]
fn a_bind_mount_has_the_flags_of_its_source_or_those_it_names() {
    let bundle = Bundle::new().shell(&format!(
        "{LINE} /source/true; echo $?; /named/true; echo $?;
         line /source | grep -c nosuid; line /named | grep -c nosuid; true"
    ));
    let folder = bundle.folder("shared");
    let busybox = bundle.rootfs().join("bin/busybox");
    let bundle = bundle
        .bind(&folder, "/source", &[])
        .bind(&folder, "/named", &["nodev"]);
    let container = Container::new(bundle);
    let _mount = HostMount::tmpfs(&folder, "noexec,nosuid,size=8m");
    fs::copy(busybox, folder.join("true")).unwrap();
    let done = container.run().ok();
    assert_eq!(done.out(), "126\n0\n1\n0");
}

/// Binds with these options, each of a folder of its own whose mount has these attributes. What the
/// container sees of each: the attributes of its mount, whether it writes and whether it executes there.
fn binds(cases: &[(&str, &[&str], &str)]) -> (String, String) {
    let mut bundle = Bundle::new();
    let busybox = bundle.rootfs().join("bin/busybox");
    let (mut look, mut expected, mut folders) = (LINE.to_owned(), String::new(), Vec::new());
    for (index, (attributes, options, seen)) in cases.iter().enumerate() {
        let folder = bundle.folder(&format!("shared{index}"));
        fs::copy(&busybox, folder.join("true")).unwrap();
        let at = format!("/mnt/{index}");
        look += &format!(
            " echo {attributes} {} $(line {at} | cut -d' ' -f6) $(touch {at}/new && echo w) \
              $({at}/true && echo x);",
            options.join(",")
        );
        expected += &format!("{attributes} {} {seen}\n", options.join(","));
        bundle = bundle.bind(&folder, &at, options);
        folders.push((folder, attributes));
    }
    let container = Container::new(bundle.shell(&look));
    let _mounts: Vec<_> = folders
        .iter()
        .map(|(folder, attributes)| HostMount::with(folder, attributes))
        .collect();
    let seen = container.run().ok().out();
    (seen, expected.trim().to_owned())
}

#[test]
fn what_the_sources_mount_forbids_stays_unless_an_option_sets_a_flag() {
    let (seen, expected) = binds(&[
        ("ro,noexec", &["rbind"], "ro,noexec,relatime"),
        ("ro,noexec", &["rbind", "rw"], "ro,noexec,relatime"),
        ("ro,noexec", &["rw", "exec", "suid"], "ro,noexec,relatime"),
        ("ro,noexec", &["rbind", "ro"], "ro,relatime x"),
        ("ro,noexec", &["rbind", "nosuid"], "rw,nosuid,relatime w x"),
        ("ro,noexec", &["rbind", "sync"], "rw,relatime w x"),
        ("ro", &["rbind", "exec"], "ro,relatime x"),
        ("nosuid,nodev", &["rw"], "rw,nosuid,nodev,relatime w x"),
        ("nosuid,nodev", &["ro", "atime"], "ro,relatime x"),
        ("noatime", &["rw"], "rw,noatime w x"),
        ("noatime", &["ro"], "ro,noatime x"),
        ("noatime", &["nodiratime"], "rw,nodiratime,relatime w x"),
        ("strictatime", &["nodev"], "rw,nodev w x"),
    ]);
    assert_eq!(seen, expected);
}

#[test]
fn the_attributes_of_mounts_below_a_source_stay() {
    let bundle = Bundle::new().shell(&format!(
        "{LINE} for place in /all /all/below /exec/below; do
             echo $(line $place | cut -d' ' -f6) $($place/true && echo x)
         done"
    ));
    let folder = bundle.folder("shared");
    let busybox = bundle.rootfs().join("bin/busybox");
    fs::create_dir(folder.join("below")).unwrap();
    fs::copy(&busybox, folder.join("true")).unwrap();
    let bundle = bundle.bind(&folder, "/all", &["rbind", "nodev"]).bind(
        &folder,
        "/exec",
        &["rbind", "rexec"],
    );
    let container = Container::new(bundle);
    let _mount = HostMount::tmpfs(&folder.join("below"), "noexec,nosuid,noatime,size=8m");
    fs::copy(&busybox, folder.join("below/true")).unwrap();
    let done = container.run().ok();
    assert_eq!(
        done.out(),
        "rw,nodev,relatime x\nrw,nosuid,noexec,noatime\nrw,nosuid,noatime x"
    );
}

/// What a container sees of its root, and of a mount below it, where the host's mounts of them have these
/// attributes; with these changes of its config.json.
fn root(attributes: &str, change: impl Fn(Bundle) -> Bundle) -> String {
    let bundle = Bundle::new().shell(&format!(
        "{LINE} for place in / /mnt; do
             echo $(line $place | cut -d' ' -f6) $(touch $place/new && echo w) \
                  $($place/bin/busybox true && echo x)
         done"
    ));
    let container = Container::new(change(bundle));
    let rootfs = container.bundle.rootfs();
    let below = rootfs.join("mnt");
    let _root = HostMount::with(&rootfs, attributes);
    let _below = HostMount::tmpfs(&below, "noexec,nodev,noatime,size=8m");
    fs::create_dir(below.join("bin")).unwrap();
    fs::copy(rootfs.join("bin/busybox"), below.join("bin/busybox")).unwrap();
    container.run().ok().out()
}

#[test]
fn the_root_has_the_attributes_of_its_mounts_unless_it_is_made_read_only() {
    let below = "rw,nodev,noexec,noatime w";
    for (attributes, seen) in [
        ("nosuid,nodev", "rw,nosuid,nodev,relatime w x"),
        ("strictatime,nodiratime", "rw,nodiratime w x"),
        ("ro,noatime", "ro,noatime x"),
    ] {
        let found = root(attributes, |bundle| bundle);
        assert_eq!(found, format!("{seen}\n{below}"), "{attributes}");
    }
    let read_only = |bundle: Bundle| bundle.set("/root/readonly", json!(true));
    let found = root("nosuid,noatime", read_only);
    assert_eq!(found, format!("ro,noatime x\n{below}"));
    let maps = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let found = root("nosuid,noatime", |bundle| {
        read_only(bundle).in_user_namespace(maps.clone())
    });
    assert_eq!(found, format!("ro,nosuid,noatime x\n{below}"));
}

#[test]
fn nothing_is_executed_from_a_root_whose_mount_forbids_it() {
    let container = Container::new(Bundle::new());
    let _mount = HostMount::with(&container.bundle.rootfs(), "noexec");
    let _ = container.run().exits(1).fails_saying("permission denied");
}

#[test]
fn what_a_user_namespace_locks_stays() {
    let in_namespace = |options: &[&str]| {
        let bundle = Bundle::new()
            .shell("touch /mnt/new || echo refused")
            .in_user_namespace(json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]));
        let folder = bundle.folder("shared");
        let container = Container::new(bundle.bind(&folder, "/mnt", options));
        let _mount = HostMount::with(&folder, "ro");
        container.run()
    };
    let done = in_namespace(&["rbind", "nosuid"]).ok();
    assert_eq!(done.out(), "refused");
    let done = in_namespace(&["rbind", "rrw"]).exits(1);
    if hull_tests::runtime::is_hull() {
        let _ = done.fails_saying("mounts[7].options: \"rrw\": in a user namespace");
    }
}

/// Whether it is noted that a container reads a file and lists a folder of a bind mount with these
/// options, whose mount on the host is `attributes`.
fn notes(attributes: &str, options: &[&str]) -> (bool, bool) {
    let bundle = Bundle::new().shell("cat /mnt/file; ls /mnt/folder");
    let folder = bundle.folder("shared");
    fs::create_dir(folder.join("folder")).unwrap();
    fs::write(folder.join("file"), "text").unwrap();
    let container = Container::new(bundle.bind(&folder, "/mnt", options));
    let _mount = HostMount::with(&folder, attributes);
    // In the future, so that `relatime` doesn't note it.
    let old = rustix::fs::Timespec {
        tv_sec: 4_000_000_000,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: old,
        last_modification: rustix::fs::Timespec { tv_sec: 1, ..old },
    };
    let places = [folder.join("file"), folder.join("folder")];
    for place in &places {
        let file = fs::File::open(place).unwrap();
        rustix::fs::futimens(file, &times).unwrap();
    }
    let _ = container.run().ok();
    let [file, list] = places.map(|place| fs::metadata(place).unwrap().atime() != old.tv_sec);
    (file, list)
}

#[test]
fn access_times_are_kept_as_the_options_say() {
    for (attributes, options, noted) in [
        ("relatime", &["rbind"][..], (false, false)),
        ("relatime", &["strictatime"], (true, true)),
        ("relatime", &["strictatime", "nodiratime"], (true, false)),
        ("relatime", &["rbind", "rstrictatime"], (true, true)),
        ("strictatime", &["rbind", "rw"], (true, true)),
        ("strictatime", &["noatime"], (false, false)),
        ("strictatime", &["rbind", "rnoatime"], (false, false)),
    ] {
        let seen = notes(attributes, options);
        assert_eq!(seen, noted, "{attributes} {options:?}");
    }
}

#[test]
fn access_times_in_a_user_namespace() {
    only_hull!("to runc, the flags of the host's own mount are locked there");
    let look = "for place in /none /every /default; do
                    line $place | grep -o -w -E 'noatime|relatime' || echo every
                done";
    let bundle = Bundle::new()
        .shell(&format!("{LINE} {look}"))
        .in_user_namespace(json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]));
    let folder = bundle.folder("shared");
    let file = folder.join("file");
    fs::write(&file, "file").unwrap();
    let bundle = bundle
        .bind(&folder, "/none", &["noatime"])
        .bind(&file, "/every", &["strictatime"])
        .bind(&folder, "/default", &[]);
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "noatime\nevery\nrelatime");
}

#[test]
fn flags_of_a_file_system_and_links_that_are_not_followed() {
    let bundle = Bundle::new().shell(&format!(
        "{LINE} line /mnt/slow | grep -o -E '(dir)?sync'; line /mnt/lazy | grep -o lazytime;
         cat /mnt/links/link; echo $?; cat /mnt/links/file"
    ));
    let folder = bundle.folder("shared");
    fs::write(folder.join("file"), "file").unwrap();
    symlink("file", folder.join("link")).unwrap();
    let bundle = bundle
        .push("/mounts", tmpfs("/mnt/slow", &["async", "sync", "dirsync"]))
        .push("/mounts", tmpfs("/mnt/lazy", &["lazytime"]))
        .bind(&folder, "/mnt/links", &["nosymfollow"]);
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "sync\ndirsync\nlazytime\n1\nfile");
}

#[test]
fn a_tmpfs_is_filled_with_what_it_covers() {
    let bundle = Bundle::new().shell(
        "cd /data; stat -c '%n %a %u %g' . sub sub/file; cat link; ls sub/mounted; rm sub/file;
         cd /kept; cat sub/file; touch new; echo $?",
    );
    let data = bundle.rootfs().join("data");
    fs::create_dir_all(data.join("sub/mounted")).unwrap();
    fs::write(data.join("sub/mounted/covered"), "").unwrap();
    fs::write(data.join("sub/file"), "text\n").unwrap();
    symlink("sub/file", data.join("link")).unwrap();
    for (name, mode, owner) in [("", 0o751, 0), ("sub", 0o711, 7), ("sub/file", 0o644, 7)] {
        let path = data.join(name);
        chown(&path, Some(owner), Some(owner + 1)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let folder = bundle.folder("shared");
    fs::write(folder.join("inner"), "").unwrap();
    let kept = bundle.folder("kept");
    fs::create_dir(kept.join("sub")).unwrap();
    fs::write(kept.join("sub/file"), "of a bind mount\n").unwrap();
    let bundle = bundle
        .push("/mounts", tmpfs("/data", &["tmpcopyup"]))
        .bind(&folder, "/data/sub/mounted", &[])
        .bind(&kept, "/kept", &[])
        .push("/mounts", tmpfs("/kept", &["tmpcopyup", "ro"]));
    let container = Container::new(bundle);
    let done = container.run().ok();
    assert_eq!(
        done.out(),
        ". 751 0 0\nsub 711 7 8\nsub/file 644 7 8\ntext\ninner\nof a bind mount\n1"
    );
    assert!(data.join("sub/file").exists(), "the root's own was removed");
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers() {
    let bundle = Bundle::new().shell(
        "stat -c %a /covers /new /named; touch /covers/new; echo $?; touch /covers/below/new; echo $?",
    );
    let covered = bundle.rootfs().join("covers");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o710)).unwrap();
    let bundle = bundle
        // what is mounted in it needs a place, which is made before it is read-only
        .push("/mounts", tmpfs("/covers", &["ro"]))
        .push("/mounts", tmpfs("/covers/below", &[]))
        .push("/mounts", tmpfs("/new", &[]))
        .push("/mounts", tmpfs("/named", &["mode=700"]));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "710\n1777\n700\n1\n0");
}

#[test]
fn what_covers_a_read_only_tmpfs_has_its_own_options() {
    let bundle = Bundle::new()
        .shell("touch /mnt/new; echo $?; grep ' /mnt ' /proc/mounts | tail -n 1 | grep -c nosuid")
        .push("/mounts", tmpfs("/mnt", &["ro"]))
        .push("/mounts", tmpfs("/mnt", &["nosuid"]));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "0\n1");
}

#[test]
fn a_read_only_dev_has_its_devices_and_mounts() {
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k", "ro"];
    let bundle = Bundle::new()
        .shell("touch /dev/new; echo $?; echo x >/dev/null; touch /dev/shm/new; echo $?")
        .set("/mounts/1/options", json!(dev));
    let done = Container::new(bundle).run().ok();
    assert_eq!(done.out(), "1\n0");
}

#[test]
fn a_remount_changes_a_mount() {
    let bundle = Bundle::new().shell("touch /mnt/new; echo $?; touch /other/new; echo $?");
    let folder = bundle.folder("shared");
    let other = bundle.folder("other");
    let bundle = bundle
        .bind(&folder, "/mnt", &[])
        .bind(&folder, "/mnt", &["remount", "ro"])
        .bind(&other, "/other", &["ro"])
        .bind(&other, "/other", &["remount", "rw"]);
    let container = Container::new(bundle);
    let done = container.run().ok();
    assert_eq!(done.out(), "1\n0");
    assert!(other.join("new").exists() && !folder.join("new").exists());
}

#[test]
fn the_host_mounts_an_overlay_for_the_container() {
    let bundle = Bundle::new().shell("cat /mnt/lower; echo new >/mnt/made; rm /mnt/lower; ls /mnt");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| bundle.folder(name));
    fs::write(lower.join("lower"), "of the lower\n").unwrap();
    let dirs = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options: Vec<_> = dirs.split(',').collect();
    let overlay = json!({"destination": "/mnt", "type": "overlay", "source": "overlay",
                         "options": options});
    let container = Container::new(bundle.push("/mounts", overlay));
    let done = container.run().ok();
    assert_eq!(done.out(), "of the lower\nmade");
    assert_eq!(fs::read_to_string(upper.join("made")).unwrap(), "new\n");
    assert!(lower.join("lower").exists());
    let none = json!({"destination": "/mnt", "type": "nosuchfs", "source": "none"});
    let refused = Container::new(Bundle::new().push("/mounts", none)).run();
    if hull_tests::runtime::is_hull() {
        let _ = refused
            .exits(1)
            .fails_saying("mounts[7]: mounting it on the host");
    }
}

#[test]
fn the_owners_of_a_bind_mounts_files_can_be_mapped() {
    only_hull!("runc 1.1 has no id-mapped mounts");
    let maps = json!([{"containerID": 0, "hostID": 1000, "size": 2}]);
    let mount = |source: &Path| {
        json!({"destination": "/mnt", "type": "bind", "source": source,
               "options": ["bind", "idmap"], "uidMappings": maps, "gidMappings": maps})
    };
    let bundle = Bundle::new()
        .shell("stat -c '%u %g' /mnt/file; touch /mnt/new; echo $?")
        .set("/process/user", json!({"uid": 1000, "gid": 1001}));
    let folder = bundle.folder("shared");
    fs::write(folder.join("file"), "").unwrap();
    chown(folder.join("file"), Some(1), Some(0)).unwrap();
    let container = Container::new(bundle.push("/mounts", mount(&folder)));
    let done = container.run().ok();
    assert_eq!(done.out(), "1001 1000\n0");
    let new = fs::metadata(folder.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 1));

    let without = mount(Path::new("/sys/kernel"));
    let refused = Container::new(Bundle::new().push("/mounts", without)).run();
    let _ = refused
        .exits(1)
        .fails_saying("mounts[7].uidMappings: the host cannot map");
}
