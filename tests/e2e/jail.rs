//! The threads of a VM process that runs: each has what is its role's, and nothing else of the host.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use hull_tests::captive::{Called, Captive};
use hull_tests::disk::HostDisk;
use hull_tests::process::{limit, wait_for_death};
use hull_tests::threads::{self, Thread};
use hull_tests::{Bundle, Container, Running, only_hull, skip};
use nix::sys::signal::Signal;
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Of a standard input that nobody reads, so that it stays open; to be repeated.
const MORE_THAN_IS_READ_AHEAD: &str = "the host's";

/// The threads whose names begin so, of which there must be some.
#[track_caller]
fn named<'a>(threads: &'a [Thread], name: &str) -> Vec<&'a Thread> {
    let found: Vec<_> = threads
        .iter()
        .filter(|t| t.name.starts_with(name))
        .collect();
    assert!(!found.is_empty(), "no {name} among {threads:#?}");
    found
}

#[test]
fn a_thread_of_the_vm_process_has_its_own_descriptors_alone() {
    only_hull!("runc has no VM process");
    let bundle = Bundle::new()
        .shell("sleep 3600")
        .set("/linux/devices", json!([]))
        .set("/linux/resources/devices", json!([]));
    let Some(disk) = HostDisk::new(&bundle, "image", MIB) else {
        skip!("this host has no loop devices");
    };
    let secret = bundle.file("stdin", &MORE_THAN_IS_READ_AHEAD.repeat(1 << 17));
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let container = Container::new(disk.attach(bundle, "/dev/disk", "r"));
    let mut create = container.create_command();
    create.stdin(File::open(&secret).unwrap());
    let _ = Running::spawn(&mut create).exit();
    let _ = container.start().ok();

    let threads = threads::of(container.state().pid);
    let (main, others) = threads.split_first().unwrap();

    let log = container.root().join(&container.id).join("console.log");
    assert!(main.has(&secret) && main.has(&log), "{main:#?}");
    let files = [&secret, &log].map(|path| path.display().to_string());
    let expected = [
        "/memfd",
        "eventfd",
        "eventpoll",
        "pipe",
        "signalfd",
        "socket",
        "timerfd",
    ];
    let mut kinds = main.kinds();
    kinds.retain(|kind| !files.contains(kind));
    assert_eq!(kinds, expected, "{main:#?}");
    for thread in others {
        assert!(!thread.has(&secret), "{thread:#?}");
    }
    for vcpu in named(others, "vcpu") {
        let mut kinds = vcpu.kinds();
        kinds.retain(|kind| *kind != files[1] && kind != "eventfd");
        assert_eq!(kinds, ["kvm-vcpu", "kvm-vm"], "{vcpu:#?}");
    }
    for files in named(others, "virtio-fs") {
        for (number, open) in files.open.range(3..) {
            let open = open.display().to_string();
            let own = ["anon_inode:[eventfd]", "anon_inode:[eventpoll]", "/"].contains(&&*open)
                || open.ends_with("/fd")
                || open.starts_with(&format!("/{}", container.id));
            assert!(own, "{number} is {open}: {files:#?}");
        }
    }
    let mut disks: Vec<_> = others.iter().filter(|t| !t.name.starts_with('v')).collect();
    let disk_thread = disks.pop().expect("a disk's thread");
    assert!(disks.is_empty(), "{disks:#?}");
    let mut kinds = disk_thread.kinds();
    kinds.retain(|kind| !kind.starts_with("/dev/loop"));
    assert_eq!(kinds, ["eventfd", "eventpoll"], "{disk_thread:#?}");
    for thread in &threads {
        for stream in 0..3 {
            let open = thread
                .open
                .get(&stream)
                .map(|open| open.display().to_string());
            assert!(
                open.as_ref().is_some_and(|open| open.starts_with("pipe:")),
                "{stream} is {open:?}: {thread:#?}"
            );
        }
    }
}

#[test]
fn every_thread_of_the_vm_process_is_confined() {
    only_hull!("runc has no VM process");
    let container = Container::new(Bundle::new().shell("echo ready; sleep 3600"));
    let _running = container.run_until_ready();
    for thread in threads::of(container.state().pid) {
        assert_eq!(thread.status("NoNewPrivs"), "1", "{}", thread.name);
        assert_eq!(thread.status("Seccomp"), "2", "{}", thread.name);
        let files = thread.name == "virtio-fs";
        let is_root = thread.status("Uid").starts_with("0\t");
        assert_eq!(is_root, files, "{}", thread.name);
        let capabilities = u64::from_str_radix(thread.status("CapEff"), 16).unwrap();
        assert_eq!(capabilities.count_ones(), if files { 8 } else { 0 });
        for field in ["CapPrm", "CapBnd"] {
            let set = u64::from_str_radix(thread.status(field), 16).unwrap();
            assert_eq!(
                set.count_ones(),
                if files { 8 } else { 0 },
                "{}",
                thread.name
            );
        }
    }
}

/// What a call may do to a file that was opened for somebody: mode, owner, length, space, times.
const CHANGES: [(i64, [u64; 4]); 5] = [
    (libc::SYS_fchmod, [0o4777, 0, 0, 0]),
    (libc::SYS_fchown, [12345, 12345, 0, 0]),
    (libc::SYS_ftruncate, [0, 0, 0, 0]),
    (libc::SYS_fallocate, [3, 0, 4, 0]), // a hole
    (libc::SYS_utimensat, [0, 0, 0, 0]),
];

/// What a thread does in the VM process, by its name and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Main,
    Vcpu,
    Files,
    Network,
    Disk,
}

fn role_of(thread: &Thread, pid: i32) -> Role {
    match &*thread.name {
        _ if thread.tid == pid => Role::Main,
        "virtio-fs" => Role::Files,
        "virtio-net" => Role::Network,
        name if name.starts_with("vcpu") => Role::Vcpu,
        _ => Role::Disk,
    }
}

/// All that can be seen of a file of the host.
fn seen(path: &Path) -> (Vec<u8>, u32, u32, u64, i64) {
    let about = fs::metadata(path).unwrap();
    let text = match about.is_file() {
        true => fs::read(path).unwrap(),
        false => Vec::new(),
    };
    (
        text,
        about.mode(),
        about.uid(),
        about.nlink(),
        about.mtime(),
    )
}

/// Beyond what any thread has open.
const NUMBERS: std::ops::Range<u64> = 0..96;

#[test]
fn a_thread_of_the_vm_process_in_other_hands_changes_no_file_of_the_host() {
    only_hull!("runc has no VM process");
    let bundle = Bundle::new()
        .shell("sleep 3600")
        .set("/linux/devices", json!([]))
        .set("/linux/resources/devices", json!([]));
    let Some(disk) = HostDisk::new(&bundle, "image", MIB) else {
        skip!("this host has no loop devices");
    };
    disk.write(0, "the host's");
    let secret = bundle.file("stdin", &MORE_THAN_IS_READ_AHEAD.repeat(1 << 17));
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let container = Container::new(disk.attach(bundle, "/dev/disk", "r"));
    let mut create = container.create_command();
    create.stdin(File::open(&secret).unwrap());
    let _ = Running::spawn(&mut create).exit();
    let _ = container.start().ok();
    let log = container.root().join(&container.id).join("console.log");
    let files = [&secret, &log, Path::new("/dev/null"), &disk.path];
    let before = files.map(seen);

    let pid = container.state().pid;
    for thread in threads::of(pid) {
        let role = role_of(&thread, pid);
        let mut captive = Captive::take(thread.tid);
        for number in NUMBERS {
            for (call, [a, b, c, d]) in CHANGES {
                // The other roles haven't these calls at all. A disk's thread may change its disk, but this
                // one is read-only.
                let has = role == Role::Files || role == Role::Disk && call == libc::SYS_fallocate;
                let killed = |end| matches!(end, Called::Killed(_));
                if has && killed(captive.call(call, &[number, a, b, c, d])) {
                    panic!("{role:?} hasn't {call}");
                }
            }
            if role == Role::Files {
                let share = format!("/{}", container.id);
                opens_what_is_in_the_share_alone(&mut captive, number, &share);
            }
        }
    }

    assert_eq!(files.map(seen), before);
    assert_eq!(disk.read(0, 10), "the host's");
    let listed = container.exec(&["ls", "/"]).ok();
    assert!(listed.out().contains("bin"), "the guest lives on");
}

/// Through no descriptor that may be a directory does this number open something to write that isn't the
/// share's.
fn opens_what_is_in_the_share_alone(captive: &mut Captive, number: u64, share: &str) {
    let flags = (libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY).unsigned_abs();
    for directory in NUMBERS {
        let name = captive.text(&CString::new(number.to_string()).unwrap());
        let arguments = [directory, name, flags.into()];
        let Called::Done(opened) = captive.call(libc::SYS_openat, &arguments) else {
            continue;
        };
        let path = captive.has_open(opened);
        let own = path.starts_with(share) || path.to_string_lossy().starts_with("pipe:");
        assert!(own, "{} can be written by {directory}", path.display());
        captive.call(libc::SYS_close, &[opened.unsigned_abs()]);
    }
}

/// Of linux/fs.h, since Linux 6.9.
const RWF_NOAPPEND: u64 = 0x20;

#[test]
fn what_is_not_its_roles_ends_the_vm_process() {
    only_hull!("runc has no VM process");
    let forbidden = [
        (Role::Main, libc::SYS_ftruncate, [0; 6]),
        // It would write over a file that is open for appending.
        (
            Role::Main,
            libc::SYS_pwritev2,
            [1, 0, 0, 0, 0, RWF_NOAPPEND],
        ),
        (Role::Vcpu, libc::SYS_openat, [0; 6]),
        (Role::Files, libc::SYS_socket, [0; 6]),
        (Role::Network, libc::SYS_socket, [0; 6]),
        // It would make a tap, or take over another one.
        (
            Role::Network,
            libc::SYS_ioctl,
            [0, libc::TUNSETIFF, 0, 0, 0, 0],
        ),
    ];
    for (role, call, arguments) in forbidden {
        let mut container = Container::new(Bundle::new().shell("sleep 3600"));
        container.create();
        let pid = container.state().pid;
        let threads = threads::of(pid);
        let thread = threads.iter().find(|thread| role_of(thread, pid) == role);
        let mut captive = Captive::take(thread.expect("its thread").tid);
        let ended = captive.call(call, &arguments);
        assert_eq!(ended, Called::Killed(Signal::SIGSYS), "{role:?}: {call}");
        assert!(wait_for_death(pid, limit()), "{role:?}: it lives on");
    }
}

/// The C library shrinks an arena that isn't the main one only after it has opened a file of /proc, and the
/// filters kill for that.
#[test]
fn no_thread_of_the_vm_process_has_an_arena_of_its_own() {
    only_hull!("runc has no VM process");
    let mut container = Container::new(Bundle::new().shell("sleep 3600"));
    container.create();
    let _ = container.start().ok();

    let maps = fs::read_to_string(format!("/proc/{}/maps", container.state().pid)).unwrap();

    // Each arena is a piece of a reserved range of 64 MiB (malloc/arena.c: HEAP_MAX_SIZE).
    let reserved = maps.lines().filter(|line| line.contains(" ---p "));
    let sizes = reserved.map(|line| {
        let range = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [start, end] = [range.0, range.1].map(|text| u64::from_str_radix(text, 16).unwrap());
        end - start
    });
    let arenas: Vec<_> = sizes
        .filter(|size| (48 * MIB..=64 * MIB).contains(size))
        .collect();
    assert!(arenas.is_empty(), "{arenas:?}: {maps}");
}
