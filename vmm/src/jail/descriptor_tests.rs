//! What a compromised thread can do to the files that other threads of the process have open.
#![allow(unsafe_code)] // system calls on any number, open or not

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::test_child::{End, is_root, run};
use super::tests::{o_path, share_of};
use super::tree::{self, BindMount, HostFile, TaskDir};
use super::{Identity, Role, confine, descriptors};

/// Higher than any descriptor that the process has.
const HIGHEST: RawFd = 64;

/// Files of the host that a VM process has open, for its main thread and for a disk's.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        fs::create_dir(folder.path().join("rootfs")).expect("a directory");
        for name in ["stdin", "disk"] {
            let path = folder.path().join(name);
            fs::write(&path, "the host's").expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What can be seen of a file: its text, mode, owner, and how many names it has.
    fn seen(path: &Path) -> (String, u32, u32, u64) {
        let about = fs::metadata(path).expect("the file");
        let text = fs::read_to_string(path).expect("the text");
        (text, about.mode(), about.uid(), about.nlink())
    }

    fn all_seen(&self) -> Vec<(String, u32, u32, u64)> {
        let paths = [self.path("stdin"), self.path("disk"), "/dev/null".into()];
        paths.iter().map(|path| Self::seen(path)).collect()
    }
}

/// The process after it has entered the tree: the files are open, and there is a single thread.
fn process(host: &Host) -> (Vec<File>, TaskDir) {
    let open = vec![
        File::open(host.path("stdin")).expect("the container's stdin"),
        File::open(host.path("disk")).expect("a disk that may only be read"),
        OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .expect("the container's stdout"),
    ];
    descriptors::replace_standard_streams().expect("the streams are replaced");
    let tree = tree::enter(vec![share_of(
        "c1",
        BindMount::new(o_path(&host.path("rootfs"))),
    )]);
    (open, tree.expect("the tree").task_dir)
}

/// Makes the system calls that the virtio-fs thread may make, on every descriptor number. Returns
/// those that should have failed and didn't.
fn change_all(own: &File) -> Vec<String> {
    let mut done = Vec::new();
    let name = |fd: RawFd| fd.to_string();
    for fd in 0..HIGHEST {
        for flags in [OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC] {
            if let Ok(opened) = openat(own, name(fd), flags, Mode::empty()) {
                let is_file = rustix::fs::fstat(&opened).map(|stat| stat.st_mode & libc::S_IFMT);
                if is_file == Ok(libc::S_IFREG) || is_file == Ok(libc::S_IFCHR) {
                    done.push(format!("opened {fd} for writing"));
                }
            }
        }
        let linked = linkat(
            own,
            name(fd),
            CWD,
            format!("/c1/link{fd}"),
            AtFlags::SYMLINK_FOLLOW,
        );
        if linked.is_ok() {
            done.push(format!("linked {fd}"));
        }
        // SAFETY: the calls take numbers alone. What they do to this thread's own descriptors is no harm.
        unsafe {
            libc::fchmod(fd, 0o4777);
            libc::fchown(fd, 12345, 12345);
            libc::ftruncate(fd, 0);
        }
    }
    for up in [
        "..",
        "../fd",
        "../../..",
        "../../../../self/fd/3",
        "../../1/fd",
    ] {
        match openat(own, up, OFlags::RDONLY, Mode::empty()) {
            Ok(opened) if !is_same(&opened, own) => done.push(format!("opened {up}")),
            _ => {}
        }
    }
    done
}

fn is_same(one: &impl std::os::fd::AsFd, other: &File) -> bool {
    let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let (one, other) = (rustix::fs::fstat(one), rustix::fs::fstat(other));
    one.map(inode) == other.map(inode)
}

#[test]
fn the_virtio_fs_thread_changes_nothing_that_others_have_open() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let before = host.all_seen();
    let end = run(|| {
        let (open, threads) = process(&host);
        let files = thread::spawn(move || {
            // SAFETY: with CLONE_FS alone, no resource of another thread is touched.
            unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("unshare");
            let own = threads.open_thread_fds().expect("own descriptors");
            confine(Role::Filesystem, Identity::Unchanged, &[own.as_raw_fd()]).expect("the jail");
            change_all(&own)
        });
        assert_eq!(files.join().expect("the thread"), Vec::<String>::new());
        for file in open {
            rustix::fs::fstat(&file).expect("the main thread has them still");
        }
    });
    assert_eq!(end, End::Returned);
    assert_eq!(host.all_seen(), before, "the host's files");
}

#[test]
fn a_thread_reads_and_writes_what_is_its_own_alone() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let before = host.all_seen();
    for role in Role::ALL.into_iter().filter(|role| !role.serves_files()) {
        let end = run(|| {
            let (open, _threads) = process(&host);
            let [stdin, disk, _] = &open[..] else {
                panic!("three files");
            };
            let own = if role == Role::Main { stdin } else { disk }.as_raw_fd();
            let thread = thread::spawn(move || {
                confine(role, Identity::UniqueUser(0xf000_0001), &[own]).expect("the jail");
                let mut byte = [0_u8];
                let readable = |fd: &RawFd| {
                    // SAFETY: the buffer is one byte, and lives.
                    unsafe { libc::read(*fd, byte.as_mut_ptr().cast(), 1) == 1 }
                };
                (3..HIGHEST).filter(readable).collect::<Vec<_>>()
            });
            assert_eq!(thread.join().expect("the thread"), [own], "{role:?}");
        });
        assert_eq!(end, End::Returned, "{role:?}");
    }
    assert_eq!(host.all_seen(), before, "the host's files");
}

#[test]
fn the_standard_streams_are_replaced_by_a_closed_pipe() {
    let end = run(|| {
        descriptors::replace_standard_streams().expect("the streams are replaced");
        // As libraries do, and as Rust does in a panic: neither may end the process.
        eprintln!("to nobody");
        assert_eq!(
            rustix::io::write(rustix::stdio::stderr(), b"x"),
            Err(Errno::BADF)
        );
        let mut byte = [0];
        assert_eq!(rustix::io::read(rustix::stdio::stdin(), &mut byte), Ok(0));
    });
    assert_eq!(end, End::Returned);
}

/// The Landlock ABI version of the kernel, or -1.
fn landlock_of_the_host() -> i64 {
    const VERSION: u32 = 1;
    let no_rules = std::ptr::null::<u8>();
    // SAFETY: with this flag the call reads no memory.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, no_rules, 0, VERSION) }
}

#[test]
fn landlock_keeps_the_virtio_fs_thread_beneath_its_root() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let end = run(|| {
        let (open, threads) = process(&host);
        // As if one had been left in its table, or had come there in another way.
        let foreign = open[0].as_raw_fd();
        // SAFETY: this child's main thread does nothing else.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("unshare");
        let own = threads.open_thread_fds().expect("own descriptors");
        rustix::thread::set_no_new_privs(true).expect("no_new_privs");
        super::landlock::restrict_to_root().expect("landlock");
        fs::write("/c1/new", "in the share").expect("the share can be written");
        fs::create_dir("/c1/d").expect("and directories made");
        fs::rename("/c1/new", "/c1/d/moved").expect("and files moved between them");
        let opened = openat(&own, foreign.to_string(), OFlags::RDWR, Mode::empty());
        match landlock_of_the_host() {
            ..2 => eprintln!("skipped: the host has no Landlock that hull uses"),
            _ => assert_eq!(opened.map(drop), Err(Errno::ACCESS)),
        }
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn the_out_of_memory_reporter_has_the_directory_of_its_tree_and_nothing_above_it() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let has_landlock = landlock_of_the_host() >= 2;
    let end = run(|| {
        // As if the directory of the host had been kept open.
        let foreign = o_path(&host.path("rootfs"));
        let cgroups = HostFile {
            file: o_path(&host.path("rootfs")),
            target: "cgroups",
            read_only: false,
        };
        let mut keep = super::test_child::open_fds();
        tree::enter_with_host_files(vec![cgroups]).expect("the tree");
        let own = o_path(Path::new("/cgroups"));
        keep.push(own.as_raw_fd());
        confine(Role::OomReporter, Identity::Unchanged, &keep).expect("the jail");
        rustix::fs::mkdirat(&own, "made", Mode::RWXU).expect("a directory that it makes");
        let open = |from, path| openat(from, path, OFlags::RDWR, Mode::empty()).map(drop);
        for path in ["../stdin", "../../dev/null", "/dev/null"] {
            assert_eq!(open(&own, path), Err(Errno::NOENT), "{path}");
        }
        rustix::fs::mkdirat(&own, "../made", Mode::RWXU).expect_err("a root that can't be written");
        match has_landlock {
            true => assert_eq!(open(&foreign, "../stdin"), Err(Errno::ACCESS)),
            false => eprintln!("skipped: the host has no Landlock that hull uses"),
        }
    });
    assert_eq!(end, End::Returned);
    assert!(host.path("rootfs/made").is_dir());
    assert!(!host.path("made").exists());
}
