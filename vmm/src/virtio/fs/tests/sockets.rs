//! Connections to sockets in the tree.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use proptest::prelude::*;
use rustix::net::sockopt::socket_peercred;

use super::super::connect::{FIXED, OPCODE, Wanted};
use super::driver::{Guest, c_string, options, unconfined};
use crate::jail::test_child::{End, is_root, run};
use crate::jail::tree::{self, BindMount, Share, Source};
use crate::jail::{Identity, Role, confine, limits};
use crate::virtio::fs::Options;
use crate::virtio::vsock::{Taker, giver};

const ROOT: u64 = 1;

/// The request's body.
fn body(inode: u64, groups: &[u32], name: &str) -> Vec<u8> {
    let mut bytes = inode.to_le_bytes().to_vec();
    bytes.extend((groups.len() as u32).to_le_bytes());
    bytes.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
    bytes.resize(FIXED, 0);
    bytes.extend(c_string(name));
    bytes
}

fn connecting(root: &Path) -> (Options, Taker) {
    let (giver, taker) = giver().expect("a pair of sockets");
    let options = Options {
        connections: Some(giver),
        ..options(root)
    };
    (options, taker)
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("it is there").ino()
}

#[test]
fn what_can_not_be_connected_to_is_an_error_of_connect() {
    let tree = tempfile::tempdir().expect("a directory");
    let at = |name: &str| tree.path().join(name);
    let _listener = UnixListener::bind(at("socket")).expect("a socket");
    drop(UnixListener::bind(at("left")).expect("a socket"));
    fs::write(at("file"), "").expect("a file");
    symlink("socket", at("link")).expect("a link");
    let (options, _taker) = connecting(tree.path());
    let mut guest = Guest::new(options, unconfined);
    let mut connect = |inode, name: &str| guest.request(OPCODE, ROOT, &body(inode, &[], name));
    let socket = inode(&at("socket"));
    assert_eq!(connect(socket, "socket").expect("connected").len(), 20);
    assert_eq!(connect(socket + 1, "socket"), Err(libc::ESTALE));
    assert_eq!(connect(inode(&at("left")), "left"), Err(libc::ECONNREFUSED));
    assert_eq!(connect(inode(&at("file")), "file"), Err(libc::ECONNREFUSED));
    assert_eq!(connect(inode(&at("link")), "link"), Err(libc::ECONNREFUSED));
    assert_eq!(connect(socket, "none"), Err(libc::ENOENT));
    for outside in ["../socket", "a/socket", "..", ".", ""] {
        assert_eq!(connect(socket, outside), Err(libc::EINVAL), "{outside}");
    }
    guest.stop();
}

#[test]
fn without_the_option_there_is_no_such_request() {
    let tree = tempfile::tempdir().expect("a directory");
    let path = tree.path().join("socket");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let mut guest = Guest::with_root(tree.path());
    let answer = guest.request(OPCODE, ROOT, &body(inode(&path), &[], "socket"));
    assert_eq!(answer, Err(libc::ENOSYS));
    guest.stop();
}

#[test]
fn a_server_sees_the_guests_user_also_from_the_jail() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let path = source.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let end = run(|| {
        limits::apply().expect("the limits");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let folder = rustix::fs::open(source.path(), flags, rustix::fs::Mode::empty());
        let share = Share {
            name: "the share".into(),
            source: Source::Bind(BindMount::new(folder.expect("the source"))),
            target: "c1".into(),
        };
        let inode = inode(&path);
        let tree = tree::enter(vec![share]).expect("the tree");
        let (options, _taker) = connecting(Path::new("/"));
        let mut guest = Guest::new(options, |mut needed| {
            let own = tree.task_dir.open_thread_fds().map_err(io::Error::other)?;
            needed.push(own.as_raw_fd());
            let role = Role::FilesystemAndSockets;
            confine(role, Identity::Unchanged, &needed).map_err(io::Error::other)?;
            Ok(own)
        });
        let share = guest.lookup(ROOT, "c1").expect("the share");
        for uid in [1000, 0] {
            let body = body(inode, &[7, 8], "socket");
            let answer = guest.request_as(uid, OPCODE, share, &body);
            answer.expect("connected");
        }
        // Its creations are root's again.
        let made = guest.request(
            9,
            share,
            &[&[0xed, 1, 0, 0, 0, 0, 0, 0][..], b"d\0"].concat(),
        );
        made.expect("a folder");
        std::mem::forget(guest);
    });
    assert_eq!(end, End::Returned);
    for uid in [1000, 0] {
        let (mut stream, _) = listener.accept().expect("a connection");
        let peer = socket_peercred(&stream).expect("its user");
        assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (uid, uid));
        assert_eq!(stream.read(&mut [0]).expect("its end"), 0);
    }
    let made = fs::metadata(source.path().join("d")).expect("the folder");
    assert_eq!((made.uid(), made.gid()), (0, 0));
}

proptest! {
    #[test]
    fn no_bytes_of_a_request_panic(bytes in proptest::collection::vec(any::<u8>(), 0..450)) {
        let _ = Wanted::decode(&bytes);
    }

    #[test]
    fn a_request_is_read_as_the_kernel_writes_it(
        inode: u64, groups in proptest::collection::vec(any::<u32>(), 0..=32), name in "[a-z-]{1,60}",
    ) {
        let wanted = Wanted::decode(&body(inode, &groups, &name)).expect("a request");
        prop_assert_eq!(wanted.parts(), (inode, &groups[..], name.as_bytes()));
    }
}
