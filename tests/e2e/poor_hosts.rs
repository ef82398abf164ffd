//! Hosts that lack something: one clear line, an exit code, and nothing left behind.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use hull_tests::mount::HostMount;
use hull_tests::{Bundle, Container, guest, only_hull, runtime, skip};
use serde_json::json;

#[test]
fn without_dev_kvm() {
    only_hull!("runc needs no KVM");
    let change =
        "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";
    let container = Container::new(Bundle::new()).after(change);
    let done = container.run().exits(1).fails_saying("/dev/kvm");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}

#[test]
fn with_a_dev_kvm_that_is_something_else() {
    only_hull!("runc needs no KVM");
    let container = Container::new(Bundle::new()).after("mount --bind /dev/null /dev/kvm");
    let done = container.run().exits(1).fails_saying("/dev/kvm");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}

#[test]
fn without_memory() {
    only_hull!("runc needs no memory of its own");
    let bundle = Bundle::new().set("/linux/resources/memory", json!({ "limit": 1u64 << 30 }));
    let container = Container::new(bundle).limited("--as=536870912");
    let done = container.run().exits(1).fails_saying("memory");
    let _ = done.fails_saying("the caller's RLIMIT_AS");
}

#[test]
fn with_few_open_files() {
    let container = Container::new(Bundle::new().shell("cat /etc/passwd >/dev/null; exit 7"));
    let container = container.limited("--nofile=1024");
    let _ = container.run().exits(7);
}

#[test]
fn without_cgroups() {
    let bundle = Bundle::new().unset("/linux", "cgroupsPath");
    let container = Container::new(bundle).after("umount --lazy /sys/fs/cgroup");
    let done = container.run();
    if runtime::is_hull() {
        let done = done.ok();
        assert!(done.err().contains("no cgroup2"), "{}", done.err());
    } else {
        let _ = done.exits(1);
    }
}

#[test]
fn with_a_full_disk_for_its_state() {
    let bundle = Bundle::new();
    let disk = bundle.folder("disk");
    let mount = HostMount::tmpfs(&disk, "size=64k");
    let mut filler = File::create(disk.join("filler")).unwrap();
    while filler.write(&[1; 4096]).is_ok() {}
    drop(filler);
    let container = Container::below(&disk.join("root"), bundle);

    let done = container.run();

    mount.unmount();
    let why = if runtime::is_hull() {
        "space left on device"
    } else {
        "unable to store"
    };
    let done = done.exits(1).fails_saying(why);
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}

/// A container whose guest is this image, and has so many seconds to come up.
fn guest_of(image: &[u8], seconds: u32) -> Container {
    let bundle = Bundle::new().set("/linux/resources/memory", json!({ "limit": 256 << 20 }));
    let kernel = bundle.beside("kernel");
    std::fs::write(&kernel, image).unwrap();
    let kernel = kernel.display().to_string();
    let seconds = seconds.to_string();
    Container::new(bundle).with_global(&["--kernel", &kernel, "--boot-timeout", &seconds])
}

#[test]
fn a_kernel_that_does_not_boot_is_given_up() {
    only_hull!("runc boots no kernel");
    let container = guest_of(&guest::mute(), 3);

    let start = Instant::now();
    let done = container.run().exits(1);

    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    let said = done.err();
    assert!(
        said.contains("3 s"),
        "it doesn't name the time limit: {said}"
    );
    assert!(
        said.contains("no agent here"),
        "it doesn't show the console: {said}"
    );
}

#[test]
fn why_a_guest_ended_by_itself_is_in_its_console() {
    only_hull!("runc boots no kernel");
    let done = guest_of(&guest::faulting(), 60).run().exits(1);
    let said = done.err();
    assert!(
        said.contains("hull: error: the guest ended by itself"),
        "{said}"
    );
}

#[test]
fn a_kernel_that_is_none() {
    only_hull!("runc boots no kernel");
    for (image, word) in [
        (&b"not an ELF file"[..], "ELF"),
        (&guest::mute()[..90], "kernel"),
    ] {
        let done = guest_of(image, 3).run().exits(1).fails_saying(word);
        assert_eq!(done.err().lines().count(), 1, "{}", done.err());
    }
}

#[test]
fn a_dev_kvm_that_cannot_run_a_kernel() {
    only_hull!("runc needs no KVM");
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if cpus.contains(" svm") || cpus.contains(" vmx") {
        skip!("this host's KVM is a real one");
    }
    if !std::path::Path::new("/dev/kvm").exists() {
        skip!("this host has no /dev/kvm");
    }
    let container = Container::new(Bundle::new());
    let done = container.run().exits(1).fails_saying("KVM");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}
