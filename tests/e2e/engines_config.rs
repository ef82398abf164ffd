//! What engines put into config.json that means something of the host: default AppArmor profiles, all of its devices,
//! its namespaces, a /dev/shm that is mounted there.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use hull_tests::disk::HostDisk;
use hull_tests::mount::HostMount;
use hull_tests::{Bundle, Container, only_hull};
use serde_json::{Value, json};

use crate::lifecycle::waiting;
use crate::namespaces::{joining, network};

/// A container whose runtime is configured by this line.
fn configured(bundle: Bundle, line: &str) -> Container {
    let file = bundle.file("hull.toml", &format!("boot_timeout = 120\n{line}\n"));
    Container::new(bundle).with_global(&["--config", &file.display().to_string()])
}

/// A bundle as podman marks its own.
fn of_an_engine(bundle: Bundle) -> Bundle {
    bundle.set("/annotations", json!({ "io.container.manager": "libpod" }))
}

#[test]
fn default_profiles_are_taken_for_the_container_and_for_further_processes() {
    only_hull!("runc needs AppArmor on the host");
    let bundle = waiting().set("/process/apparmorProfile", json!("docker-default"));
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let exec = |profile: &str| {
        let mut command = container.exec_command(&["--apparmor", profile], &["echo", "here"]);
        hull_tests::Running::spawn(&mut command).finish()
    };

    assert_eq!(container.exec(&["echo", "here"]).ok().out(), "here");
    for profile in ["docker-default", "containers-default-0.50.1", "unconfined"] {
        assert_eq!(exec(profile).ok().out(), "here", "{profile}");
    }
    let _ = exec("mine").fails_saying("process.apparmorProfile: \"mine\"");
    let process = json!({ "args": ["/bin/echo", "here"], "cwd": "/", "user": { "uid": 0, "gid": 0 },
                          "apparmorProfile": "cri-containerd.apparmor.d" });
    let file = container.bundle.file("process.json", &process.to_string());
    let mut command = container.exec_command(&["--process", &file.display().to_string()], &[]);
    let done = hull_tests::Running::spawn(&mut command).finish();
    assert_eq!(done.ok().out(), "here");
}

#[test]
fn the_operator_can_refuse_default_profiles() {
    only_hull!("runc has no such configuration");
    let of = |profile: &str| {
        let bundle = Bundle::new().set("/process/apparmorProfile", json!(profile));
        configured(bundle.args(&["true"]), "apparmor_defaults = false")
    };
    let _ = (of("docker-default").run().exits(1))
        .fails_saying("\"docker-default\": the guest's kernel has no");
    let _ = of("unconfined").run().ok();
}

/// The character devices in a folder of the host, and below it, as engines list them for a privileged container.
fn host_devices(folder: &Path, devices: &mut Vec<Value>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let about = fs::symlink_metadata(&path).unwrap();
        let kind = about.file_type();
        let others = ["pts", "shm", "mqueue", "fd", "console"];
        if others.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            host_devices(&path, devices);
        } else if kind.is_char_device() {
            devices.push(json!({
                "path": path,
                "type": "c",
                "major": rustix::fs::major(about.rdev()), "minor": rustix::fs::minor(about.rdev()),
                "fileMode": about.permissions().mode() & 0o777, "uid": about.uid(), "gid": about.gid(),
            }));
        }
    }
}

/// A bundle as engines write it for `--privileged`. Of the host's block devices it lists this one, which is nobody's.
fn privileged(bundle: Bundle, disk: &HostDisk) -> Bundle {
    let mut devices = vec![disk.device(&disk.path.display().to_string())];
    host_devices(Path::new("/dev"), &mut devices);
    let all = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "KILL",
        "MKNOD",
        "NET_ADMIN",
        "SETGID",
        "SETUID",
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYSLOG",
    ];
    let all = all.map(|name| format!("CAP_{name}"));
    let writable = |bundle: Bundle, index: usize| {
        let kind = bundle.config()["mounts"][index]["type"].clone();
        assert!(kind == "sysfs" || kind == "cgroup", "{kind}");
        let options = json!(["nosuid", "noexec", "nodev", "rw"]);
        bundle.set(&format!("/mounts/{index}/options"), options)
    };
    let bundle = bundle
        .capabilities(&all.iter().map(String::as_str).collect::<Vec<_>>())
        .set("/process/noNewPrivileges", json!(false))
        .set("/linux/devices", json!(devices))
        .set(
            "/linux/resources/devices",
            json!([{ "allow": true, "access": "rwm" }]),
        )
        .unset("/linux", "maskedPaths")
        .unset("/linux", "readonlyPaths");
    writable(writable(bundle, 5), 6)
}

#[test]
fn a_privileged_container_has_all_of_its_guest_and_no_disk_of_the_host() {
    only_hull!("runc gives it the host's");
    let bundle = Bundle::new();
    let Some(disk) = HostDisk::new(&bundle, "disk", 1 << 20) else {
        return;
    };
    let node = disk.path.display().to_string();
    let script = format!(
        "for node in kmsg fuse net/tun loop-control null; do test -c /dev/$node && echo $node; done
        ls /dev/kvm /dev/cpu_dma_latency {node} 2>/dev/null
        echo hello >/dev/kmsg && dmesg | grep -c hello
        echo 7 >/proc/sys/vm/swappiness && cat /proc/sys/vm/swappiness
        mkdir /sys/fs/cgroup/below && ls -d /sys/fs/cgroup/below
        mount -t tmpfs tmpfs /mnt && grep -c ' /mnt tmpfs' /proc/mounts
        mknod /tmp/zero c 1 5 && head -c 3 /tmp/zero | wc -c"
    );
    let done = Container::new(privileged(bundle.shell(&script), &disk))
        .run()
        .ok();
    assert_eq!(
        done.out(),
        "kmsg\nfuse\nnet/tun\nloop-control\nnull\n1\n7\n/sys/fs/cgroup/below\n1\n3"
    );
    let warning = "linux.devices: it lists all devices of the host";
    assert_eq!(done.err().matches(warning).count(), 1, "{}", done.err());
    assert!(done.err().contains("block device"), "{}", done.err());
}

#[test]
fn the_operator_decides_about_a_privileged_containers_devices() {
    only_hull!("runc has no such configuration");
    let bundle = Bundle::new();
    let Some(disk) = HostDisk::new(&bundle, "disk", 1 << 20) else {
        return;
    };
    disk.write(0, "of the host");
    let script = format!("head -c 11 {}", disk.path.display());
    let with_disks = configured(
        privileged(bundle.shell(&script), &disk),
        "privileged_devices = \"guest-and-disks\"",
    );
    assert_eq!(with_disks.run().ok().out(), "of the host");
    let refusing = configured(
        privileged(Bundle::new().args(&["true"]), &disk),
        "privileged_devices = \"refuse\"",
    );
    let _ = (refusing.run().exits(1)).fails_saying("linux.devices: it lists all devices");
}

/// A bundle without a namespace of this kind, as for `--network host` and the like.
fn without(bundle: Bundle, kinds: &[&str]) -> Bundle {
    let all = bundle.config()["linux"]["namespaces"].as_array().cloned();
    let is_kept = |namespace: &Value| !kinds.iter().any(|kind| namespace["type"] == *kind);
    let kept: Vec<_> = all
        .unwrap_or_default()
        .into_iter()
        .filter(is_kept)
        .collect();
    bundle.set("/linux/namespaces", json!(kept))
}

#[test]
fn an_engine_is_told_that_the_hosts_namespaces_are_not_shared() {
    only_hull!("runc shares them");
    let script = "ls /sys/class/net";
    let bundle = || without(Bundle::new().shell(script), &["network"]);
    let host = Container::new(of_an_engine(bundle())).run().exits(1);
    let _ = host.fails_saying("linux.namespaces: it lists no namespace of type network");
    let isolated = configured(of_an_engine(bundle()), "host_namespaces = \"isolate\"");
    let done = isolated.run().ok();
    assert_eq!(done.out(), "lo");
    assert!(done.err().contains("asks for the host's"), "{}", done.err());

    let plain = Container::new(bundle()).run().ok();
    assert_eq!(plain.out(), "lo");
    assert!(plain.err().contains("with lo alone"), "{}", plain.err());
    let pids = without(Bundle::new().args(&["true"]), &["pid"]);
    let told = Container::new(of_an_engine(pids)).run().ok();
    assert!(
        told.err().contains("it lists no namespace of type pid"),
        "{}",
        told.err()
    );
}

#[test]
fn the_network_of_another_runtimes_container_is_refused_for_what_it_is() {
    only_hull!("runc joins it");
    let (_keeper, path) = network("ip link set lo up");
    let foreign = Container::new(of_an_engine(joining(&path)));
    let _ = (foreign.run().exits(1)).fails_saying("the network namespace of another container");
}

#[test]
fn an_engines_shm_is_the_guests_own_as_large_as_the_hosts() {
    only_hull!("with runc it is the host's tmpfs");
    let bundle = Bundle::new();
    let folder = bundle.folder("shm");
    let mount = HostMount::tmpfs(&folder, "size=3m,mode=1773,uid=5,gid=6");
    let script = "grep -c ' /dev/shm tmpfs .*nosuid.*size=3072k' /proc/mounts
        stat -c '%a %u %g' /dev/shm; echo secret >/dev/shm/file";
    let shm = json!({ "destination": "/dev/shm", "type": "bind", "source": folder,
                      "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"] });
    let container = Container::new(bundle.set("/mounts/3", shm).shell(script));
    assert_eq!(container.run().ok().out(), "1\n1773 5 6");
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        0,
        "what it wrote is on the host"
    );
    mount.unmount();
}

#[test]
fn a_shm_that_holds_something_is_shared() {
    let bundle = Bundle::new();
    let folder = bundle.folder("shm");
    let mount = HostMount::tmpfs(&folder, "size=3m,mode=1777");
    fs::write(folder.join("there"), "from the host").unwrap();
    let shm =
        json!({ "destination": "/dev/shm", "type": "bind", "source": folder, "options": ["bind"] });
    let script = "cat /dev/shm/there; echo back >/dev/shm/file";
    let container = Container::new(bundle.set("/mounts/3", shm).shell(script));
    assert_eq!(container.run().ok().out(), "from the host");
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "back\n");
    mount.unmount();
}

#[test]
fn an_update_may_tell_what_stays() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let all = json!({ "devices": [{ "allow": false, "access": "rwm" }, { "allow": false, "access": "rwm" }],
                      "pids": { "limit": 55 } });
    let file = container.bundle.file("limits", &all.to_string());
    let _ = container
        .update(&["--resources", &file.display().to_string()])
        .ok();
    let limit = container
        .exec(&["cat", "/sys/fs/cgroup/pids.max"])
        .ok()
        .out();
    assert_eq!(limit, "55");
}
