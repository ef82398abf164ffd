//! The device in the jail: every kind of request, from a thread confined as in production. A call that
//! the filter lacks kills the child, and the test says so.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use virtiofsd::fuse::Opcode;

use super::driver::{Guest, c_string, options, word};
use crate::jail::test_child::{End, is_root, run};
use crate::jail::tree::{self, BindMount, Share, Source};
use crate::jail::{Identity, Role, confine, limits};

const ROOT: u64 = 1;

/// A request's body, put together from its fields.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, values: &[u32]) -> Self {
        self.0
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn u64(mut self, values: &[u64]) -> Self {
        self.0
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn name(mut self, name: &str) -> Self {
        self.0.extend(c_string(name));
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn body() -> Body {
    Body::default()
}

/// A guest whose processes have uid and gid 1000.
struct Jailed(Guest);

impl Jailed {
    fn ask(&mut self, opcode: Opcode, node: u64, body: Body) -> Vec<u8> {
        let what = format!("{opcode:?}");
        match self.0.request_as(1000, opcode as u32, node, &body.0) {
            Ok(reply) => reply,
            Err(errno) => panic!("{what}: {}", std::io::Error::from_raw_os_error(errno)),
        }
    }

    /// Makes a file and returns its node and handle.
    fn create(&mut self, parent: u64, name: &str, mode: u32) -> (u64, u64) {
        let flags = libc::O_RDWR as u32;
        let body = body()
            .u32(&[flags, mode | libc::S_IFREG, 0o22, 0])
            .name(name);
        let reply = self.ask(Opcode::Create, parent, body);
        (word(&reply, 0), word(&reply, 128))
    }

    fn setattr(&mut self, node: u64, valid: u32, set: impl FnOnce(&mut [u64; 11])) {
        let mut fields = [0; 11];
        fields[0] = valid.into();
        set(&mut fields);
        self.ask(Opcode::Setattr, node, body().u64(&fields));
    }
}

fn names(jailed: &mut Jailed, root: u64) {
    let directory = word(
        &jailed.ask(Opcode::Mkdir, root, body().u32(&[0o755, 0o22]).name("d")),
        0,
    );
    jailed.create(root, "old", 0o644);
    let fifo = libc::S_IFIFO | 0o600;
    jailed.ask(
        Opcode::Mknod,
        root,
        body().u32(&[fifo, 0, 0, 0]).name("fifo"),
    );
    let socket = libc::S_IFSOCK | 0o600;
    jailed.ask(
        Opcode::Mknod,
        root,
        body().u32(&[socket, 0, 0, 0]).name("socket"),
    );
    let reply = jailed.ask(Opcode::Symlink, root, body().name("link").name("/target"));
    let target = jailed.ask(Opcode::Readlink, word(&reply, 0), body());
    assert_eq!(target, b"/target");
    jailed.ask(
        Opcode::Rename,
        root,
        body().u64(&[directory]).name("old").name("new"),
    );
    let node = jailed.0.lookup(directory, "new").expect("the renamed file");
    jailed.ask(Opcode::Link, root, body().u64(&[node]).name("hard"));
    jailed.create(root, "victim", 0o644);
    jailed.ask(
        Opcode::Rename2,
        root,
        body().u64(&[root, 0]).name("hard").name("victim"),
    );
    jailed.ask(Opcode::Unlink, directory, body().name("new"));
    jailed.ask(Opcode::Rmdir, root, body().name("d"));

    let handle = word(&jailed.ask(Opcode::Opendir, root, body().u64(&[0])), 0);
    let list = body().u64(&[handle, 0]).u32(&[4096, 0]).u64(&[0, 0]);
    let entries = jailed.ask(Opcode::Readdir, root, list);
    let text = String::from_utf8_lossy(&entries).into_owned();
    for name in ["fifo", "socket", "link", "victim"] {
        assert!(text.contains(name), "{name} is listed");
    }
    let list = body().u64(&[handle, 0]).u32(&[4096, 0]).u64(&[0, 0]);
    jailed.ask(Opcode::Readdirplus, root, list);
    jailed.ask(Opcode::Fsyncdir, root, body().u64(&[handle, 0]));
    jailed.ask(Opcode::Releasedir, root, body().u64(&[handle, 0, 0]));
}

fn data(jailed: &mut Jailed, root: u64) {
    let (node, handle) = jailed.create(root, "data", 0o4755);
    let write = |flags| {
        body()
            .u64(&[handle, 0])
            .u32(&[5, flags])
            .u64(&[0, 0])
            .bytes(b"hello")
    };
    jailed.ask(Opcode::Write, node, write(0));
    let attr = jailed.ask(Opcode::Getattr, node, body().u64(&[0, 0]));
    assert_eq!(
        mode(&attr),
        libc::S_IFREG | 0o4755,
        "the guest keeps the set-id bit"
    );
    // WRITE_KILL_PRIV: the guest's kernel says that the writer may not keep them.
    jailed.ask(Opcode::Write, node, write(1 << 2));
    let attr = jailed.ask(Opcode::Getattr, node, body().u64(&[0, 0]));
    assert_eq!(
        mode(&attr),
        libc::S_IFREG | 0o755,
        "the host has cleared it"
    );
    let read = body().u64(&[handle, 1]).u32(&[100, 0]).u64(&[0, 0]);
    assert_eq!(jailed.ask(Opcode::Read, node, read), b"ello");
    jailed.ask(Opcode::Fallocate, node, body().u64(&[handle, 0, 8192, 0]));
    let seek = body().u64(&[handle, 0]).u32(&[libc::SEEK_DATA as u32, 0]);
    assert_eq!(word(&jailed.ask(Opcode::Lseek, node, seek), 0), 0);
    let (copy, copy_handle) = jailed.create(root, "copy", 0o644);
    let range = body().u64(&[handle, 0, copy, copy_handle, 0, 5, 0]);
    jailed.ask(Opcode::CopyFileRange, node, range);
    for data_only in [0, 1] {
        jailed.ask(Opcode::Fsync, node, body().u64(&[handle, data_only]));
    }
    jailed.ask(Opcode::Flush, node, body().u64(&[handle, 0, 0]));
    jailed.ask(Opcode::Statfs, node, body());
    jailed.ask(Opcode::Syncfs, root, body().u64(&[0]));
    jailed.ask(Opcode::Access, node, body().u32(&[libc::R_OK as u32, 0]));
    jailed.ask(Opcode::Release, node, body().u64(&[handle, 0, 0]));
    let flags = (libc::O_RDWR | libc::O_TRUNC | libc::O_APPEND) as u32;
    let handle = word(&jailed.ask(Opcode::Open, node, body().u32(&[flags, 1])), 0);
    jailed.ask(Opcode::Release, node, body().u64(&[handle, 0, 0]));
}

fn unnamed(jailed: &mut Jailed, root: u64) {
    let flags = (libc::O_RDWR | libc::O_TMPFILE) as u32;
    let create = body()
        .u32(&[flags, libc::S_IFREG | 0o4664, 0o27, 0])
        .name("/");
    let reply = jailed.ask(Opcode::TmpFile, root, create);
    let (node, handle) = (word(&reply, 0), word(&reply, 128));
    let attr = jailed.ask(Opcode::Getattr, node, body().u64(&[0, 0]));
    assert_eq!(mode(&attr), libc::S_IFREG | 0o4640);
    let write = body()
        .u64(&[handle, 0])
        .u32(&[5, 1 << 2])
        .u64(&[0, 0])
        .bytes(b"hello");
    jailed.ask(Opcode::Write, node, write);
    jailed.setattr(node, MODE | TIMES, |fields| fields[8] = 0o600 << 32);
    jailed.setattr(node, SIZE | HANDLE, |fields| {
        (fields[1], fields[2]) = (handle, 4)
    });
    jailed.setattr(node, UID | GID, |fields| {
        (fields[9], fields[10]) = (1000 << 32, 1000)
    });
    let set = body().u32(&[1, 0, 0, 0]).name("user.x").bytes(b"x");
    jailed.ask(Opcode::Setxattr, node, set);
    let get = body().u32(&[100, 0]).name("user.x");
    assert_eq!(jailed.ask(Opcode::Getxattr, node, get), b"x");
    jailed.ask(Opcode::Listxattr, node, body().u32(&[100, 0]));
    jailed.ask(Opcode::Removexattr, node, body().name("user.x"));
    jailed.ask(Opcode::Statfs, node, body());
    jailed.ask(Opcode::Fallocate, node, body().u64(&[handle, 0, 100, 1]));
    let seek = body().u64(&[handle, 0]).u32(&[libc::SEEK_DATA as u32, 0]);
    jailed.ask(Opcode::Lseek, node, seek);
    jailed.ask(Opcode::Fsync, node, body().u64(&[handle, 0]));
    let (copy, copy_handle) = jailed.create(root, "copy of unnamed", 0o644);
    let range = body().u64(&[handle, 0, copy, copy_handle, 0, 4, 0]);
    jailed.ask(Opcode::CopyFileRange, node, range);

    jailed.ask(Opcode::Link, root, body().u64(&[node]).name("now named"));
    assert_eq!(
        jailed.0.lookup(root, "now named"),
        Ok(node),
        "it is the same inode"
    );
    jailed.ask(Opcode::Link, root, body().u64(&[node]).name("second name"));
    assert_eq!(jailed.0.lookup(root, "second name"), Ok(node));
    jailed.ask(Opcode::Unlink, root, body().name("second name"));
    let attr = jailed.ask(Opcode::Getattr, node, body().u64(&[1, handle]));
    assert_eq!(mode(&attr), libc::S_IFREG | 0o600);
    jailed.setattr(node, SIZE | HANDLE, |fields| {
        (fields[1], fields[2]) = (handle, 4);
    });
    let (same, other) = jailed.create(root, "now named", 0o600);
    assert_eq!(same, node, "opened by creating what there is");
    jailed.ask(Opcode::Release, node, body().u64(&[other, 0, 0]));
    let again = word(&jailed.ask(Opcode::Open, node, body().u32(&[0, 0])), 0);
    let read = |handle| body().u64(&[handle, 0]).u32(&[100, 0]).u64(&[0, 0]);
    assert_eq!(jailed.ask(Opcode::Read, node, read(again)), b"hell");
    for handle in [handle, again] {
        jailed.ask(Opcode::Flush, node, body().u64(&[handle, 0, 0]));
        jailed.ask(Opcode::Release, node, body().u64(&[handle, 0, 0]));
    }
    let stale = jailed
        .0
        .request_as(1000, Opcode::Read as u32, node, &read(handle).0);
    assert_eq!(stale, Err(libc::EBADF));
    jailed.0.forget(node, 6);
    assert_ne!(
        jailed.0.lookup(root, "now named"),
        Ok(node),
        "nobody knows it any more"
    );
    let gone = jailed
        .0
        .request_as(1000, Opcode::Getattr as u32, node, &[0; 16]);
    assert_eq!(gone, Err(libc::EBADF));
}

/// The mode in a reply to FUSE_GETATTR.
fn mode(reply: &[u8]) -> u32 {
    let at = 16 + 60;
    u32::from_le_bytes(reply[at..at + 4].try_into().expect("4 bytes"))
}

// What is valid in the body of FUSE_SETATTR.
const MODE: u32 = 1;
const UID: u32 = 2;
const GID: u32 = 4;
const SIZE: u32 = 8;
const TIMES: u32 = 0x30;
const HANDLE: u32 = 0x40;
const TIMES_NOW: u32 = 0x180;

fn attributes(jailed: &mut Jailed, root: u64) {
    let (node, handle) = jailed.create(root, "attributes", 0o644);
    jailed.setattr(node, MODE, |fields| fields[8] = 0o2640 << 32);
    jailed.setattr(node, UID | GID, |fields| {
        (fields[9], fields[10]) = (7 << 32, 8)
    });
    jailed.setattr(node, SIZE, |fields| fields[2] = 100);
    jailed.setattr(node, SIZE | HANDLE, |fields| {
        (fields[1], fields[2]) = (handle, 50)
    });
    jailed.setattr(node, TIMES, |fields| (fields[4], fields[5]) = (1, 2));
    jailed.setattr(node, TIMES | HANDLE, |fields| {
        (fields[1], fields[5]) = (handle, 3)
    });
    jailed.setattr(node, TIMES | TIMES_NOW, |_| ());

    let link = word(
        &jailed.ask(Opcode::Symlink, root, body().name("l").name("t")),
        0,
    );
    jailed.setattr(link, UID, |fields| fields[9] = 5 << 32);
    for (node, name) in [(node, "user.colour"), (node, "system.posix_acl_access")] {
        let value: &[u8] = match name {
            "user.colour" => b"blue",
            // Version 2, and the three entries that every ACL has.
            _ => &[
                2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0,
                4, 0, 255, 255, 255, 255,
            ],
        };
        let size = value.len() as u32;
        let set = body().u32(&[size, 0, 0, 0]).name(name).bytes(value);
        jailed.ask(Opcode::Setxattr, node, set);
    }
    let get = |name| body().u32(&[100, 0]).name(name);
    assert_eq!(
        jailed.ask(Opcode::Getxattr, node, get("user.colour")),
        b"blue"
    );
    let list = jailed.ask(Opcode::Listxattr, node, body().u32(&[100, 0]));
    assert!(list.starts_with(b"user.colour\0"), "{list:?}");
    jailed.ask(Opcode::Removexattr, node, body().name("user.colour"));
    // On a symlink, all four go by another way: through the working directory.
    let refused = body().u32(&[1, 0, 0, 0]).name("user.x").bytes(b"x");
    let link_calls = [
        (Opcode::Setxattr, refused),
        (Opcode::Getxattr, get("user.x")),
        (Opcode::Listxattr, body().u32(&[100, 0])),
        (Opcode::Removexattr, body().name("user.x")),
    ];
    for (opcode, body) in link_calls {
        let _ = jailed.0.request_as(1000, opcode as u32, link, &body.0);
    }
}

/// The guest's kernel has checked the mode, and its process may have been let in by a capability.
fn others_folders(jailed: &mut Jailed, root: u64) {
    let closed = word(
        &jailed.ask(Opcode::Mkdir, root, body().u32(&[0o700, 0]).name("closed")),
        0,
    );
    jailed.setattr(closed, UID | GID, |fields| {
        (fields[9], fields[10]) = (7 << 32, 7)
    });
    jailed.create(closed, "within", 0o644);
    jailed.ask(Opcode::Mkdir, closed, body().u32(&[0o755, 0]).name("d"));
    let link = body().name("link").name("target");
    jailed.ask(Opcode::Symlink, closed, link);
}

fn o_path(path: &Path) -> std::os::fd::OwnedFd {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("the source")
}

#[test]
fn every_kind_of_request_is_served_in_the_jail() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(source.path(), Some(1000), Some(1000)).expect("chown");
    let end = run(|| {
        limits::apply().expect("the limits");
        let share = Share {
            name: "the share".into(),
            source: Source::Bind(BindMount::new(o_path(source.path()))),
            target: "c1/rootfs".into(),
        };
        let tree = tree::enter(vec![share]).expect("the tree");
        let guest = Guest::new(options(Path::new("/")), |mut needed| {
            let own = tree.task_dir.open_thread_fds();
            let own = own.map_err(io::Error::other)?;
            needed.push(own.as_raw_fd());
            confine(Role::Filesystem, Identity::Unchanged, &needed).map_err(io::Error::other)?;
            Ok(own)
        });
        let mut jailed = Jailed(guest);
        let container = jailed.0.lookup(ROOT, "c1").expect("c1");
        let entry = jailed.ask(Opcode::Lookup, container, body().name("rootfs"));
        let (root, generation) = (word(&entry, 0), word(&entry, 8));
        assert_eq!(generation, 0, "the guest mounts on it");
        names(&mut jailed, root);
        data(&mut jailed, root);
        attributes(&mut jailed, root);
        unnamed(&mut jailed, root);
        others_folders(&mut jailed, root);
        // What its thread has open is not this thread's to close.
        std::mem::forget(jailed);
    });
    assert_eq!(
        end,
        End::Returned,
        "31 is a system call that the filter lacks"
    );

    let metadata = |name| fs::symlink_metadata(source.path().join(name)).expect(name);
    let data = metadata("data");
    assert_eq!((data.uid(), data.gid()), (1000, 1000));
    assert!(metadata("fifo").file_type().is_fifo());
    assert_eq!(metadata("l").uid(), 5);
    assert_eq!(metadata("attributes").size(), 50);
    let text = |name| fs::read_to_string(source.path().join(name)).expect(name);
    assert_eq!(text("now named"), "hell");
    assert_eq!(text("copy of unnamed"), "hell");
    assert_eq!(metadata("now named").uid(), 1000);
    assert_eq!(metadata("closed/within").uid(), 1000);
}
