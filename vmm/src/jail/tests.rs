//! The jail as seen by an attacker who controls the process.
#![allow(unsafe_code)] // system calls that the jail must stop

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use caps::CapSet;
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::test_child::{self, End, is_root, run};
use super::tree::{self, BindMount, ReadOnly, Share, Source};
use super::{Identity, Role, close_other_fds, confine, limits};

/// An arbitrary user id that owns no files.
const UNIQUE_USER: Identity = Identity::UniqueUser(0xf000_0001);

pub(super) fn o_path(path: &Path) -> OwnedFd {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("the source")
}

fn share(source: &Path, target: &str, read_only: bool) -> Share {
    let read_only = if read_only {
        ReadOnly::All(true)
    } else {
        ReadOnly::Unchanged
    };
    share_of(
        target,
        BindMount {
            read_only,
            ..BindMount::new(o_path(source))
        },
    )
}

pub(super) fn share_of(target: &str, mounted: BindMount) -> Share {
    Share {
        name: target.into(),
        source: Source::Bind(mounted),
        target: target.into(),
    }
}

/// A directory with a file and a directory in it.
fn sources() -> tempfile::TempDir {
    let sources = tempfile::tempdir().expect("a directory");
    fs::create_dir(sources.path().join("rootfs")).expect("a directory");
    fs::write(sources.path().join("rootfs/file"), "in the share").expect("a file");
    fs::write(sources.path().join("config"), "one file").expect("a file");
    fs::write(sources.path().join("secret"), "not shared").expect("a file");
    sources
}

pub(super) fn names(directory: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn only_the_shares_can_be_reached_by_path() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let end = run(|| {
        let tree = tree::enter(vec![
            share(&sources.path().join("rootfs"), "c1/rootfs", false),
            share(&sources.path().join("config"), "c1/mounts/0", false),
        ])
        .expect("the tree");
        assert_eq!(names("/"), ["c1"]);
        assert_eq!(names("/c1"), ["mounts", "rootfs"]);
        assert_eq!(names("/c1/rootfs"), ["file"]);
        assert_eq!(fs::read("/c1/mounts/0").expect("the file"), b"one file");
        fs::write("/c1/rootfs/new", "by the guest").expect("writing");
        fs::write("/c1/mounts/0", "changed").expect("writing");
        for outside in [
            "/etc",
            "/proc",
            "/c1/rootfs/../../secret",
            "/c1/mounts/../../../secret",
        ] {
            assert!(fs::metadata(outside).is_err(), "{outside}");
        }
        assert!(
            fs::write("/file", "").is_err(),
            "the tree itself is read-only"
        );
        // The thread's own descriptors, and nothing of the rest of /proc.
        let own = tree.task_dir.open_thread_fds().expect("the directory");
        let fd = own.as_raw_fd().to_string();
        openat(&own, &fd, OFlags::PATH, Mode::empty()).expect("own fd");
        for path in [
            "../status",
            "../../status",
            "../../../../self/status",
            "../../../../sys/kernel/core_pattern",
        ] {
            let climbed = openat(&own, path, OFlags::RDONLY, Mode::empty());
            assert_eq!(climbed.err(), Some(Errno::NOENT), "{path}");
        }
        assert_eq!(names("/"), ["c1"], "nothing covers the tree's root");
    });
    assert_eq!(end, End::Returned);
    let path = sources.path().join("rootfs/new");
    assert_eq!(
        fs::read(path).expect("what the child wrote"),
        b"by the guest"
    );
    assert_eq!(
        fs::read(sources.path().join("config")).expect("the file"),
        b"changed"
    );
    let after = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert_eq!(mounts, after, "nothing is mounted on the host");
}

#[test]
fn a_read_only_share_refuses_writes_below_its_mounts_too() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let end = run(|| {
        // A mount of the host within the share, in a namespace that ends with this child.
        // SAFETY: the child has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace");
        let below = sources.path().join("rootfs/below");
        fs::create_dir(&below).expect("a directory");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private).expect("private");
        mount(c"none", &below, c"tmpfs", MountFlags::empty(), None).expect("tmpfs");
        tree::enter(vec![
            share(&sources.path().join("rootfs"), "ro", true),
            share(&sources.path().join("config"), "file", true),
        ])
        .expect("the tree");
        for path in ["/ro/file", "/ro/new", "/ro/below/new", "/file"] {
            let error = fs::write(path, "x").expect_err(path);
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{path}");
        }
        assert_eq!(fs::read("/ro/file").expect("reading"), b"in the share");
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn set_id_bits_and_device_nodes_have_no_effect_in_the_tree() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let end = run(|| {
        tree::enter(vec![share(&sources.path().join("rootfs"), "c1", false)]).expect("the tree");
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, "/c1/null", kind, Mode::from(0o666), device).expect("mknod");
        let opened = open("/c1/null", OFlags::RDWR, Mode::empty());
        assert_eq!(opened.err(), Some(Errno::ACCESS));
        let flags = rustix::fs::statvfs("/c1").expect("statvfs").f_flag;
        assert!(
            flags.contains(rustix::fs::StatVfsMountFlags::NOSUID),
            "{flags:?}"
        );
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn shares_have_places_of_their_own() {
    let cases = [
        (vec!["../etc"], "target must be"),
        (vec!["/c1"], "target must be"),
        (vec![""], "target must be"),
        (vec!["a/./b", "a/b/c"], "lies in or above"),
        (vec!["a", "a-b", "a/b"], "lies in or above"),
        (vec!["a", "a"], "lies in or above"),
    ];
    for (targets, expected) in cases {
        let shares = targets
            .iter()
            .map(|target| share(Path::new("/"), target, true))
            .collect();
        let error = tree::enter(shares).expect_err("a bad target").to_string();
        assert!(error.contains(expected), "{targets:?}: {error}");
    }
}

#[test]
fn no_capability_is_left_but_those_of_the_role() {
    if !is_root() {
        return;
    }
    for role in Role::ALL {
        let count = match role {
            Role::Filesystem | Role::FilesystemAndSockets => 8,
            Role::NetworkFollower | Role::OomReporter => 1,
            _ => 0,
        };
        let end = run(|| {
            super::capabilities::keep_only(super::capabilities::of_role(role))
                .expect("capabilities");
            for set in [CapSet::Bounding, CapSet::Permitted, CapSet::Effective] {
                assert_eq!(
                    caps::read(None, set).expect("a set").len(),
                    count,
                    "{set:?}"
                );
            }
            for set in [CapSet::Inheritable, CapSet::Ambient] {
                assert_eq!(caps::read(None, set).expect("a set").len(), 0, "{set:?}");
            }
        });
        assert_eq!(end, End::Returned, "{role:?}");
    }
}

#[test]
fn nobody_is_root_but_who_touches_files() {
    if !is_root() {
        return;
    }
    for role in Role::ALL {
        let end = run(|| {
            limits::apply().expect("the limits");
            let status = fs::File::open("/proc/self/status").expect("the status");
            let unique_user = Identity::unique_user().expect("a user");
            let uid = std::process::id() | 0xf000_0000;
            let uid = if role.serves_files() { 0 } else { uid };
            confine(role, unique_user, &test_child::open_fds()).expect("the jail");
            let mut text = [0; 4096];
            let length = rustix::io::read(&status, &mut text).expect("the status");
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            for field in ["Uid", "Gid"] {
                let line = format!("\n{field}:\t{uid}\t{uid}\t{uid}\t{uid}\n");
                assert!(text.contains(&line), "{role:?}: {text}");
            }
            std::mem::forget(status);
        });
        assert_eq!(end, End::Returned, "{role:?}");
    }
}

#[test]
fn a_call_that_is_not_the_roles_kills() {
    if !is_root() {
        return;
    }
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // The calls would fail or do no harm if they came through: the pointers are null.
    let forbidden = [
        (libc::SYS_socket, [libc::AF_PACKET, libc::SOCK_RAW, 0, 0]),
        (libc::SYS_execve, [0; 4]),
        (libc::SYS_fork, [0; 4]),
        (libc::SYS_mmap, [0, 4096, executable, private]),
        (libc::SYS_mmap, [0, 2 << 20, 1, private | libc::MAP_HUGETLB]),
        (libc::SYS_mprotect, [0, 0, executable, 0]),
        (libc::SYS_umount2, [0; 4]),
        (libc::SYS_ptrace, [libc::PTRACE_PEEKDATA as i32, 1, 0, 0]),
        (libc::SYS_kill, [1, 0, 0, 0]),
        (libc::SYS_tgkill, [1, 1, 0, 0]),
        (libc::SYS_open_by_handle_at, [0; 4]),
        (libc::SYS_ioctl, [0, libc::TIOCSTI as i32, 0, 0]),
        (libc::SYS_prctl, [libc::PR_GET_DUMPABLE, 0, 0, 0]),
    ];
    for role in Role::ALL {
        for (number, [a, b, c, d]) in forbidden {
            let end = run(|| {
                confine(role, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
                // SAFETY: none of these calls touches memory that is in use.
                unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
            });
            assert_eq!(end, End::Signal(libc::SIGSYS), "{role:?}: call {number}");
        }
    }
    let end = run(|| {
        confine(Role::Vcpu, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
        let _ = fs::File::open("/etc/passwd");
    });
    assert_eq!(end, End::Signal(libc::SIGSYS), "a vCPU opens no file");
    let others = Role::ALL
        .into_iter()
        .filter(|role| *role != Role::NetworkFollower);
    for (role, family) in others.flat_map(|role| [(role, libc::AF_UNIX), (role, libc::AF_INET)]) {
        let end = run(|| {
            confine(role, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
            // SAFETY: it takes no pointer.
            unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_STREAM, 0) };
        });
        assert_eq!(
            end,
            End::Signal(libc::SIGSYS),
            "{role:?}: a socket of {family}"
        );
    }
    let end = run(|| {
        let role = Role::FilesystemAndSockets;
        confine(role, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.expect("one like those for volumes");
        let name = SocketAddrUnix::new_abstract_name(b"containerd-shim").expect("a name");
        let _ = connect(&socket, &name);
    });
    assert_eq!(end, End::Signal(libc::SIGSYS), "a name of the host's");
    let end = run(|| {
        confine(Role::NetworkFollower, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
        let _ = fs::File::create("/tmp/none");
    });
    assert_eq!(end, End::Signal(libc::SIGSYS), "a follower makes no file");
}

#[test]
fn what_every_thread_needs_is_allowed() {
    if !is_root() {
        return;
    }
    for role in Role::ALL {
        let end = run(|| {
            confine(role, UNIQUE_USER, &test_child::open_fds()).expect("the jail");
            let memory = vec![1_u8; 1 << 24];
            drop(memory);
            std::thread::yield_now();
            assert!(std::time::SystemTime::now() > std::time::SystemTime::UNIX_EPOCH);
            let map: std::collections::HashMap<_, _> = [(1, 2)].into();
            assert_eq!(map[&1], 2);
        });
        assert_eq!(end, End::Returned, "{role:?}");
    }
}

#[test]
fn stray_descriptors_are_closed_and_the_kept_ones_stay() {
    let end = run(|| {
        let stray = fs::File::open("/dev/null").expect("a file");
        let kept = fs::File::create("/dev/null").expect("a file");
        let number = stray.as_raw_fd();
        // The child's pipe to its parent goes too: what is asserted from here on must hold.
        close_other_fds(&[kept.as_fd()]).expect("closing");
        let mut kept = kept;
        kept.write_all(b"x").expect("the kept one works");
        let is_open = |fd| {
            // SAFETY: it takes no pointers.
            unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
        };
        assert!(!is_open(number));
        assert!([0, 1, 2].into_iter().all(is_open));
        std::mem::forget(stray);
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn the_limits_hold() {
    if !is_root() {
        return;
    }
    let end = run(|| {
        let limits = limits::apply().expect("the limits");
        let status = fs::read_to_string("/proc/self/limits").expect("limits");
        let line = |status: &str, name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .expect(name);
            line[name.len()..]
                .split_whitespace()
                .next()
                .expect("a value")
                .to_owned()
        };
        let readable = rustix::mm::ProtFlags::READ;
        let private = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: the mapping is new, and nobody uses it.
        let changed = unsafe {
            let page = rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, readable, private);
            let executable = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::EXEC;
            rustix::mm::mprotect(page.expect("a page"), 4096, executable)
        };
        // SAFETY: it takes no pointers. An older kernel doesn't know it.
        let refuses =
            unsafe { libc::prctl(libc::PR_GET_MDWE, 0_usize, 0_usize, 0_usize, 0_usize) } == 1;
        assert_eq!(changed.is_err(), refuses, "memory becomes executable");
        assert_eq!(line(&status, "Max core file size"), "0");
        assert_eq!(line(&status, "Max locked memory"), "0");
        assert_eq!(line(&status, "Max open files"), limits.nofile.to_string());
        limits::lower_nofile(5000).expect("fewer files");
        let status = fs::read_to_string("/proc/self/limits").expect("limits");
        assert_eq!(line(&status, "Max open files"), "5000");
        let dumpable = rustix::process::dumpable_behavior().expect("prctl");
        assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
    });
    assert_eq!(end, End::Returned);
}
